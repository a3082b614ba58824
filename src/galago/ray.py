"""What Ray's own programs use of Galago: a class for Dataset.map_batches, and an application for Ray Serve."""

from galago.cluster.captioner import Captioner
from galago.cluster.serving import app

__all__ = ["Captioner", "app"]
