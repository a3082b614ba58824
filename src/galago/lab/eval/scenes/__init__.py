"""Drawn scenes with exact answers: the drawing, the tasks and the scoring."""
