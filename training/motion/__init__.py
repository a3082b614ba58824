"""Training of the bundled `motion` model: `make train-motion`, or `python -m training.motion.train --help`."""
