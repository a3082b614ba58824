"""Models as ONNX graphs: made from a checkpoint (export), and run by ONNX Runtime without PyTorch (loading)."""
