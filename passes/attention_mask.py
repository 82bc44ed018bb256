"""What an attention's masks admit and add, found by evaluating them for several lengths.

A mask or a position bias depends on nothing but the number of new tokens, the number of past
positions, and (in a batch of one, without padding) a row of ones. So its subgraph, whoever wrote
it, can be run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import Operation, SSAValue

from speqc.passes.attention_bias import Bias, BiasSample, find_bias
from speqc.passes.attention_scores import Mask
from speqc.passes.matching import fail
from speqc.passes.probe import Probe
from speqc.passes.step_samples import LONG_PASTS, Step, StepProbes, StepSampler
from speqc.runtime.counted import counted

ROWS, PASTS = (1, 2, 5, 16), (0, 1, 7, 33)
"""Numbers of new tokens and of past positions that masks are evaluated for, all combinations."""

SHORT_STEP = (2, 3)
"""(rows, past) of the step that tells whether a value depends on lengths alone."""

LONGEST_BIASED = 65_535
"""The longest past to try for a position bias, which has numbers for each head."""

CEILING = -65504.0 / 16
"""So low that a score below it has no weight: FP16's lowest over the scale of heads of 256."""


@dataclass(frozen=True)
class Seen:
    """Which positions rows see, and what is added to their scores.

    `window` is the length of the sliding window, None without one. `bias` is added by the mask at
    the place `adding` among those that were read.
    """

    window: int | None
    bias: Bias | None = None
    adding: int | None = None


@dataclass
class MaskReader:
    """Classifies masks of one function; remembers probes and results, as layers share masks.

    `proved` is the number of positions up to which all that was asked holds, None before.
    """

    sampler: StepSampler
    proved: int | None = None
    _seen: dict[tuple, Seen] = field(default_factory=dict)
    _long: dict[tuple, Step] = field(default_factory=dict)

    def __post_init__(self):
        self._probes = StepProbes(self.sampler)

    def known(self, value: SSAValue) -> bool:
        """Whether `value` depends on nothing but lengths, mask and positions."""
        rows, past = SHORT_STEP
        return self._probe(rows, past if self.sampler.has_caches else 0).value(value) is not None

    def samples(self, value: SSAValue) -> Iterator[tuple[int, int, NDArray]]:
        """(rows, past, value) of a known value in steps of several lengths, where it has one."""
        for rows, past in (*self._steps(), self._long_step(value)):
            found = self._probe(rows, past).value(value)
            if found is not None:
                yield rows, past, found

    def is_never(self, condition: SSAValue) -> bool:
        """Whether a condition is false everywhere, in every step."""
        steps = [*self._steps(), self._far_step([condition])]
        values = [self._probe(*step).value(condition) for step in steps]
        if any(value is None or value.any() for value in values):
            return False
        self.limit(sum(steps[-1]))
        return True

    def read(self, op: Operation, masks: tuple[Mask, ...], *, causal: bool = False) -> Seen:
        """What masks leave visible, and which of them adds a position bias.

        `causal`: op itself sees no later positions, whatever the masks say.

        Raises:
            SpeqcError: they are neither causal nor causal with a window, or add something else.
        """
        if not masks and not causal:
            raise fail(op, "attention without a mask is not causal")
        marks = ((mask.value, mask.admits, mask.replacement, mask.factor) for mask in masks)
        key = (causal, *marks)
        if key not in self._seen:
            adding = self._adding(masks, causal)
            bias = None if adding is None else self._bias(masks, adding, causal)
            seen = Seen(None, bias, adding)
            self._seen[key] = replace(seen, window=self._window(op, masks, causal, seen))
        return self._seen[key]

    def _adding(self, masks: tuple[Mask, ...], is_causal: bool) -> int | None:
        """The place of the mask that changes scores which it admits, None if none does."""
        found = [
            place
            for place, mask in enumerate(masks)
            if mask.admits is None
            and any(self._adds(mask, masks, *step, is_causal) for step in self._steps())
        ]
        if len(found) > 1:
            raise fail(masks[found[-1]].op, "two position biases are added to attention scores")
        return found[0] if found else None

    def _adds(
        self, mask: Mask, masks: tuple[Mask, ...], rows: int, past: int, is_causal: bool
    ) -> bool:
        """Whether a mask changes a score, in one step, that no mask hides."""
        changed = self._value(mask, rows, past) != 0
        return bool((changed & self._roughly_seen(masks, rows, past, is_causal)).any())

    def _bias(self, masks: tuple[Mask, ...], adding: int, is_causal: bool) -> Bias:
        """The position bias that a mask adds; SpeqcError if it adds something else."""
        samples = [
            BiasSample(
                past,
                self._value(masks[adding], rows, past).astype(np.float32),
                self._roughly_seen(masks, rows, past, is_causal),
            )
            for rows, past in (*self._steps(), self._long_mask(masks, adding))
        ]
        # A bias at a far position may be as low as a mask: a first bias tells them apart.
        bias = find_bias(samples[:-1])
        if bias is not None:
            bias = find_bias([_with_far_positions(sample, bias) for sample in samples])
        if bias is None:
            raise fail(
                masks[adding].op,
                "numbers other than 0, a large negative one, and a slope for each head times the "
                "position of the key or its distance are added to attention scores",
            )
        return bias

    def _window(
        self, op: Operation, masks: tuple[Mask, ...], is_causal: bool, found: Seen
    ) -> int | None:
        """The length of the window; SpeqcError if masks are neither causal nor that with one."""
        rows, past = long = self._long_mask(masks, found.adding)
        admitted = int(self._admitted(masks, rows, past, is_causal, found)[-1].sum())
        window = admitted if admitted < rows + past else None
        steps = [*self._steps(), long]
        if window is not None and self.sampler.has_caches:
            edges = [(1, window - 1), (2, max(window - 2, 0)), (5, window)]
            steps += [(few, min(before, sum(long) - few)) for few, before in edges]
        for rows, past in steps:
            seen = self._admitted(masks, rows, past, is_causal, found)
            if not np.array_equal(seen, causal_mask(rows, past, window)):
                raise fail(
                    masks[-1].op if masks else op,
                    f"the mask is neither causal nor causal with a sliding window "
                    f"(seen with {_step(rows, past)})",
                )
        return window

    def _long_mask(self, masks: tuple[Mask, ...], adding: int | None) -> Step:
        """The longest step that masks can be evaluated for; `adding`: with a position bias."""
        longest = LONG_PASTS[0] if adding is None else LONGEST_BIASED
        return self._long_step(*(mask.value for mask in masks), longest=longest)

    def _long_step(self, *values: SSAValue, longest: int = LONG_PASTS[0]) -> Step:
        """(rows, past) of the longest step with all values; what is asked holds up to there."""
        step = self._far_step(values, longest)
        self.limit(sum(step))
        return step

    def _far_step(self, values: Sequence[SSAValue], longest: int = LONG_PASTS[0]) -> Step:
        key = (longest, *values)
        if key not in self._long:
            self._long[key] = self._probes.longest_step(
                lambda probe, rows, past: all(
                    _reaches(probe, value, past + rows) for value in values
                ),
                longest,
            )
        return self._long[key]

    def limit(self, positions: int) -> None:
        """Note that something is known of so many positions only."""
        self.proved = min(self.proved or positions, positions)

    def is_length(self, value: SSAValue, fewer: int) -> bool:
        """Whether all elements of `value` are past + rows - `fewer` in every step."""
        return self._is_everywhere(
            value, lambda found, rows, past: bool((found == past + rows - fewer).all())
        )

    def is_positions(self, value: SSAValue) -> bool:
        """Whether `value` is the positions of the new tokens, past, past + 1, ..., everywhere."""
        return self._is_everywhere(
            value,
            lambda found, rows, past: np.array_equal(
                found.reshape(-1), np.arange(past, past + rows)
            ),
        )

    def _is_everywhere(self, value: SSAValue, holds: Callable[[NDArray, int, int], bool]) -> bool:
        """Whether `value` can be evaluated in every step, and `holds` there."""
        for rows, past in (*self._steps(), self._long_step(value)):
            found = self._probe(rows, past).value(value)
            if found is None or not holds(found, rows, past):
                return False
        return True

    def _admitted(
        self, masks: tuple[Mask, ...], rows: int, past: int, is_causal: bool, found: Seen
    ) -> NDArray[np.bool_]:
        """bool[rows, past + rows]: which positions each row sees."""
        causal = causal_mask(rows, past, None)
        admitted = causal[None] if is_causal else np.ones_like(causal)[None]
        for place, mask in enumerate(masks):
            value = self._value(mask, rows, past)
            if found.bias is not None and place == found.adding:
                # Equal but for the sign of zero, which no softmax shows.
                shown = (value == found.bias.values(rows, past)) | ~(causal | _hides(mask, value))
            else:
                shown = _shown(mask, value)
            if (shown != shown[:1]).any():
                raise fail(mask.op, "the mask differs between heads")
            admitted = admitted & shown[:1]
        return admitted[0]

    def _roughly_seen(
        self, masks: tuple[Mask, ...], rows: int, past: int, is_causal: bool
    ) -> NDArray[np.bool_]:
        """bool[H, rows, past + rows]: where no mask puts a large negative number."""
        seen = np.ones((1, rows, past + rows), np.bool_)
        if is_causal:
            seen = seen & causal_mask(rows, past, None)
        for mask in masks:
            value = self._value(mask, rows, past)
            seen = seen & (~_hides(mask, value) if mask.admits is None else _shown(mask, value))
        return seen

    def _value(self, mask: Mask, rows: int, past: int) -> NDArray:
        """A mask's value in a step, [H, rows, past + rows], with one head if all have the same."""
        value = self._probe(rows, past).value(mask.value)
        if value is None:
            reason = "stands in a table of the file, not in operations that compute it"
            if any(True for _ in self.samples(mask.value)):
                reason = (
                    f"can't be computed for {_step(rows, past)}, only for a prompt or a single "
                    "token (onnxruntime-genai: build it for cuda or dml)"
                )
            raise fail(mask.op, f"what masks or biases the attention scores {reason}")
        sizes = (1, rows, past + rows)
        if value.ndim > 3:
            value = value.reshape(value.shape[-3:]) if set(value.shape[:-3]) == {1} else value
        try:
            return np.broadcast_to(value, np.broadcast_shapes(value.shape, sizes))
        except ValueError:
            shape = "x".join(map(str, value.shape))
            raise fail(mask.op, f"a mask of {shape} does not fit {_step(rows, past)}") from None

    def _probe(self, rows: int, past: int) -> Probe:
        return self._probes.probe(rows, past)

    def _steps(self) -> Iterable[tuple[int, int]]:
        pasts = PASTS if self.sampler.has_caches else (0,)
        return ((rows, past) for rows in ROWS for past in pasts)


def _step(rows: int, past: int) -> str:
    return f"{counted(rows, 'token')} behind {counted(past, 'position')}"


def causal_mask(rows: int, past: int, window: int | None) -> NDArray[np.bool_]:
    """bool[rows, past + rows]: row m sees t <= past + m, with a window only the last of those."""
    distance = past + np.arange(rows)[:, None] - np.arange(past + rows)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _shown(mask: Mask, value: NDArray) -> NDArray[np.bool_]:
    """Where a mask without a bias leaves scores as they are."""
    if mask.admits is None:
        return value == 0
    if mask.replacement is None or mask.replacement * mask.factor > CEILING:
        raise fail(
            mask.op, "masked scores are replaced by something other than a large negative number"
        )
    return value == mask.admits


def _hides(mask: Mask, value: NDArray) -> NDArray[np.bool_]:
    """Where a number that is added leaves a score no weight."""
    with np.errstate(over="ignore"):
        return value.astype(np.float32) * np.float32(mask.factor) <= CEILING


def _with_far_positions(sample: BiasSample, bias: Bias) -> BiasSample:
    """A sample in which positions with about the number that a bias has there are seen."""
    values = bias.values(sample.values.shape[1], sample.past)
    with np.errstate(invalid="ignore"):
        close = np.abs(sample.values - values) <= np.abs(values) / 128
    return BiasSample(sample.past, sample.values, sample.seen | (close & np.isfinite(values)))


def _reaches(probe: Probe, value: SSAValue, total: int) -> bool:
    """Whether a mask can be evaluated for a step, and covers all its positions."""
    found = probe.value(value)
    return found is not None and (found.ndim == 0 or found.shape[-1] in (1, total))
