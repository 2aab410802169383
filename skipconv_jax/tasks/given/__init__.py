"""Networks a user brings, trained: an ONNX file or a function, with a preset for its outputs."""
