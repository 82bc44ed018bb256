"""Which values of a program are values of the ONNX file that it was compiled from.

An operation carries the name of the node whose outputs it makes. A node that became several
operations is made by the last of them (or by one that says which output it makes), the others are
steps inside. The names are those that the importer sees, so the file is read here as it reads it.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from xdsl.dialects.builtin import TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.onnx import node_name, node_output
from speqc.onnx_state import find_kv_pairs
from speqc.runtime.vector_elementwise import ELEMENTWISE

FED = (pe.ImmediateOp, pe.LoadConstantOp, pe.LoadWeightOp, pe.LoadCacheOp)
"""Operations that compute nothing."""

INSIDE = "steps inside a node of the file"
NO_NODE = "no node of the file makes them"
NOT_UNIQUE = "several nodes of the file have their node's name"
SIMPLIFIED = "their node was made by simplification"
SCALED = "a cache holds them scaled, as attention reads them"


@dataclass(frozen=True)
class Counterpart:
    """A value of the file, and the node that makes it."""

    node: str
    op_type: str
    value: str


@dataclass(frozen=True)
class Counterparts:
    """What the values of a step function are in the file.

    Attributes:
        results: the counterpart of each result that has one, in the order of the program.
        appended: for each `pe.append` those of its keys and of its values, by operand.
        without: how many results have none, by reason.
    """

    results: Mapping[SSAValue, Counterpart]
    appended: Mapping[Operation, Mapping[SSAValue, Counterpart]]
    without: Counter[str]

    def values(self) -> list[tuple[Counterpart, SSAValue]]:
        """All counterparts, each with the value of the program."""
        found = [(counterpart, value) for value, counterpart in self.results.items()]
        for pair in self.appended.values():
            found += [(counterpart, value) for value, counterpart in pair.items()]
        return found


def find_counterparts(function: FuncOp, model: ir.Model, original: Collection[str]) -> Counterparts:
    """Compare a step function of a `pe` program with the simplified model that it came from.

    `original` has the names of all values of the file itself.
    """
    nodes: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        nodes[node.name or ""].append(node)
    results: dict[SSAValue, Counterpart] = {}
    without: Counter[str] = Counter()
    for op, is_last in _computing(function):
        for result in op.results:
            found = _of_node(nodes.get(node_name(op), []), node_output(op), result.index, is_last)
            if not isinstance(found, Counterpart):
                without[found] += 1
            elif found.value not in original:
                without[SIMPLIFIED] += 1
            else:
                results[result] = found
    appended = _appended(function, model, original, without)
    return Counterparts(results, appended, without)


def _computing(function: FuncOp) -> Iterator[tuple[Operation, bool]]:
    """Operations that compute tensors, and whether each is the last one of its node."""
    ops = [
        op
        for op in function.body.block.ops
        if not isinstance(op, FED) and any(isinstance(r.type, TensorType) for r in op.results)
    ]
    last = {node_name(op): op for op in ops if node_output(op) is None}
    for op in ops:
        yield op, last.get(node_name(op)) is op


def _of_node(
    nodes: Sequence[ir.Node], output: int | None, index: int, is_last: bool
) -> Counterpart | str:
    """The counterpart of a result, or why it has none."""
    if not nodes:
        return NO_NODE
    if len(nodes) > 1:
        return NOT_UNIQUE
    place = index if output is None else output
    if (output is None and not is_last) or place >= len(nodes[0].outputs):
        return INSIDE
    return _counterpart(nodes[0].outputs[place])


def _counterpart(value: ir.Value) -> Counterpart:
    node = value.producer()
    assert node is not None
    return Counterpart(node.name or "", node.op_type, value.name or "")


def _appended(
    function: FuncOp, model: ir.Model, original: Collection[str], without: Counter[str]
) -> dict[Operation, dict[SSAValue, Counterpart]]:
    """What is appended to each cache: behind no positions, that is all of a present output.

    Program and file both number the caches in the order in which attention reads them.
    """
    presents: dict[int, list[ir.Value]] = defaultdict(list)
    for pair in find_kv_pairs(model):
        presents[pair.layer].append(model.graph.outputs[pair.present_output])
    appends = [op for op in function.body.block.ops if isinstance(op, pe.AppendOp)]
    appends.sort(key=lambda op: int(op.cache.string_value().removeprefix("kv")))
    if len(appends) != len(presents) or any(len(pair) != 2 for pair in presents.values()):
        return {}
    appended: dict[Operation, dict[SSAValue, Counterpart]] = {}
    for layer, op in enumerate(appends):
        appended[op] = {}
        for value, present in zip((op.key, op.value), presents[layer], strict=True):
            if _is_scaled(op, value):
                without[SCALED] += 1
            elif present.producer() is not None and present.name in original:
                appended[op][value] = _counterpart(present)
    return appended


def _is_scaled(append: Operation, value: SSAValue) -> bool:
    """Whether rows were changed for their cache alone: a factor that attention had on its keys."""
    owner = value.owner
    return (
        isinstance(owner, pe.VectorOp)
        and owner.kernel.data in ELEMENTWISE
        and node_name(owner) == node_name(append)
    )
