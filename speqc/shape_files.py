"""Shape files: strict TOML with the sizes of a decoder, compiled like a model without weights.

Shipped ones are found by name and are those of published configurations.
"""

from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

from speqc.decoder_shape import DecoderShape
from speqc.runtime.errors import SpeqcError
from speqc.runtime.strict_values import check_values, is_text
from speqc.strict_toml import find_file, read_toml, shipped_files

LARGEST = 1 << 24

LIMITS: Mapping[str, tuple[int | float, int | float]] = {
    "layers": (1, 4096),
    "hidden": (1, LARGEST),
    "intermediate": (1, LARGEST),
    "heads": (1, 65_536),
    "kv_heads": (1, 65_536),
    "head_size": (2, 65_536),
    "vocabulary": (2, LARGEST),
    "context": (2, LARGEST),
    "rope_theta": (1.0, 1e12),
    "norm_epsilon": (0.0, 1.0),
}
"""Smallest and largest value of each number; those with whole bounds are integers."""

KEYS = (*LIMITS, "tied_embeddings", "source")
"""Keys of a shape file. All are required; `source` says where the sizes were published."""


def shipped_shapes() -> tuple[str, ...]:
    """The names of the shapes that come with speqc, sorted."""
    return tuple(sorted(shipped_files("shapes")))


def is_shape(name_or_path: str) -> bool:
    """Whether this is the name of a shipped shape, or of a `.toml` file."""
    return name_or_path.endswith(".toml") or name_or_path in shipped_shapes()


def load_shape(name_or_path: str) -> DecoderShape:
    """A shipped shape by name, or the one in a file whose name ends in `.toml`.

    Raises SpeqcError, one line, for an unknown name, a file that is no TOML, and a key or value
    that no decoder has.
    """
    return _read(*find_file("shapes", name_or_path, "shape"))


def _read(file: Traversable, where: str) -> DecoderShape:
    values = read_toml(file, where, "shape")
    check_values(values, KEYS, where, _is_valid, _expectation)
    if values["heads"] % values["kv_heads"]:
        raise SpeqcError(
            f"{where}: kv_heads must divide heads, got {values['kv_heads']} for {values['heads']}"
        )
    if values["head_size"] % 2:
        raise SpeqcError(f"{where}: head_size must be even, got {values['head_size']}")
    values.pop("source")
    epsilon, tied = values.pop("norm_epsilon"), values.pop("tied_embeddings")
    return DecoderShape(**values, epsilon=epsilon, head="tied" if tied else "own")


def _is_valid(key: str, value: Any) -> bool:
    if key == "source":
        return is_text(value)
    if key == "tied_embeddings":
        return isinstance(value, bool)
    low, high = LIMITS[key]
    kinds = int if isinstance(low, int) else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _expectation(key: str) -> str:
    if key == "source":
        return "a non-empty string"
    if key == "tied_embeddings":
        return "true or false"
    low, high = LIMITS[key]
    kind = "an integer" if isinstance(low, int) else "a number"
    return f"{kind} from {low} to {high}"
