"""Tensors of which a model that is opened without its weights has nothing but type and shape."""

from __future__ import annotations

import onnx_ir as ir

from speqc.dialects.onnx import LARGEST_CONSTANT
from speqc.onnx_weights import product_weights
from speqc.runtime.errors import SpeqcError

WEIGHTS_KEY = "speqc.without_weights"
"""What a model's `meta` holds if it was opened without its weights."""


class MissingTensor(ir.LazyTensor):
    """A tensor that can't be read."""


def missing_tensor(tensor: ir.TensorProtocol, name: str | None) -> MissingTensor:
    """Type and shape of a tensor; reading it raises SpeqcError."""

    def read() -> ir.TensorProtocol:
        raise SpeqcError(
            f"tensor '{name}': its values are needed to understand the model, but its file is "
            "missing; --no-weights does without the weights of products alone"
        )

    return MissingTensor(read, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name)


def may_be_missing(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is so large that no size or axis stands in it."""
    return tensor.size > LARGEST_CONSTANT


def forget_weights(model: ir.Model) -> None:
    """Make the weights of products missing, whether or not they are there."""
    model.meta[WEIGHTS_KEY] = True
    for value in product_weights(model.graph):
        tensor = value.const_value
        if tensor is not None and may_be_missing(tensor):
            value.const_value = missing_tensor(tensor, value.name)


def is_without_weights(model: ir.Model) -> bool:
    """Whether a model was opened without its weights."""
    return bool(model.meta.get(WEIGHTS_KEY, False))
