"""Operators that work element by element."""

from collections.abc import Callable, Mapping

import numpy as np

from speqc.runtime import vector_activations as activations
from speqc.runtime import vector_functions as functions
from speqc.runtime import vector_half as half
from speqc.runtime.vector_op import Array, VectorOp, arithmetic


def _unary(function: Callable[..., Array], lane_ops: int) -> VectorOp:
    """Return the operator for a function of one FP32 or FP64 tensor, by table for FP16."""
    return arithmetic(half.tabulated(function), lane_ops)


ELEMENTWISE: Mapping[str, VectorOp] = {
    "Abs": _unary(np.abs, 1),
    "Add": arithmetic(functions.add, 1),
    "Ceil": _unary(np.ceil, 1),
    "Celu": _unary(activations.celu, 9),
    "Clip": arithmetic(half.through_single(functions.clip), 2),
    "Cos": _unary(functions.cos, 4),
    "Div": arithmetic(functions.divide, 2),
    "Elu": _unary(activations.elu, 7),
    "Erf": _unary(functions.erf, 4),
    "Exp": _unary(functions.exp, 4),
    "Floor": _unary(np.floor, 1),
    "Gelu": _unary(activations.gelu, 8),
    "HardSigmoid": _unary(activations.hard_sigmoid, 3),
    "HardSwish": _unary(activations.hard_swish, 4),
    "LeakyRelu": _unary(activations.leaky_relu, 2),
    "Log": _unary(functions.log, 4),
    "Max": arithmetic(half.through_single(functions.maximum), 1),
    "Mean": arithmetic(half.through_single(functions.average), 3),
    "Min": arithmetic(half.through_single(functions.minimum), 1),
    "Mish": _unary(activations.mish, 21),
    "Mod": arithmetic(functions.modulo, 4),
    "Mul": arithmetic(functions.multiply, 1),
    "Neg": _unary(np.negative, 1),
    "PRelu": arithmetic(activations.parametric_relu, 2),
    "Pow": arithmetic(functions.power, 9),
    "Reciprocal": _unary(functions.reciprocal, 2),
    "Relu": _unary(activations.relu, 1),
    "Round": _unary(np.rint, 1),
    "Selu": _unary(activations.selu, 8),
    "Sigmoid": _unary(functions.sigmoid, 7),
    "Sign": _unary(np.sign, 1),
    "Sin": _unary(functions.sin, 4),
    "Softplus": _unary(functions.softplus, 11),
    "Softsign": _unary(activations.softsign, 4),
    "Sqrt": _unary(np.sqrt, 2),
    "Sub": arithmetic(functions.subtract, 1),
    "Sum": arithmetic(half.through_single(functions.total), 1),
    "SwiGLU": arithmetic(activations.swiglu, 10),
    "Swish": _unary(activations.swish, 9),
    "Tanh": _unary(functions.tanh, 9),
    "ThresholdedRelu": _unary(activations.thresholded_relu, 1),
}
