"""Model families: each folder turns one architecture's checkpoints into forward passes and skills."""
