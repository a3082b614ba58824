"""python -m galago.server: the same as `galago serve`."""

import sys

from galago.cli.app import main

sys.exit(main(["serve", *sys.argv[1:]]))
