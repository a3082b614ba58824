"""Work in the background: a queue that loses nothing, and the webhooks that tell of it."""
