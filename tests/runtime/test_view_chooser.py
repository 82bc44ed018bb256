from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64

from speqc.dialects.speq import View, WeightOp
from speqc.runtime.target import Target
from speqc.runtime.view_chooser import (
    Option,
    Round,
    best_point,
    most_gain_within,
    trade_off,
    view_bits,
    view_cycles,
    view_options,
)

BASE = Round(tokens=4.0, draft_steps=6, draft_cycles=100, verify_cycles=350, plain_cycles=330)


def speedup(base, options):
    tokens = base.tokens + sum(option.gain for option in options)
    cycles = sum(option.cycles for option in options)
    total = base.draft_steps * (base.draft_cycles + cycles) + base.verify_cycles
    return tokens * base.plain_cycles / total


def test_without_options_the_curve_is_a_point():
    (point,) = trade_off(BASE, {})
    assert point.speedup == pytest.approx(4.0 * 330 / 950)
    assert (point.tokens, point.cycles, point.bits_per_weight) == (4.0, 950, None)


def test_the_largest_gain_for_a_cycle_comes_first():
    options = {
        "head": [Option(View.WIDE8, 0.2, 20, 0)],
        "down": [Option(View.WIDE8, 0.1, 2, 0), Option(View.WIDE12, 0.11, 6, 0)],
        "useless": [Option(View.WIDE8, -0.1, 1, 0)],
    }
    points = trade_off(BASE, options)
    assert [dict(point.views) for point in points] == [
        {},
        {"down": View.WIDE8},
        {"down": View.WIDE8, "head": View.WIDE8},
        {"down": View.WIDE12, "head": View.WIDE8},
    ]
    # .1 for 2 cycles in 6 steps: 4.1 / 962 is more than 4 / 950; .2 for 20 is not.
    assert best_point(points).views == {"down": View.WIDE8}


def test_a_poor_narrow_view_is_passed_over():
    """Half of the gain for most of the price lies under the line to the wider view."""
    options = {"w": [Option(View.WIDE8, 0.1, 8, 0), Option(View.WIDE12, 0.4, 10, 0)]}
    assert [point.views for point in trade_off(BASE, options)] == [{}, {"w": View.WIDE12}]


ONE = st.builds(
    Option,
    st.sampled_from([View.WIDE8, View.WIDE12, View.FULL]),
    st.floats(-0.2, 1),
    st.integers(1, 60),
    st.just(0),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(ONE, max_size=3), max_size=5))
def test_the_best_point_is_the_best_of_all_choices(weights):
    options = {str(index): own for index, own in enumerate(weights)}
    found = best_point(trade_off(BASE, options)).speedup
    none = Option(View.DRAFT, 0, 0, 0)
    best = max(speedup(BASE, chosen) for chosen in product(*([none, *own] for own in weights)))
    assert found == pytest.approx(best)


def test_a_limit_on_bits_leaves_out_what_does_not_fit():
    base = replace(BASE, draft_bits=425, weights=100)
    options = {
        "large": [Option(View.WIDE8, 1.0, 1, 400)],
        "small": [Option(View.WIDE8, 0.1, 1, 100)],
    }
    points = trade_off(base, options, most_bits=6)
    assert [dict(point.views) for point in points] == [{}, {"small": View.WIDE8}]
    assert [point.bits_per_weight for point in points] == [4.25, 5.25]
    with pytest.raises(ValueError, match="number of weights"):
        trade_off(BASE, options, most_bits=6)


def weight(k, n):
    op = WeightOp("w", "w", "sha256:00", (k, n))
    op.codebook, op.group_size = StringAttr("sets"), IntegerAttr(64, i64)
    return op


def test_bits_and_cycles_of_views():
    target, op = Target(), weight(1024, 1024)
    values = 1024 * 1024
    assert [view_bits(op, view, target) for view in View] == [
        round((bits + 0.25) * values) for bits in (4, 8, 12, 16)
    ]
    # DRAM bound: bits over 51.2 GB/s at 500 MHz, 819.2 bits a cycle.
    for view, bits in ((View.DRAFT, 4.25), (View.WIDE8, 8.25), (View.FULL, 16.25)):
        assert view_cycles(op, view, target) == pytest.approx(bits * values / 819.2, rel=0.02)
    # A PE takes one 12-bit weight at a time: 256 tiles of 64 cycles, and a shift-in.
    assert view_cycles(op, View.WIDE12, target) == 256 * 64 + 64


def test_options_cost_what_they_add_to_the_draft():
    target, op = Target(), weight(1024, 512)
    (option,) = view_options(op, {View.WIDE12: 0.3}, target)
    assert (option.view, option.gain) == (View.WIDE12, 0.3)
    assert option.bits == 8 * 1024 * 512
    added = view_cycles(op, View.WIDE12, target) - view_cycles(op, View.DRAFT, target)
    assert option.cycles == added > 0


VIEW = st.sampled_from([View.WIDE8, View.WIDE12])
OPTION = st.builds(Option, VIEW, st.floats(0.01, 9), st.just(0.0), st.integers(1, 99))


@given(st.lists(st.lists(OPTION, max_size=2, unique_by=lambda o: o.view), max_size=5), st.data())
def test_the_most_gain_within_a_limit_is_that_of_all_sets(rows, data):
    options = {f"w{place}": own for place, own in enumerate(rows)}
    limit = data.draw(st.integers(1, 300))
    views = most_gain_within(options, limit)
    taken = [o for name, own in options.items() for o in own if views.get(name) == o.view]
    sets = list(product(*([None, *own] for own in rows)))

    def gain(chosen):
        return sum(option.gain for option in chosen if option is not None)

    def bits(chosen):
        return sum(option.bits for option in chosen if option is not None)

    assert bits(taken) <= limit
    # Sizes are rounded up to cells of 1 / 10,000 of the limit.
    best = max(gain(chosen) for chosen in sets if bits(chosen) <= limit * 0.999)
    assert gain(taken) >= best - 1e-9
