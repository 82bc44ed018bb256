"""What an attention's masks admit, found by evaluating them for several lengths.

A mask depends on nothing but the number of new tokens, the number of past positions, and (in a
batch of one, without padding) a row of ones. So its subgraph, whoever wrote it, can be run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import Operation, SSAValue

from speqc.passes.attention_scores import LOWEST, Mask
from speqc.passes.matching import element_type, fail
from speqc.passes.probe import Probe
from speqc.passes.step_samples import StepSampler

ROWS, PASTS = (1, 2, 5, 16), (0, 1, 7, 33)
"""Numbers of new tokens and of past positions that masks are evaluated for, all combinations."""

SHORT_STEP = (2, 3)
"""(rows, past) of the step that tells whether a value depends on lengths alone."""

LONG_PASTS = (65_535, 1_023, 255)
"""Pasts that no sliding window reaches over; the shorter ones for graphs with a fixed context."""

LONG_ROWS = (4_200, 1_023, 255)
"""As many new tokens, for graphs without caches: a longer window can't be told from none there."""


@dataclass
class MaskReader:
    """Classifies masks of one function; remembers probes and results, as layers share masks."""

    sampler: StepSampler
    _probes: dict[tuple[int, int], Probe] = field(default_factory=dict)
    _windows: dict[tuple, int | None] = field(default_factory=dict)

    def known(self, value: SSAValue) -> bool:
        """Whether `value` depends on nothing but lengths, mask and positions."""
        rows, past = SHORT_STEP
        return self._probe(rows, past if self.sampler.has_caches else 0).value(value) is not None

    def is_never(self, condition: SSAValue) -> bool:
        """Whether a condition is false everywhere, in every step."""
        for rows, past in (*self._steps(), self._long_step(condition)):
            value = self._probe(rows, past).value(condition)
            if value is None or value.any():
                return False
        return True

    def window(self, op: Operation, masks: tuple[Mask, ...], *, causal: bool = False) -> int | None:
        """The length of the sliding window that masks leave; None if they are just causal.

        `causal`: op itself sees no later positions, whatever the masks say.

        Raises:
            SpeqcError: they are neither.
        """
        if not masks and not causal:
            raise fail(op, "attention without a mask is not causal")
        key = (causal, *((mask.value, mask.admits, mask.replacement) for mask in masks))
        if key not in self._windows:
            self._windows[key] = self._find_window(op, masks, causal)
        return self._windows[key]

    def _find_window(self, op: Operation, masks: tuple[Mask, ...], is_causal: bool) -> int | None:
        rows, past = long = self._long_step(*(mask.value for mask in masks))
        admitted = int(self._admitted(masks, rows, past, is_causal)[-1].sum())
        window = admitted if admitted < rows + past else None
        steps = [*self._steps(), long]
        if window is not None and self.sampler.has_caches:
            steps += [(1, window - 1), (2, max(window - 2, 0)), (5, window)]
        for rows, past in steps:
            seen = self._admitted(masks, rows, past, is_causal)
            if not np.array_equal(seen, causal_mask(rows, past, window)):
                raise fail(
                    masks[-1].op if masks else op,
                    f"the mask is neither causal nor causal with a sliding window "
                    f"(seen with {rows} tokens behind {past} positions)",
                )
        return window

    def _long_step(self, *values: SSAValue) -> tuple[int, int]:
        """(rows, past) of the longest step that all values can be evaluated for."""
        if self.sampler.has_caches:
            steps = [(1, past) for past in LONG_PASTS]
        else:
            steps = [(rows, 0) for rows in LONG_ROWS]
        for step in steps:
            if all(self._probe(*step).value(value) is not None for value in values):
                return step
        return steps[-1]

    def is_length(self, value: SSAValue, fewer: int) -> bool:
        """Whether all elements of `value` are past + rows - `fewer` in every step."""
        for rows, past in self._steps():
            found = self._probe(rows, past).value(value)
            if found is None or (found != past + rows - fewer).any():
                return False
        return True

    def _admitted(
        self, masks: tuple[Mask, ...], rows: int, past: int, is_causal: bool
    ) -> NDArray[np.bool_]:
        """bool[rows, past + rows]: which positions each row sees."""
        admitted = np.ones((rows, past + rows), np.bool_)
        if is_causal:
            admitted &= causal_mask(rows, past, None)
        for mask in masks:
            value = self._probe(rows, past).value(mask.value)
            if value is None:
                raise fail(
                    mask.op, f"the mask can't be computed for {rows} tokens behind {past} positions"
                )
            shown = _shown(mask, value)
            if shown.size != shown.shape[-1] * (shown.shape[-2] if shown.ndim > 1 else 1):
                raise fail(mask.op, "the mask differs between heads")
            admitted &= shown.reshape(shown.shape[-2:])
        return admitted

    def _probe(self, rows: int, past: int) -> Probe:
        if (rows, past) not in self._probes:
            self._probes[rows, past] = self.sampler.probe(rows, past)
        return self._probes[rows, past]

    def _steps(self) -> Iterable[tuple[int, int]]:
        pasts = PASTS if self.sampler.has_caches else (0,)
        return ((rows, past) for rows in ROWS for past in pasts)


def causal_mask(rows: int, past: int, window: int | None) -> NDArray[np.bool_]:
    """bool[rows, past + rows]: row m sees t <= past + m, with a window only the last of those."""
    distance = past + np.arange(rows)[:, None] - np.arange(past + rows)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _shown(mask: Mask, value: NDArray) -> NDArray[np.bool_]:
    """Where a mask leaves scores as they are."""
    if mask.admits is None:
        return _unchanged(mask, value)
    if mask.replacement is None or mask.replacement > _ceiling(mask):
        raise fail(
            mask.op, "masked scores are replaced by something other than a large negative number"
        )
    return value == mask.admits


def _unchanged(mask: Mask, value: NDArray) -> NDArray[np.bool_]:
    shown = value == 0
    if (value[~shown] > _ceiling(mask)).any():
        raise fail(
            mask.op,
            "numbers other than 0 and a large negative one are added to attention scores "
            "(position biases such as ALiBi are not supported)",
        )
    return shown


def _ceiling(mask: Mask) -> float:
    """A number so low that a score below it has no weight: half of the type's lowest."""
    return LOWEST[element_type(mask.op.results[0])] / 2
