"""Weights that get one draft view together: the head, and each role in each third of the layers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from speqc.dialects.speq import View
from speqc.passes.choose_views import VIEWS
from speqc.passes.weight_places import HEAD

PARTS = 3
"""Into how many parts of the depth layers are divided."""

_BITS = {view: bits for bits, view in VIEWS.items()}


@dataclass(frozen=True)
class ViewGroup:
    """Weights with one role in neighbouring layers.

    Attributes:
        role: `head`, or what weights do in their layer (see `weight_places`).
        layers: the first and the last layer; None of the head.
        weights: their names in the program.
    """

    role: str
    layers: tuple[int, int] | None
    weights: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """What `--draft-views` calls them."""
        return _pattern(self.role, self.layers)


def view_groups(places: Mapping[str, str]) -> list[ViewGroup]:
    """The groups of weights whose places are given, those of the layers first."""
    found = {name: _parse(place) for name, place in places.items() if place != HEAD}
    layers = sorted({layer for layer, _ in found.values()})
    parts = [part.tolist() for part in np.array_split(layers, PARTS) if len(part)]
    groups = []
    for role in dict.fromkeys(role for _, role in found.values()):
        for part in parts:
            names = tuple(
                name for name, (layer, own) in found.items() if own == role and layer in part
            )
            if names:
                groups.append(ViewGroup(role, (part[0], part[-1]), names))
    head = tuple(name for name, place in places.items() if place == HEAD)
    return [*groups, ViewGroup(HEAD, None, head)] if head else groups


def views_text(groups: Sequence[ViewGroup], views: Mapping[str, View]) -> str:
    """The `--draft-views` of groups, by pattern; those alike in neighbouring layers are one."""
    chosen = [group for group in groups if views.get(group.pattern, View.DRAFT) != View.DRAFT]
    parts = []
    for (role, view), alike in groupby(chosen, lambda g: (g.role, views[g.pattern])):
        for layers in _joined(group.layers for group in alike):
            parts.append(f"{_pattern(role, layers)}={_BITS[view]}")
    return ",".join(parts)


def _joined(ranges: Iterable[tuple[int, int] | None]) -> list[tuple[int, int] | None]:
    """Ranges of layers, those that follow each other as one."""
    joined: list[tuple[int, int] | None] = []
    for own in ranges:
        last = joined[-1] if joined else None
        if own is not None and last is not None and last[1] + 1 == own[0]:
            joined[-1] = (last[0], own[1])
        else:
            joined.append(own)
    return joined


def _pattern(role: str, layers: tuple[int, int] | None) -> str:
    if layers is None:
        return role
    first, last = layers
    return f"layers.{first}.{role}" if first == last else f"layers.{first}-{last}.{role}"


def _parse(place: str) -> tuple[int, str]:
    found = re.fullmatch(r"layers\.(\d+)\.(.*)", place)
    assert found is not None
    return int(found[1]), found[2]
