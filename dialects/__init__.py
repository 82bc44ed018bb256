"""The IR levels of speqc: `onnx`, `speq` and `pe`, one file each."""
