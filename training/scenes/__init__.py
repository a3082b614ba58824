"""Training of the bundled `scenes` model: `make train-scenes`, or `python -m training.scenes.train --help`."""
