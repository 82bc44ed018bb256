"""Dither a model's FP16 matrices off the grid that they were quantised on.

    python tools/dither_model.py MODEL.onnx OUT_DIR [--block 32] [--levels 16] [--seed 0]

Files that descend from block-quantised weights (SmolLM2's from 4 bits, 32 weights a block) have at
most 16 values in a block, and a number format may gain or lose by that alone. This control adds to
each weight noise that is uniform over one step of its block's grid, (max - min) / (levels - 1), so
that no grid is left. Everything else in the folder is copied.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper


def dithered(
    matrix: NDArray[np.float16], block: int, levels: int, random: np.random.Generator
) -> NDArray[np.float16]:
    """The matrix [rows, K] with noise of one grid step; blocks lie along K, the last may be short.

    Zeros of a block that is all equal stay as they are: it has no grid.
    """
    values = matrix.astype(np.float32)
    for start in range(0, matrix.shape[1], block):
        part = values[:, start : start + block]
        step = (part.max(axis=1) - part.min(axis=1)) / np.float32(levels - 1)
        part += step[:, None] * (random.random(part.shape, np.float32) - np.float32(0.5))
    return values.astype(np.float16)


def inner_axes(model: onnx.ModelProto) -> dict[str, int]:
    """For each FP16 matrix of a model the axis that products reduce; lookups reduce the last."""
    matrices = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) == 2
    }
    axes = dict.fromkeys(matrices, 1)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            axes[node.input[1]] = 0
    return axes


def main() -> None:
    """Read, dither, write, and say how much was changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out_dir", type=Path, help="folder to write (made if missing)")
    parser.add_argument("--block", type=int, default=32, help="weights that share a grid")
    parser.add_argument("--levels", type=int, default=16, help="values of a grid")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = onnx.load(options.model)
    random = np.random.default_rng(options.seed)
    signal = noise = 0.0
    axes = inner_axes(model)
    for tensor in model.graph.initializer:
        if tensor.name not in axes:
            continue
        old = numpy_helper.to_array(tensor)
        turned = old.T if axes[tensor.name] == 0 else old
        new = dithered(turned, options.block, options.levels, random)
        signal += float(np.square(turned, dtype=np.float64).sum())
        noise += float(np.square(turned.astype(np.float64) - new).sum())
        if axes[tensor.name] == 0:
            new = new.T
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), tensor.name))
    options.out_dir.mkdir(parents=True, exist_ok=True)
    for file in options.model.parent.iterdir():
        if file.suffix == ".json" or file.suffix == ".jinja":
            shutil.copyfile(file, options.out_dir / file.name)
    onnx.save(
        model,
        options.out_dir / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
    )
    ratio = 10 * np.log10(signal / noise) if noise else float("inf")
    print(f"{len(axes)} matrices dithered, signal {ratio:.1f} dB over the noise")


if __name__ == "__main__":
    main()
