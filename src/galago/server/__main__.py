"""python -m galago.server: the same as `galago serve`."""

import sys

from galago.cli.app import main
from galago.signals import leave

leave(main(["serve", *sys.argv[1:]]))
