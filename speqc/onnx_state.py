"""Which inputs of a decoder's graph are tokens, caches and the rest, found by data flow.

A cache is an input of floats whose data reach a graph output through operators that only move,
convert or append data (`Concat` on the past, or the past/present ports of an attention operator).
Names decide only where data flow leaves a choice.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.BFLOAT16})
INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})

FOLLOWERS = frozenset({"Cast", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
"""Operators between a softmax and the product with the values."""

CARRIERS = frozenset({"Cast", "CastLike", "Concat", "Identity", "Reshape", "Squeeze", "Transpose"})
"""Operators through which a past stays that past: they move, convert or append."""

WIDENERS = frozenset({"Unsqueeze", "Expand", "Tile", "Mul", "Div"})
"""Operators between a present cache and the product that reads it, besides `CARRIERS`."""

PAIR_NAMES = re.compile("key_?values?|kv")
"""What names call keys and values together."""

KIND_WORDS = {"key": {"k", "key", "keys"}, "value": {"v", "value", "values"}}
"""What names call keys and values."""

PRODUCTS = frozenset({"MatMul", "FusedMatMul"})

ATTENTION_PORTS: dict[tuple[str, str], dict[int, int]] = {
    ("", "Attention"): {4: 1, 5: 2},
    ("com.microsoft", "GroupQueryAttention"): {3: 1, 4: 2},
    ("com.microsoft", "MultiHeadAttention"): {6: 1, 7: 2},
    ("", "TensorScatter"): {0: 0},
}
"""Operator -> position of a past input -> position of its present output."""


class KvPair(NamedTuple):
    """One cache: positions of its past input and present output, its layer, and its kind.

    The kind is `key` or `value`, None where neither a reader nor a name tells.
    """

    past_input: int
    present_output: int
    layer: int
    kind: str | None


Found = tuple[int, int, int | None, str | None]
"""Past input, present output, place of the reader among the nodes, kind."""


def find_token_input(graph: ir.Graph) -> ir.Value | None:
    """The integer input that indexes a table with a row for each logit, or None.

    Where data flow does not tell, as with a padded table, one that is not named for positions, and
    has the largest table.
    """
    widths = {o.shape[-1] for o in graph.outputs if o.shape is not None and len(o.shape) == 3}
    best, most = None, (False, False, 0)
    for value in graph.inputs:
        if value.dtype not in INTEGERS:
            continue
        tables = list(_gathered_tables(value))
        if not tables:
            continue
        # Exporters store the table of a tied head transposed.
        fits = any(widths & {*table.shape} for table in tables)
        named = "position" in (value.name or "")
        likeness = fits, not named, max(table.size for table in tables)
        if likeness > most:
            best, most = value, likeness
    return best


def second_token_input(graph: ir.Graph) -> ir.Value | None:
    """Another integer input that indexes the tokens' table, as that of an encoder, or None."""
    tokens = find_token_input(graph)
    if tokens is None:
        return None
    tables = {id(table) for table in _gathered_tables(tokens)}
    for value in graph.inputs:
        if value is tokens or value.dtype not in INTEGERS:
            continue
        if any(id(table) in tables for table in _gathered_tables(value)):
            return value
    return None


def _gathered_tables(value: ir.Value) -> Iterator[ir.TensorProtocol]:
    """The floating-point initializers of rank 2 that `value` indexes."""
    for node, position in _uses_through(value, {"Cast", "Identity", "Reshape", "Squeeze"}):
        if node.op_type != "Gather" or position != 1:
            continue
        table = _source(node.inputs[0], {"Cast", "Transpose", "Identity"})
        if table is not None and table.const_value is not None:
            tensor = table.const_value
            if tensor.dtype in FLOATS and len(tensor.shape) == 2:
                yield tensor


def _uses_through(value: ir.Value, through: set[str]) -> Iterator[tuple[ir.Node, int]]:
    """All uses of a value, also of what operators of `through` make of it."""
    for use in value.uses():
        yield use.node, use.idx
        if use.node.op_type in through and use.idx == 0:
            yield from _uses_through(use.node.outputs[0], through)


def _source(value: ir.Value | None, through: set[str]) -> ir.Value | None:
    """The value from which operators of `through` made this one."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in through:
            return value
        value = node.inputs[0]
    return None


def find_kv_pairs(model: ir.Model) -> list[KvPair]:
    """The caches of the graph, by layer, the key before the value.

    A cache whose product with the queries is not found (nobody reads it) is counted by its order
    among the inputs, and its kind is told by its name.
    """
    graph = model.graph
    order = {node: position for position, node in enumerate(graph)}
    found: list[Found] = []
    taken: set[ir.Value] = set()
    for position, past in enumerate(graph.inputs):
        presents = [value for value in _presents(past) if value not in taken]
        if not presents:
            continue
        present = max(presents, key=lambda value: _likeness(past.name, value.name))
        taken.add(present)
        reader, kind = _reader(past, present)
        rank = order[reader] if reader is not None else None
        found.append((position, _position(graph.outputs, present), rank, kind))
    return _number_layers(found)


def _presents(past: ir.Value) -> list[ir.Value]:
    """Graph outputs that the data of a floating-point input reach through carriers."""
    if past.dtype not in FLOATS or past.shape is None or len(past.shape) < 3:
        return []
    reached, frontier, seen = [], [past], {past}
    while frontier:
        value = frontier.pop()
        if value.is_graph_output():
            reached.append(value)
        for use in value.uses():
            target = _carried_to(use.node, use.idx)
            if target is not None and target not in seen:
                seen.add(target)
                frontier.append(target)
    return reached


def _carried_to(node: ir.Node, position: int) -> ir.Value | None:
    """The output that holds the data of input `position`, if the node only carries it."""
    ports = ATTENTION_PORTS.get((node.domain, node.op_type))
    if ports is not None:
        output = ports.get(position)
        return node.outputs[output] if output is not None and output < len(node.outputs) else None
    if node.op_type in CARRIERS and (position == 0 or node.op_type == "Concat"):
        return node.outputs[0]
    return None


def _likeness(past: str | None, present: str | None) -> float:
    return difflib.SequenceMatcher(None, past or "", present or "").ratio()


def _position(values, wanted: ir.Value) -> int:
    return next(position for position, value in enumerate(values) if value is wanted)


def _reader(past: ir.Value, present: ir.Value) -> tuple[ir.Node | None, str | None]:
    """The product or attention operator that reads a cache, and as what."""
    for value in (past, present):
        for node, position in _reads(value):
            ports = ATTENTION_PORTS.get((node.domain, node.op_type))
            if ports is not None:
                return node, "key" if position in (1, min(ports)) else "value"
            if node.op_type in PRODUCTS:
                return node, "value" if _follows_softmax(node.inputs[1 - position]) else "key"
    return None, _named_kind(past, present)


def _named_kind(past: ir.Value, present: ir.Value) -> str | None:
    """`key` or `value` by the words of a cache's names, None where they say neither or both."""
    name = PAIR_NAMES.sub("", f"{past.name} {present.name}".lower())
    words = set(re.findall("[a-z]+", name))
    kinds = [kind for kind, known in KIND_WORDS.items() if words & known]
    return kinds[0] if len(kinds) == 1 else None


def _reads(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Uses of a cache as an operand of a product or an attention operator."""
    frontier, seen = [value], {value}
    while frontier:
        for use in frontier.pop().uses():
            node = use.node
            if node.op_type in CARRIERS | WIDENERS | {"TensorScatter"}:
                if node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    frontier.append(node.outputs[0])
            elif (node.domain, node.op_type) in ATTENTION_PORTS or node.op_type in PRODUCTS:
                yield node, use.idx


def _follows_softmax(value: ir.Value | None) -> bool:
    """Whether a value is a softmax, perhaps converted or with NaN replaced."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Softmax":
            return True
        if node.op_type == "Where":
            return any(_follows_softmax(choice) for choice in node.inputs[1:])
        if node.op_type in FOLLOWERS:
            value = node.inputs[0]
        else:
            return False
    return False


def _number_layers(found: list[Found]) -> list[KvPair]:
    """Number keys and values by the order of the nodes that read them."""
    pairs = []
    for kind in ("key", "value", None):
        of_kind = [entry for entry in found if entry[3] == kind]
        if all(entry[2] is not None for entry in of_kind):
            of_kind.sort(key=lambda entry: entry[2] or 0)
        pairs += [
            KvPair(past, present, layer, kind)
            for layer, (past, present, _, _) in enumerate(of_kind)
        ]
    return sorted(pairs, key=lambda pair: (pair.layer, pair.kind or ""))
