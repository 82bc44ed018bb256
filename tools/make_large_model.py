"""Write a Llama-like FP16 ONNX decoder of any size with random weights, to see compiling scale.

    python tools/make_large_model.py FOLDER [--layers 16] [--vocabulary 128256] [--head tied]

The shapes are those of Llama 3.1 8B unless options say otherwise: 16 layers with a tied head are
8.0 GB. The graph is that of `speqc.decoder_graph`. Weights lie in `model.onnx.data`, written row by
row, so that memory stays small whatever the size. A seed gives the same file every time (with the
same NumPy).

Each weight is normal with a deviation of 0.02, its columns differ by a log-normal factor, and one
in 4096 columns is four times as large, much as in trained models.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import onnx
from onnx import TensorProto

from speqc.decoder_graph import angle_table, decoder_model, external_tensor
from speqc.decoder_shape import DecoderShape, Head

DATA = "model.onnx.data"
ROWS_BYTES = 1 << 24
"""Bytes of a tensor that are made at a time, about."""

DEFAULTS = {
    "layers": 16,
    "hidden": 4096,
    "intermediate": 14336,
    "heads": 32,
    "kv_heads": 8,
    "vocabulary": 128256,
}


class RandomTensors:
    """Tensors with random values, whose bytes go to the data file at once."""

    def __init__(self, data: BinaryIO, random: np.random.Generator):
        self.data = data
        self.random = random

    def matrix(self, name: str, rows: int, columns: int) -> TensorProto:
        """A random weight [rows, columns]."""
        tensor = self.external(name, (rows, columns))
        deviation = 0.02 * self.random.lognormal(0, 0.25, columns)
        deviation[self.random.random(columns) < 1 / 4096] *= 4
        step = max(1, ROWS_BYTES // (4 * columns))
        for start in range(0, rows, step):
            shape = min(step, rows - start), columns
            values = self.random.standard_normal(shape, np.float32)
            values *= deviation.astype(np.float32)
            self.data.write(values.astype(np.float16).tobytes())
        return tensor

    def copy_transposed(self, name: str, matrix: TensorProto) -> TensorProto:
        """The transpose of a matrix in the data file."""
        tensor = self.external(name, matrix.dims[::-1])
        self.data.flush()
        place = next(int(entry.value) for entry in matrix.external_data if entry.key == "offset")
        values = np.memmap(self.data.name, np.float16, "r", place, tuple(matrix.dims))
        step = max(1, ROWS_BYTES // (2 * values.shape[0]))
        for start in range(0, values.shape[1], step):
            self.data.write(np.ascontiguousarray(values[:, start : start + step].T).tobytes())
        return tensor

    def scale(self, name: str, size: int) -> TensorProto:
        """A scale near one."""
        tensor = self.external(name, (size,))
        self.data.write(self.random.normal(1, 0.1, size).astype(np.float16).tobytes())
        return tensor

    def angles(self, name: str, function: np.ufunc, shape: DecoderShape) -> TensorProto:
        """The true table; it stays in the graph's file."""
        return onnx.numpy_helper.from_array(angle_table(function, shape), name)

    def external(self, name: str, shape: Sequence[int]) -> TensorProto:
        """An FP16 tensor whose bytes start where the data file ends now."""
        return external_tensor(name, shape, DATA, self.data.tell())


def main() -> None:
    """Write the model that the options describe."""
    parser = argparse.ArgumentParser(description="Write a large random FP16 ONNX decoder.")
    parser.add_argument("folder", type=Path)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--head", choices=get_args(Head), default="tied")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    folder, seed = options.pop("folder"), options.pop("seed")
    head_size = options["hidden"] // options["heads"]
    shape = DecoderShape(**options, head_size=head_size, context=2048, rope_theta=500000.0)
    model = write_model(folder, seed, shape)
    size = (model.parent / DATA).stat().st_size
    print(f"wrote {model}: {size / 1e9:.2f} GB of FP16 weights")


def write_model(folder: Path, seed: int, shape: DecoderShape) -> Path:
    """Write `model.onnx` and its data into `folder`, which is made; returns the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / DATA).open("wb") as data:
        model = decoder_model(shape, RandomTensors(data, np.random.default_rng(seed)))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


if __name__ == "__main__":
    main()
