"""Readable symbols for weights, from the names of tensors and nodes in the model file."""

import re
from dataclasses import dataclass, field

from xdsl.ir import Operation

from speqc.dialects.onnx import node_name

NUMBERED = re.compile(r"(val|tensor|onnx::\w+?|\w*MatMul|\w*Gemm|_?weight)_?\d*")
"""Names of tensors that exporters make up."""

OPERATOR = re.compile(r"(MatMul|Gemm|Gather|FusedMatMul)(_\d+)?(/.*)?")
"""Last parts of node names that say no more than the operator."""


@dataclass
class WeightNames:
    """Chooses symbols, each once."""

    taken: set[str] = field(default_factory=set)

    def choose(self, user: Operation, tensor: str, part: int | None = None) -> str:
        """A new symbol for a tensor of the file that `user` reads, or for a part of one."""
        name = _symbol(tensor)
        if NUMBERED.fullmatch(tensor) or not name:
            name = _symbol(_path(node_name(user))) or name or "weight"
        if part is not None:
            name = f"{name}.{part}"
        unique, count = name, 0
        while unique in self.taken:
            count += 1
            unique = f"{name}_{count}"
        self.taken.add(unique)
        return unique


def _path(node: str) -> str:
    """A node's name without the part that repeats its operator."""
    parts = node.removeprefix("node_").strip("/").split("/")
    if len(parts) > 1 and OPERATOR.fullmatch(parts[-1]):
        parts.pop()
    return ".".join(parts)


def _symbol(name: str) -> str:
    """`name` as a symbol that needs no quotes."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_.")
    name = re.sub(r"\.weight(_t)?$", "", name)
    return name if not name[:1].isdigit() else f"w{name}"
