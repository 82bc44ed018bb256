"""Target files: strict TOML with one key per field of ``Target`` and an optional ``[sources]``.

``[sources]`` says for a key where its value comes from. Shipped files are found by name.
"""

from dataclasses import dataclass
from importlib.resources.abc import Traversable

from speqc.runtime.target import FIELD_NAMES, Target, TargetError, from_mapping
from speqc.strict_toml import check_sources, find_file, read_toml, shipped_files

DEFAULT_TARGET = "speq-64x64"


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A target as its file describes it: the values, and where they come from, by field name."""

    target: Target
    sources: dict[str, str]


def shipped_targets() -> tuple[str, ...]:
    """Return the names of the targets that come with speqc, sorted."""
    return tuple(sorted(shipped_files("targets")))


def load_target(name_or_path: str) -> Target:
    """Return a shipped target by name, or the one in a file whose name ends in ``.toml``.

    Raises TargetError, one line, for an unknown name, an unreadable file, TOML that does not parse
    (duplicate keys included, with the line) and whatever ``Target`` does not allow.
    """
    return read_target_file(name_or_path).target


def read_target_file(name_or_path: str) -> TargetFile:
    """Return a target with its sources; argument and errors as for ``load_target``."""
    return _read(*find_file("targets", name_or_path, "target", TargetError))


def _read(file: Traversable, where: str) -> TargetFile:
    mapping = read_toml(file, where, "target", TargetError)
    sources = mapping.pop("sources", {})
    target = from_mapping(mapping, where)
    check_sources(sources, FIELD_NAMES, where, optional=True, error=TargetError)
    return TargetFile(target, sources)
