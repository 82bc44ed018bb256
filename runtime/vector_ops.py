"""The vector unit's operators: ordinary ONNX operators on tensors of the simulated machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from speqc.runtime.errors import SpeqcError
from speqc.runtime.vector_decoding import DECODING
from speqc.runtime.vector_einsum import EINSUM
from speqc.runtime.vector_elementwise import ELEMENTWISE
from speqc.runtime.vector_indexing import INDEXING
from speqc.runtime.vector_layout import LAYOUT
from speqc.runtime.vector_logic import LOGIC
from speqc.runtime.vector_matrices import MATRICES
from speqc.runtime.vector_norms import NORMS
from speqc.runtime.vector_op import Array, VectorOp
from speqc.runtime.vector_quantization import QUANTIZATION
from speqc.runtime.vector_reductions import REDUCTIONS
from speqc.runtime.vector_upgrade import OLDEST_OPSET, UPGRADES

__all__ = ["COUNTS_OUTPUTS", "VECTOR_OPS", "VectorOp", "evaluate"]

VECTOR_OPS: Mapping[str, VectorOp] = {
    **DECODING,
    **EINSUM,
    **ELEMENTWISE,
    **INDEXING,
    **LAYOUT,
    **LOGIC,
    **MATRICES,
    **NORMS,
    **QUANTIZATION,
    **REDUCTIONS,
}
"""Operators by their names in ONNX's default domain, each in its newest form."""

COUNTS_OUTPUTS = frozenset({"LayerNormalization", "Split"})
"""Operators that give as many results as the node has names for."""


def evaluate(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    opset: int,
    outputs: int = 1,
) -> list[Array]:
    """Return the outputs of an operator as ONNX's version `opset` defines it.

    `outputs` is how many the node names.
    Raises SpeqcError for an operator that the vector unit doesn't have, or an opset older than 7.
    """
    op = VECTOR_OPS.get(op_type)
    if op is None:
        raise SpeqcError(f"{op_type}: the vector unit has no such operator")
    if opset < OLDEST_OPSET:
        raise SpeqcError(
            f"{op_type}: opset {opset} is older than {OLDEST_OPSET}; export the model anew"
        )
    upgraded, options = list(inputs), dict(attributes)
    newest, upgrade = UPGRADES.get(op_type, (0, None))
    if upgrade is not None and opset < newest:
        upgrade(upgraded, options)
    if op_type in COUNTS_OUTPUTS:
        options.setdefault("num_outputs", outputs)
    return op.run(upgraded, options)
