"""What a step reads of a weight, and what it multiplies."""

from typing import NamedTuple

from speqc.dialects.speq import View, WeightOp
from speqc.runtime.codebook import mantissa_bits
from speqc.runtime.copy_formats import copy_format
from speqc.runtime.costs import DRAFT_BITS, FULL_BITS, SCALE_BITS

FULL_MANTISSA_BITS = 10
"""Mantissa bits of an FP16 number."""

WIDE_BITS = {View.WIDE8: 8, View.WIDE12: 12}
"""Views between draft and full: bits that they read of each weight."""


def kept_mantissa_bits(weight_bits: int) -> int:
    """Leading mantissa bits that a view of 8 or 12 bits shows; the midpoint of the others follows.

    Sign and code take 4 bits, the slot 2.
    """
    return weight_bits - 6


class Traffic(NamedTuple):
    """A view of a weight as `costs.gemm` and `costs.tile_weight` take it.

    Attributes:
        weight_bits: bits that are read of each weight, 4 for each plane of nibbles.
        group_size: weights along K that share a scale, if scales are read too.
        mantissa_bits: those of the numbers that are multiplied.
        group_bits: bits that are read of each group beside its weights, a scale for the most part.
    """

    weight_bits: int
    group_size: int | None
    mantissa_bits: int
    group_bits: int = SCALE_BITS


def weight_traffic(weight: WeightOp, view: View) -> Traffic:
    """What a view reads of a weight.

    The draft always needs its scales; the other views need them where the scale picks the table
    that the exponent is looked up in (code book `sets`).
    """
    if weight.stored_bits is not None:
        group = None if weight.group_size is None else weight.group_size.value.data
        return Traffic(weight.stored_bits.value.data, group, 0)
    if weight.copy is not None and view == View.DRAFT:
        assert weight.group_size is not None
        form = copy_format(weight.copy.data)
        group = weight.group_size.value.data
        return Traffic(DRAFT_BITS, group, form.mantissa_bits, form.group_bits)
    if weight.codebook is None:
        return Traffic(FULL_BITS, None, FULL_MANTISSA_BITS)
    assert weight.group_size is not None
    group_size = weight.group_size.value.data
    book = weight.codebook.data
    if view == View.DRAFT:
        return Traffic(DRAFT_BITS, group_size, mantissa_bits(book, weight.level_set))
    tables = group_size if book == "sets" else None
    if view in WIDE_BITS:
        bits = WIDE_BITS[view]
        return Traffic(bits, tables, kept_mantissa_bits(bits) + 1)
    return Traffic(FULL_BITS, tables, FULL_MANTISSA_BITS)
