"""Measuring: `galago bench` (speed and memory) and `galago eval` (right answers). Serving needs none of it."""
