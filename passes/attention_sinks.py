"""Attention sinks that an exporter spelt out: scores appended to those of the positions.

A sink is one more column of scores, the same in every row of a head, whose probability is cut off
behind the softmax. What is appended and what is cut off is evaluated for several lengths.
"""

import numpy as np
from xdsl.ir import Operation

from speqc.passes.attention_mask import MaskReader
from speqc.passes.attention_scores import Scores
from speqc.passes.matching import constant_integers, fail, shape


def read_sinks(scores: Scores, masks: MaskReader, heads: int) -> tuple[float, ...] | None:
    """The score of each head's sink, None if there are no sinks.

    Raises:
        SpeqcError: what is appended is no such score.
    """
    op = scores.sinks
    if op is None:
        return None
    if len(op.operands) != 2 or shape(op.operands[1])[-1] != 1:
        raise fail(op, "more than one score is appended to those of the positions")
    found = None
    for rows, _, value in masks.samples(op.operands[1]):
        value = np.broadcast_to(value, (*value.shape[:-3], heads, rows, 1)).reshape(heads, rows)
        first = value[:, :1] if found is None else found
        if (value != first).any():
            raise fail(op, "the score that is appended to those of the positions is no constant")
        found = first
    if found is None:
        raise fail(op, "the score that is appended to those of the positions can't be evaluated")
    if scores.rounding is not None and op.is_before_in_block(scores.rounding):
        found = found.astype(np.float16)
    return tuple(float(number) for number in found[:, 0])


def check_slice(op: Operation, masks: MaskReader, sinks: int) -> None:
    """Raise SpeqcError unless a slice of probabilities leaves those of the positions.

    `sinks` is the number of columns behind them.
    """
    starts, ends, *others = op.operands[1:]
    axes, steps = (constant_integers(value) for value in (*others, None, None)[:2])
    last = len(shape(op.operands[0])) - 1
    steps_of_one = steps in (None, (1,)) and axes in ((-1,), (last,))
    ends_of = {(rows, past): int(end.reshape(-1)[0]) for rows, past, end in masks.samples(ends)}
    for rows, past, start in masks.samples(starts):
        columns = np.arange(past + rows + sinks)
        end = ends_of.get((rows, past))
        taken = columns[int(start.reshape(-1)[0]) : end]
        if end is None or not steps_of_one or not np.array_equal(taken, columns[: past + rows]):
            raise fail(op, "it does not take the probabilities of the positions and no others")
