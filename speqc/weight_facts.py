"""What there is to say of a weight in an artifact: its form, its draft, its exactness."""

import hashlib
from dataclasses import dataclass
from math import isfinite, log10
from typing import cast

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import DenseArrayBase, IntegerType

from speqc.dialects.speq import WeightOp
from speqc.passes.split_weights import BSFP
from speqc.runtime.bsfp import for_each
from speqc.runtime.planes import draft_panels, full_panels
from speqc.runtime.weights import WeightFile


@dataclass(frozen=True)
class WeightFacts:
    """What there is to say of one weight.

    Attributes:
        name: its symbol; `source` is its name in the model file.
        shape: (K, N).
        bytes: what it takes in the artifact, with its copy if it has one.
        exponents: how many values have each FP16 exponent field 0..31, in the model file.
        draft_format: bsfp where drafts read a slice of its bits, else that of its copy; None
            without a draft.
        codebook, levels, group_size, shift: how it is split; None where it is kept as FP16, levels
            also where the code book has no choice of them.
        kept: why it is kept as FP16.
        draft_snr_db: power of the weights over that of the draft's error; None without a draft,
            and where weights are infinite, all zero, or drafted exactly.
        exact: whether the stored weight decodes to the digest of the model file's tensor; None
            where the artifact has no weights.
    """

    name: str
    source: str
    shape: tuple[int, int]
    bytes: int
    exponents: list[int] | None
    draft_format: str | None
    codebook: str | None
    levels: str | None
    group_size: int | None
    shift: int | None
    kept: str | None
    draft_snr_db: float | None
    exact: bool | None


def weight_facts(op: WeightOp, file: WeightFile | None) -> WeightFacts:
    """Decode a weight, compare it with the digest of its source, and measure its draft.

    Without a file, what the declaration says.
    """
    if file is None:
        return _facts(op, 0, None, None)
    name, n = op.sym_name.data, op.shape[1]
    shift = 0 if op.shift is None else op.shift.value.data
    if op.copy is not None and op.group_size is not None:
        panels = file.read(f"{name}.fp16")
        snr = draft_snr_db(panels, *file.copied(op), op.group_size.value.data)
        copy = file.copy(op).tensors.values()
        size = panels.nbytes + sum(part.nbytes for part in copy)
    elif op.codebook is None or op.group_size is None:
        snr = None
        panels = file.read(f"{name}.fp16")
        size = panels.nbytes
    else:
        planes, book = file.planes(op), file.codebook(op)
        panels = full_panels(planes, book, n, shift)
        snr = draft_snr_db(
            panels, draft_panels(planes, book, n), planes.scales, op.group_size.value.data
        )
        size = sum(plane.nbytes for plane in planes.nibbles) + planes.scales.nbytes
    exact = panels_digest(panels, n, transposed=op.transposed is not None) == op.digest.data
    return _facts(op, size, snr, exact)


def _facts(op: WeightOp, size: int, snr: float | None, exact: bool | None) -> WeightFacts:
    shift = 0 if op.shift is None else op.shift.value.data
    return WeightFacts(
        name=op.sym_name.data,
        source=op.source.data,
        shape=op.shape,
        bytes=size,
        exponents=_histogram(op.exponents),
        draft_format=_draft_format(op),
        codebook=None if op.codebook is None else op.codebook.data,
        levels=op.level_set,
        group_size=None if op.group_size is None else op.group_size.value.data,
        shift=shift if op.has_draft else None,
        kept=None if op.kept is None else op.kept.data,
        draft_snr_db=snr,
        exact=exact,
    )


def _draft_format(op: WeightOp) -> str | None:
    if op.copy is not None:
        return op.copy.data
    return BSFP if op.is_split else None


def _histogram(exponents: DenseArrayBase | None) -> list[int] | None:
    if exponents is None:
        return None
    return list(cast("DenseArrayBase[IntegerType]", exponents).get_values())


def panels_digest(panels: NDArray[np.uint16], n: int, *, transposed: bool) -> str:
    """SHA-256 of the matrix in panels uint16[NB, K, 64], as the model file holds it."""
    k = panels.shape[1]
    if transposed:
        matrix = panels.transpose(0, 2, 1).reshape(-1, k)[:n]
    else:
        matrix = panels.transpose(1, 0, 2).reshape(k, -1)[:, :n]
    return f"sha256:{hashlib.sha256(np.ascontiguousarray(matrix, '<u2').data).hexdigest()}"


def draft_snr_db(
    full: NDArray[np.uint16],
    draft: NDArray[np.uint16],
    scales: NDArray[np.float16],
    group_size: int,
) -> float | None:
    """10 log10(sum w^2 / sum (w - q)^2) of a weight in panels; None where that is no number.

    A draft value is its level times the magnitude of its group's scale [NB, G, 64].
    """
    blocks, k, _ = full.shape
    power, error = np.zeros(blocks), np.zeros(blocks)

    def measure(block: int) -> None:
        exact = full[block].view(np.float16).astype(np.float64)
        magnitudes = np.abs(scales[block]).astype(np.float64).repeat(group_size, axis=0)[:k]
        approximate = draft[block].view(np.float16) * magnitudes
        power[block] = np.sum(exact * exact)
        error[block] = np.sum((exact - approximate) ** 2)

    with np.errstate(invalid="ignore"):
        for_each(range(blocks), measure)
    signal, noise = float(power.sum()), float(error.sum())
    if not isfinite(signal + noise) or signal == 0 or noise == 0:
        return None
    return 10 * log10(signal / noise)
