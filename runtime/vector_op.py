"""What an operator of the vector unit is, and the conventions that all of them keep.

An operator is a function with the signature of its ONNX schema (newest form): inputs by position,
attributes by name. It never writes to its inputs. Results may share memory with inputs and are
C-contiguous if the inputs are, so that kernels downstream meet one memory layout.

FP16 arithmetic computes in FP32 and rounds once. An element's bits never depend on where in a
tensor it stands, nor on the tensor's other rows: NumPy's own exponentials, and the sign of zero in
its maximum and minimum, do depend on that, and are avoided.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[..., Array | list[Array]]

HALF = np.dtype(np.float16)
SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class VectorOp:
    """An ONNX operator on the vector unit.

    `lane_ops` is how many cycles one lane is busy with one element: an assumption of the timing
    model, in which a lane does one addition, multiplication, multiply-add, comparison, conversion,
    table lookup or move per cycle, while division and square root take 2, and exp, log, sin, cos
    and erf take 4 (range reduction, table, two multiply-adds). Others are sums of these, so that
    sigmoid is 7: exp, addition, division. Only operators whose result is their input under another
    shape take 0.

    `counted` says which elements: those of every `output`, those of the first `input` (for
    reductions), or the multiply-accumulate steps of a matrix `product`.
    """

    function: Function
    lane_ops: int
    counted: Literal["output", "input", "product"] = "output"

    def run(self, inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> list[Array]:
        """Return the operator's outputs.

        `inputs` stand in the schema's order, None for an omitted one. `attributes` hold int,
        float, str, lists of int, and arrays for tensors; a name that the operator's newest form
        doesn't have raises TypeError.
        """
        result = self.function(*inputs, **attributes)
        if isinstance(result, list):
            return result
        # NumPy turns arrays without dimensions into scalars.
        return [result if isinstance(result, np.ndarray) else np.asarray(result)]


def arithmetic(
    function: Function, lane_ops: int, counted: Literal["output", "input", "product"] = "output"
) -> VectorOp:
    """Return a `VectorOp` whose infinities and NaN are values, not NumPy warnings."""
    return VectorOp(np.errstate(all="ignore")(function), lane_ops, counted)


def contiguous(x: Array) -> Array:
    """Return `x`, copied if it isn't C-contiguous (NumPy's own adds a dimension to scalars)."""
    return x if x.flags.c_contiguous else x.copy()


def integers(x: Array) -> list[int]:
    """Return the elements of a tensor of any shape that holds axes, sizes or one such number."""
    return x.ravel().tolist()
