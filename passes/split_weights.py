"""`split-weights`: which code book, group size and shift each weight is stored with.

The bytes are not touched: the decision rests on the histogram of exponents that a declaration
carries. A weight that the code book can't hold exactly stays plain FP16, with the reason. One of
which only the shape is known is taken to fit.
"""

from dataclasses import dataclass

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.passes import ModulePass

from speqc.dialects.digests import NO_BYTES
from speqc.dialects.speq import ViewOp, WeightOp
from speqc.runtime.codebook import (
    EXPONENTS,
    LEVEL_SETS,
    CodeBook,
    Fit,
    fit,
    load_codebook,
)
from speqc.runtime.errors import SpeqcError

EMBEDDING_ONLY = "embedding only"
"""Why a table that no product reads is not split: a draft step would read the same rows."""


def _fit(weight: WeightOp, book: CodeBook) -> Fit:
    """Whether the book holds the weight, by its histogram."""
    if weight.exponents is not None:
        counts = np.array(weight.exponents.get_values(), np.int64)
        zeros = 0 if weight.zeros is None else weight.zeros.value.data
        return fit(book, counts, zeros)
    if not book.scale_indexed and weight.digest.data != NO_BYTES:
        raise SpeqcError(
            f"weight @{weight.sym_name.data}: its declaration has no histogram of exponents, "
            f"which the code book '{book.name}' needs"
        )
    return fit(book, np.zeros(EXPONENTS, np.int64), 0)


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

    `codebook`: sets, paper or naive. `group_size`: weights along K that share a draft scale.
    `levels`: of the code book sets, the set of draft levels (free, m2, m1, fp4, pow2).
    """

    name = "split-weights"

    codebook: str = "sets"
    group_size: int = 64
    levels: str | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Decide for every weight of the module; decisions of an earlier run are made anew.

        Raises:
            SpeqcError: unknown code book or levels, group size that is not positive, no histogram.
        """
        if self.group_size < 1:
            raise SpeqcError(f"group size must be positive, got {self.group_size}")
        book = load_codebook(self.codebook, self.levels)
        levels = self.levels
        if self.codebook == "sets" and levels is None:
            levels = next(iter(LEVEL_SETS))
        read = {view.weight.string_value() for view in op.walk() if isinstance(view, ViewOp)}
        for weight in op.body.block.ops:
            if not isinstance(weight, WeightOp):
                continue
            weight.codebook = weight.levels = weight.group_size = weight.shift = None
            weight.kept = None
            if weight.sym_name.data in read:
                _split(weight, book, levels, self.group_size)
            else:
                weight.kept = StringAttr(EMBEDDING_ONLY)
