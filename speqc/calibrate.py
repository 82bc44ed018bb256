"""`speqc compile --calibration`: run the model on text, and choose codes by what layers are given.

The program itself runs, in its full view, which is exact whatever the codes are. Each batch of
weights whose input moments fit the memory costs one run; then its groups are encoded in threads,
one thread a group.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation

from speqc.calibration_text import CalibrationText, text_digest
from speqc.diagnostics import progress
from speqc.dialects.speq import FULL, WeightOp
from speqc.runtime.bsfp import snr_db
from speqc.runtime.codebook import CodeBook
from speqc.runtime.copy_formats import CopyFormat
from speqc.runtime.copy_planes import CopyPlanes, pack_copy
from speqc.runtime.execute import Observer
from speqc.runtime.gptq import choose
from speqc.runtime.gptq_copies import choose_copy
from speqc.runtime.head_inputs import HeadInputs
from speqc.runtime.input_moments import Group, InputMoments, batches, groups
from speqc.runtime.likely_tokens import LikelyRows
from speqc.runtime.lockstep import Lockstep
from speqc.runtime.machine import Machine
from speqc.runtime.moments import DAMPING, Metric, Moments, metric
from speqc.runtime.planes import Planes, pack
from speqc.runtime.self_text import write_text
from speqc.runtime.weights import WeightFile
from speqc.tensor_store import StoredTensor
from speqc.weight_writer import Encode, count_blocks, encode_nearest, write_weights

METHOD = (
    f"GPTQ inside the allowed codes (damping {DAMPING}, rows by falling E[x^2]), joint refit of "
    "scales, coordinate descent, the head's columns where their tokens were likely"
)

_CHUNK = 256
"""Rows of a text that go through the machine at a time."""


@dataclass
class LayerError:
    """Squared errors of a layer's output, summed over what has been encoded of its weight."""

    power: float = 0.0
    before: float = 0.0
    after: float = 0.0

    def snr_db(self) -> dict[str, float | None]:
        """Output over error in dB, before and after calibration; None where there is no error."""
        noise = {"before": self.before, "after": self.after}
        return {
            name: round(snr_db(self.power, error), 3) if error > 0 and self.power > 0 else None
            for name, error in noise.items()
        }


class Calibration:
    """A calibration at work: what it was given, and what it has found so far."""

    def __init__(self, machine: Machine, text: CalibrationText, stop_tokens: frozenset[int]):
        self._machine = machine
        self._text = text
        self._stop_tokens = stop_tokens
        self._sequences = None if text.written else [list(tokens) for tokens in text.texts]
        self._errors: dict[str, LayerError] = {}
        self._lock = threading.Lock()
        weights = [op for op in machine.program.ops if isinstance(op, WeightOp)]
        names = [op.sym_name.data for op in weights if op.has_draft]
        self._batches = list(batches(groups(_full_step(machine.program), names)))
        self._first: InputMoments | None = None
        self._head: str | None = None
        self._likely: LikelyRows | None = None

    def run_first(self) -> None:
        """Run over the text for the first stage, and for most models the only one, with a bar."""
        if not self._batches:
            return
        what = "calibrating" if self._sequences is not None else "writing text"
        with progress(what, self._text.tokens) as advance:
            self._first = self._run(self._batches[0], advance)

    def stages(self) -> Iterator[list["CalibratedGroup"]]:
        """Groups of weights, batch by batch, each behind a run over the text."""
        for batch in self._batches:
            moments, self._first = self._first or self._run(batch), None
            found = [
                CalibratedGroup(self, group, sums)
                for group, sums in zip(batch, moments.take(), strict=True)
            ]
            del moments
            # The longest work first, so that no thread is left with it alone at the end.
            yield sorted(found, key=lambda group: -group.work(self._machine))

    def _run(
        self, batch: list[Group], advance: Callable[[int], None] = lambda rows: None
    ) -> InputMoments:
        moments, head = InputMoments(batch), HeadInputs(_full_step(self._machine.program))
        watches_head = any(head.weight in group.weights for group in batch)

        def observe(op: Operation, operands: Sequence[Any], results: Sequence[Any]) -> Sequence:
            if watches_head:
                head.observe(op, operands, results)
            return moments.observe(op, operands, results)

        def before_pass(first_rows: Sequence[int]) -> None:
            # A text's first token has no caches behind it: it is never drafted, and in many models
            # its numbers are like no other's.
            moments.leave_out(first_rows)
            head.leave_out(first_rows)

        def after_pass(rows: int) -> None:
            moments.flush()
            advance(rows)

        if self._sequences is None:
            self._sequences = write_text(
                Lockstep(self._machine),
                self._text.texts,
                self._text.tokens,
                self._text.length,
                stop_tokens=self._stop_tokens,
                observe=observe,
                before_pass=before_pass,
                after_pass=after_pass,
            )
        else:
            self._read(self._sequences, observe, before_pass, after_pass)
        if watches_head:
            self._head, self._likely = head.weight, head.take()
        return moments

    def _read(
        self,
        sequences: list[list[int]],
        observe: Observer,
        before_pass: Callable[[Sequence[int]], None],
        after_pass: Callable[[int], None],
    ) -> None:
        for sequence in sequences:
            self._machine.reset()
            # Where a prefix is recomputed, a second piece would see the first one's rows again.
            chunk = len(sequence) if self._machine.recomputes else _CHUNK
            for start in range(0, len(sequence), chunk):
                rows = sequence[start : start + chunk]
                before_pass([] if start else [0])
                self._machine.call(FULL, rows, observe=observe)
                after_pass(len(rows))
        self._machine.reset()

    def likely(self, name: str, first: int, n: int) -> LikelyRows | None:
        """Where the tokens of n columns of a weight from `first` on were likely, for the head."""
        if self._likely is None or name != self._head:
            return None
        return self._likely.pick(np.arange(first, first + n))

    def add_error(self, name: str, power: float, before: float, after: float) -> None:
        """Count errors of some columns of a weight."""
        with self._lock:
            error = self._errors.setdefault(name, LayerError())
            error.power += power
            error.before += before
            error.after += after

    def facts(self) -> Mapping[str, Any]:
        """What the artifact's manifest says of the calibration."""
        sequences = self._sequences or []
        return {
            "source": self._text.source,
            "texts": len(sequences),
            "tokens": sum(map(len, sequences)),
            "digest": text_digest(sequences),
            "method": METHOD,
            "output_snr_db": {name: self._errors[name].snr_db() for name in sorted(self._errors)},
        }


class CalibratedGroup:
    """Weights with one input, and the moments of that input."""

    def __init__(self, calibration: Calibration, group: Group, moments: Moments):
        self._calibration = calibration
        self._moments: Moments | None = moments
        self.k = group.k
        self.weights = tuple(group.weights)

    def work(self, machine: Machine) -> int:
        """Products that encoding the group takes, about."""
        return self.k * self.k * sum(machine.weights[name].n for name in self.weights)

    def prepare(self) -> Encode:
        """What encodes the group's weights; takes seconds for a wide input, and only once."""
        assert self._moments is not None
        found, self._moments = metric(self._moments), None
        if found is None:
            return encode_nearest
        return _Encoder(self._calibration, found).encode


@dataclass(frozen=True)
class _Encoder:
    calibration: Calibration
    metric: Metric

    def encode(
        self,
        name: str,
        first: int,
        panels: NDArray[np.uint16],
        n: int,
        scheme: CodeBook | CopyFormat,
        group_size: int,
        shift: int,
    ) -> Planes | CopyPlanes:
        """Choose the codes of n columns that lie in panels."""
        likely = self.calibration.likely(name, first, n)
        bits = panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)[:, :n]
        if isinstance(scheme, CopyFormat):
            chosen = choose_copy(bits, scheme, group_size, shift, self.metric, likely=likely)
            packed = pack_copy(chosen.copied, scheme, shift)
        else:
            chosen = choose(bits, scheme, group_size, shift, self.metric, likely=likely)
            packed = pack(chosen.encoded)
        sums = (float(part.sum()) for part in (chosen.power, chosen.before, chosen.after))
        self.calibration.add_error(name, *sums)
        return packed


@contextmanager
def calibrated(
    program: ModuleOp,
    tensors: Mapping[str, StoredTensor],
    text: CalibrationText,
    stop_tokens: frozenset[int],
    out: Path,
) -> Iterator[Calibration]:
    """A calibration of a `pe` program that has run over its text for the first time.

    The program runs with its nearest codes, from a file beside `out` that is gone at the end.
    """
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as folder:
        file = Path(folder) / "weights.safetensors"
        with progress("encoding to calibrate", count_blocks(program)) as advance:
            write_weights(file, program, tensors, advance)
        calibration = Calibration(Machine(program, WeightFile(file)), text, stop_tokens)
        calibration.run_first()
        yield calibration


def vocabulary(program: ModuleOp) -> int:
    """Tokens that a program's full step knows."""
    logits = _full_step(program).function_type.outputs.data[0]
    assert isinstance(logits, TensorType)
    return logits.get_shape()[-1]


def _full_step(program: ModuleOp) -> FuncOp:
    return next(op for op in program.ops if isinstance(op, FuncOp) and op.sym_name.data == FULL)
