"""What can run models, a file each; see backend.py."""
