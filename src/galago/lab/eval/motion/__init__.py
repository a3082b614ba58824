"""Drawn clips of things that move, appear and leave: the drawing, the questions and the scoring."""
