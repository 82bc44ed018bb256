"""What a draft step of a finished program reads of its weights."""

from collections.abc import Mapping

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.dialects.pe import LoadWeightOp, StreamType
from speqc.dialects.speq import DRAFT, View, ViewType, WeightOp
from speqc.runtime.weight_traffic import weight_traffic


def draft_views(program: ModuleOp) -> dict[str, View]:
    """The view of each weight that the draft step streams."""
    views: dict[str, View] = {}
    for function in program.ops:
        if not isinstance(function, FuncOp) or function.sym_name.data != DRAFT:
            continue
        for op in function.walk():
            if isinstance(op, LoadWeightOp):
                assert isinstance(op.stream.type, StreamType)
                assert isinstance(op.stream.type.content, ViewType)
                views[op.weight.string_value()] = op.stream.type.content.view
    return views


def draft_bits_per_weight(program: ModuleOp, views: Mapping[str, View]) -> float | None:
    """Mean bits of a weight that the draft step reads, scales included; None where it reads none.

    Padding to whole tiles is not counted.
    """
    bits = values = 0
    for weight in program.ops:
        if isinstance(weight, WeightOp) and weight.sym_name.data in views:
            bits += read_bits(weight, views[weight.sym_name.data])
            values += weight.shape[0] * weight.shape[1]
    return bits / values if values else None


def read_bits(weight: WeightOp, view: View) -> int:
    """Bits that a view of a whole weight reads, scales included, padding to whole tiles not."""
    k, n = weight.shape
    traffic = weight_traffic(weight, view)
    bits = traffic.weight_bits * k * n
    if traffic.group_size is not None:
        bits += traffic.group_bits * -(-k // traffic.group_size) * n
    return bits
