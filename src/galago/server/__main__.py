"""python -m galago.server: the same as `galago serve`."""

import sys

from galago.cli.app import run

run(["serve", *sys.argv[1:]])
