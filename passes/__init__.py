"""Passes over the `onnx`, `speq` and `pe` dialects, one per file."""
