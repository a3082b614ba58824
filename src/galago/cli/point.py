"""galago point"""

from galago.cli.detect import object_command
from galago.request import Point

EXAMPLES = """\b
Examples:
  galago point photo.jpg "door handle"
  galago point photo.jpg face --max-objects 3 --draw points.png"""

point = object_command(Point, "Point at objects: a place in each, in pixels and relative to the image.")
