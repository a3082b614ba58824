"""Carrying out requests: queue, steps, caches, sampling; knows nothing of models or skills."""
