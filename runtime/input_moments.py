"""Collects the second moments of what the linear layers of a step function are given.

Weights that read the same value, such as those of queries, keys and values, share one sum, and an
expert counts the rows alone that were routed to it. Groups of weights are handed out in batches
whose sums fit a budget of memory; each batch costs one run over the text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.speq import ViewType
from speqc.runtime.bsfp import for_each
from speqc.runtime.moments import Moments

BUDGET = 1 << 30
"""Bytes that the sums of a batch may take, unless one group alone takes more."""

PENDING_ROWS = 256
"""Rows of a layer's input that are worth a turn of adding them to its sum."""

Site = tuple[SSAValue, SSAValue | None]
"""What a product reads: its input, and the predicate of the rows that count."""


@dataclass
class Group:
    """Weights that share their inputs.

    Attributes:
        weights: their names, in program order.
        sites: the inputs that any of them reads; more than one where a weight is used twice.
        k: the width of these inputs.
    """

    weights: list[str]
    sites: list[Site]
    k: int

    @property
    def bytes(self) -> int:
        """What the sum over the inputs takes."""
        return self.k * self.k * 8


def groups(function: FuncOp, names: Iterable[str]) -> list[Group]:
    """The weights of `names` that products of a step function read, by their inputs."""
    wanted, found = set(names), dict[str, Group]()
    by_site: dict[Site, Group] = {}
    for op in function.body.block.ops:
        if not isinstance(op, pe.GemmOp):
            continue
        name, site = weight_name(op), (op.input, op.predicate)
        if name not in wanted:
            continue
        group = by_site.get(site) or found.get(name) or Group([], [], _depth(op))
        other = found.get(name)
        if other is not None and other is not group:
            _join(group, other, found, by_site)
        if name not in group.weights:
            group.weights.append(name)
        if site not in group.sites:
            group.sites.append(site)
        found[name] = by_site[site] = group
    return list({id(group): group for group in found.values()}.values())


def _join(group: Group, other: Group, found: dict[str, Group], by_site: dict[Site, Group]) -> None:
    group.weights += other.weights
    group.sites += other.sites
    found.update(dict.fromkeys(other.weights, group))
    by_site.update(dict.fromkeys(other.sites, group))


def weight_name(op: pe.GemmOp) -> str:
    """The weight that a product reads."""
    load = op.weight.owner
    assert isinstance(load, pe.LoadWeightOp)
    return load.weight.string_value()


def _depth(op: pe.GemmOp) -> int:
    assert isinstance(op.weight.type, pe.StreamType)
    view = op.weight.type.content
    assert isinstance(view, ViewType)
    return view.shape[0]


def batches(found: Sequence[Group], budget: int = BUDGET) -> Iterator[list[Group]]:
    """Cut groups into batches whose sums take at most `budget` bytes, in program order."""
    batch: list[Group] = []
    for group in found:
        if batch and sum(other.bytes for other in batch) + group.bytes > budget:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


@dataclass
class _Inputs:
    """The sum over a group's inputs, and rows that are still to go into it."""

    moments: Moments
    pending: list[NDArray] = field(default_factory=list)
    rows: int = 0


class InputMoments:
    """An observer of a machine's steps that sums up the inputs of some groups."""

    def __init__(self, batch: Sequence[Group]):
        self._inputs = [_Inputs(Moments(group.k)) for group in batch]
        self._places: Mapping[Site, int] = {
            site: place for place, group in enumerate(batch) for site in group.sites
        }
        self._first: dict[Site, Operation] = {}
        self._left_out: Sequence[int] = ()

    def leave_out(self, rows: Sequence[int]) -> None:
        """Name the rows that do not count in the passes from here on."""
        self._left_out = rows

    def observe(
        self, op: Operation, operands: Sequence[Any], results: Sequence[Any]
    ) -> Sequence[Any]:
        """Take what a product reads; the other operations, and the results, are left alone."""
        if isinstance(op, pe.GemmOp):
            site = (op.input, op.predicate)
            # Of the products that read a value the first alone counts it.
            if site in self._places and self._first.setdefault(site, op) is op:
                self._take(self._places[site], op, operands)
        return results

    def _take(self, place: int, op: pe.GemmOp, operands: Sequence[Any]) -> None:
        x = operands[0]
        rows = x.reshape(-1, x.shape[-1])
        counts = np.ones(len(rows), np.bool_)
        if op.predicate is not None:
            counts &= operands[-1].reshape(-1)
        counts[list(self._left_out)] = False
        rows = rows[counts]
        inputs = self._inputs[place]
        inputs.pending.append(rows)
        inputs.rows += len(rows)

    def flush(self, least: int = PENDING_ROWS) -> None:
        """Sum up what is pending of all groups with at least `least` rows of it, in threads.

        To be called behind each pass, so that not much is ever pending.
        """
        ready = [inputs for inputs in self._inputs if inputs.rows >= max(least, 1)]

        def add(place: int) -> None:
            inputs = ready[place]
            inputs.moments.add(np.concatenate(inputs.pending))
            inputs.pending.clear()
            inputs.rows = 0

        for_each(range(len(ready)), add)

    def take(self) -> list[Moments]:
        """The sums of the groups, in their order, with nothing pending."""
        self.flush(0)
        return [inputs.moments for inputs in self._inputs]
