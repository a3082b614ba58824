"""Files that hold a model: tensors, packed weights, JSON."""
