"""What an attention's masks admit, found by evaluating them for several lengths.

A mask depends on nothing but the number of new tokens, the number of past positions, and (in a batch
of one, without padding) a row of ones. So its subgraph, however the exporter wrote it, can be run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import Operation, SSAValue

from speqc.passes.attention_scores import LOWEST, Mask
from speqc.passes.matching import constant_scalar, element_type, fail
from speqc.passes.probe import Probe
from speqc.passes.step_samples import StepSampler

ROWS, PASTS = (1, 2, 5, 16), (0, 1, 7, 33)
"""Numbers of new tokens and of past positions that masks are evaluated for, all combinations."""

LONG_PAST = 65_535
"""A past that no sliding window reaches over."""


@dataclass
class MaskReader:
    """Classifies masks of one function; remembers probes and results, as layers share masks."""

    sampler: StepSampler
    _probes: dict[tuple[int, int], Probe] = field(default_factory=dict)
    _windows: dict[tuple[SSAValue, ...], int | None] = field(default_factory=dict)

    def known(self, value: SSAValue) -> bool:
        """Whether `value` depends on nothing but lengths, mask and positions."""
        return self._probe(2, 3).value(value) is not None

    def is_never(self, condition: SSAValue) -> bool:
        """Whether a condition is false everywhere, in every step."""
        steps = [*self._steps(), *([(1, LONG_PAST)] if self.sampler.has_caches else [])]
        for rows, past in steps:
            value = self._probe(rows, past).value(condition)
            if value is None or value.any():
                return False
        return True

    def window(self, softmax: Operation, masks: tuple[Mask, ...]) -> int | None:
        """The length of the sliding window that masks leave; None if they are just causal.

        Raises:
            SpeqcError: they are neither.
        """
        if not masks:
            raise fail(softmax, "attention without a mask is not causal")
        key = tuple(mask.value for mask in masks)
        if key not in self._windows:
            self._windows[key] = self._find_window(masks)
        return self._windows[key]

    def _find_window(self, masks: tuple[Mask, ...]) -> int | None:
        window = None
        steps = list(self._steps())
        if self.sampler.has_caches:
            admitted = int(self._admitted(masks, 1, LONG_PAST).sum())
            if admitted <= LONG_PAST:
                window = admitted
                steps += [
                    (1, max(window - 1, 0)),
                    (2, max(window - 2, 0)),
                    (5, window),
                    (1, LONG_PAST),
                ]
        for rows, past in steps:
            if not np.array_equal(self._admitted(masks, rows, past), causal(rows, past, window)):
                raise fail(
                    masks[-1].op,
                    f"the mask is neither causal nor causal with a sliding window "
                    f"(seen with {rows} tokens behind {past} positions)",
                )
        return window

    def _admitted(self, masks: tuple[Mask, ...], rows: int, past: int) -> NDArray[np.bool_]:
        """bool[rows, past + rows]: which positions each row sees."""
        admitted = np.ones((rows, past + rows), np.bool_)
        for mask in masks:
            value = self._probe(rows, past).value(mask.value)
            assert value is not None
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


def causal(rows: int, past: int, window: int | None) -> NDArray[np.bool_]:
    """bool[rows, past + rows]: row m sees t <= past + m, with a window only the last of those."""
    distance = past + np.arange(rows)[:, None] - np.arange(past + rows)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _shown(mask: Mask, value: NDArray) -> NDArray[np.bool_]:
    """Where a mask leaves scores as they are."""
    if mask.replaces is None:
        return _unchanged(mask, value)
    replacement = constant_scalar(mask.op.operands[1 if mask.replaces else 2])
    if replacement is None or replacement > _ceiling(mask):
        raise fail(
            mask.op, "masked scores are replaced by something other than a large negative number"
        )
    return value != mask.replaces


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
