"""`split-weights`: which code book, group size and shift each weight is stored with.

The bytes are not touched: the decision rests on the histogram of exponents that a declaration
carries. A weight that the code book can't hold exactly stays plain FP16, with the reason. One of
which only the shape is known is taken to fit. The pass may also give drafts a copy of each weight
instead, which then stays FP16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.passes import ModulePass

from speqc.dialects.digests import NO_BYTES
from speqc.dialects.speq import COPIES, ViewOp, WeightOp
from speqc.runtime.codebook import (
    EXPONENTS,
    LEVEL_SETS,
    CodeBook,
    Fit,
    fit,
    load_codebook,
)
from speqc.runtime.copy_formats import copy_group_size, tensor_shift
from speqc.runtime.errors import SpeqcError

BSFP = "bsfp"
"""The draft format that is a slice of the FP16 bits."""

DRAFT_FORMATS = (BSFP, *COPIES)
"""What a draft may read: the bit-shared format, or a separate copy in another one."""

EMBEDDING_ONLY = "embedding only"
"""Why a table that no product reads is not split: a draft step would read the same rows."""

CODEBOOK = "sets"
"""The code book of the bit-shared format, unless another is chosen."""

GROUP_SIZE = 64
"""Weights of the bit-shared format that share a scale, unless a number is given."""


def _fit(weight: WeightOp, book: CodeBook) -> Fit:
    """Whether the book holds the weight, by its histogram."""
    if weight.exponents is None:
        needed = None if book.scale_indexed else f"the code book '{book.name}'"
        return fit(book, _histogram(weight, needed), 0)
    zeros = 0 if weight.zeros is None else weight.zeros.value.data
    return fit(book, _histogram(weight, None), zeros)


def _histogram(weight: WeightOp, needed_by: str | None) -> NDArray[np.int64]:
    """The exponents of a weight, int64[32]; all 0 where they are unknown and not needed."""
    if weight.exponents is not None:
        return np.array(weight.exponents.get_values(), np.int64)
    if needed_by is not None and weight.digest.data != NO_BYTES:
        raise SpeqcError(
            f"weight @{weight.sym_name.data}: its declaration has no histogram of exponents, "
            f"which {needed_by} needs"
        )
    return np.zeros(EXPONENTS, np.int64)


def _copy(weight: WeightOp, name: str, group_size: int) -> None:
    counts = _histogram(weight, f"a copy in {name}")
    if counts[EXPONENTS - 1]:
        weight.kept = StringAttr(f"it has Inf or NaN, which a copy in {name} cannot hold")
        return
    weight.copy = StringAttr(name)
    weight.group_size = IntegerAttr(group_size, i64)
    present = np.flatnonzero(counts)
    shift = tensor_shift(name, int(present[-1])) if present.size else 0
    weight.shift = IntegerAttr(shift, i64) if shift else None


def _split(weight: WeightOp, book: CodeBook, levels: str | None, group_size: int) -> None:
    found = _fit(weight, book)
    if not found.ok:
        weight.kept = StringAttr(found.reason)
        return
    weight.codebook = StringAttr(book.name)
    weight.levels = None if levels is None else StringAttr(levels)
    weight.group_size = IntegerAttr(group_size, i64)
    weight.shift = IntegerAttr(found.shift, i64) if found.shift else None


@dataclass(frozen=True)
class SplitWeightsPass(ModulePass):
    """Give each weight that a product reads its code book, group size and shift.

    `codebook`: sets, paper or naive. `group_size`: weights along K that share a draft scale; 64
    if none is given, or what the format has. `levels`: of the code book sets, the set of draft
    levels (free, m2, m1, fp4, pow2). `draft_format`: bsfp, or int4, mxfp4 or nvfp4: then weights
    stay FP16 and drafts read a copy in that format.
    """

    name = "split-weights"

    codebook: str = CODEBOOK
    group_size: int | None = None
    levels: str | None = None
    draft_format: str = BSFP

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Decide for every weight of the module; decisions of an earlier run are made anew.

        Raises:
            SpeqcError: unknown code book, levels or format, options that exclude each other, a
                group size that is not positive or not the format's, no histogram.
        """
        if self.group_size is not None and self.group_size < 1:
            raise SpeqcError(f"group size must be positive, got {self.group_size}")
        store = self._splitting() if self.draft_format == BSFP else self._copying()
        read = {view.weight.string_value() for view in op.walk() if isinstance(view, ViewOp)}
        for weight in op.body.block.ops:
            if not isinstance(weight, WeightOp):
                continue
            weight.codebook = weight.levels = weight.group_size = weight.shift = None
            weight.kept = weight.copy = None
            if weight.sym_name.data in read:
                store(weight)
            else:
                weight.kept = StringAttr(EMBEDDING_ONLY)

    def _splitting(self) -> Callable[[WeightOp], None]:
        """What decides for a weight whose draft is a slice of its bits."""
        book = load_codebook(self.codebook, self.levels)
        levels = self.levels
        if self.codebook == "sets" and levels is None:
            levels = next(iter(LEVEL_SETS))
        size = self.group_size or GROUP_SIZE
        return lambda weight: _split(weight, book, levels, size)

    def _copying(self) -> Callable[[WeightOp], None]:
        """What decides for a weight that drafts read a copy of."""
        check_draft_format(self.draft_format)
        if self.codebook != CODEBOOK:
            raise SpeqcError(f"{self.draft_format} splits no weight: leave out codebook")
        if self.levels is not None:
            raise SpeqcError(f"{self.draft_format} has levels of its own: leave out levels")
        size = copy_group_size(self.draft_format, self.group_size)
        return lambda weight: _copy(weight, self.draft_format, size)


def check_draft_format(name: str) -> None:
    """Raise SpeqcError unless drafts can read this format."""
    if name not in DRAFT_FORMATS:
        raise SpeqcError(f"unknown draft format {name!r}: choose one of {', '.join(DRAFT_FORMATS)}")
