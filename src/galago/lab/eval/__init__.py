"""Measurements of models: tasks with known answers, and how they are scored."""
