"""Baseline files: strict TOML that says how another scheme stores and runs a model's weights.

A baseline is compiled like any model, with `quantize-weights` in the place of `split-weights`, and
timed like any program. Shipped ones are found by name; each names the source of every value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

from xdsl.utils.arg_spec import ParameterType

from speqc.passes.quantize_weights import ROW_OPS
from speqc.runtime.strict_values import check_values, is_text
from speqc.strict_toml import check_sources, find_file, read_toml, shipped_files

WIDTHS: Mapping[str, tuple[int, int]] = {
    "weight_bits": (2, 16),
    "head_bits": (2, 16),
    "embedding_bits": (16, 16),
    "activation_bits": (2, 16),
    "cache_bits": (16, 16),
    "group_size": (0, 1 << 24),
}
"""Smallest and largest value of each number. Embedding rows and caches are FP16 in this machine."""

OPS = ("input_ops", "output_ops")

KEYS = ("title", *WIDTHS, *OPS)
"""Keys of a baseline file beside the table of sources. All are required, and so are sources."""


@dataclass(frozen=True)
class Baseline:
    """A way to store and run a model, without drafts.

    Attributes:
        name: of its file.
        title: for tables.
        weight_bits, head_bits: bits a weight of the layers takes in memory, and one of the head;
            16 is plain FP16.
        embedding_bits, cache_bits: of rows of the embedding, and of cached keys and values.
        activation_bits: of the rows that go into products with narrow weights.
        group_size: weights along K that share a 16-bit scale; 0: a column of them.
        input_ops, output_ops: ONNX operators on each element of the rows in front of such a
            product and behind it.
        sources: where each value comes from, by key.
    """

    name: str
    title: str
    weight_bits: int
    head_bits: int
    embedding_bits: int
    activation_bits: int
    cache_bits: int
    group_size: int
    input_ops: tuple[str, ...]
    output_ops: tuple[str, ...]
    sources: Mapping[str, str]

    def pass_options(self) -> Mapping[str, ParameterType | tuple[ParameterType, ...]]:
        """Options of `quantize-weights`."""
        return {
            "weight-bits": self.weight_bits,
            "head-bits": self.head_bits,
            "group-size": self.group_size,
            "activation-bits": self.activation_bits,
            "input-ops": self.input_ops,
            "output-ops": self.output_ops,
        }


def shipped_baselines() -> tuple[str, ...]:
    """The names of the baselines that come with speqc, sorted."""
    return tuple(sorted(shipped_files("baselines")))


def load_baseline(name_or_path: str) -> Baseline:
    """A shipped baseline by name, or the one in a file whose name ends in `.toml`.

    Raises SpeqcError, one line, for an unknown name, a file that is no TOML, and a key or value
    that no baseline has.
    """
    return _read(*find_file("baselines", name_or_path, "baseline"))


def _read(file: Traversable, where: str) -> Baseline:
    values = read_toml(file, where, "baseline")
    sources = values.pop("sources", None)
    check_values(values, KEYS, where, _is_valid, _expectation)
    check_sources(sources, [key for key in KEYS if key != "title"], where)
    values |= {key: tuple(values[key]) for key in OPS}
    return Baseline(name=file.name.removesuffix(".toml"), **values, sources=sources)


def _is_valid(key: str, value: Any) -> bool:
    if key == "title":
        return is_text(value)
    if key in OPS:
        return isinstance(value, list) and all(item in ROW_OPS for item in value)
    low, high = WIDTHS[key]
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _expectation(key: str) -> str:
    if key == "title":
        return "a non-empty string"
    if key in OPS:
        return f"a list of {', '.join(ROW_OPS)}"
    low, high = WIDTHS[key]
    return f"{low}, the one width there is" if low == high else f"an integer from {low} to {high}"
