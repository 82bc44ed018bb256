import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codebook import counted_exponents

from speqc.runtime import gptq
from speqc.runtime.bsfp import Encoded, decode, draft_values, encode
from speqc.runtime.codebook import LEVEL_SETS, class_of, fit, load_codebook, scale_class
from speqc.runtime.gptq import choose, choose_block
from speqc.runtime.moments import Metric, Moments, metric
from speqc.runtime.table_choice import with_table

SETS = load_codebook("sets")
SPECIAL = st.sampled_from([0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF])
OUTLIER = st.sampled_from([0x7BFF, 0xFBFF, 0x5640, 0x4400, 0x0001, 0x0400, 0x8000])
GAUSSIAN = st.floats(-3, 3).map(lambda x: int(np.float16(x * 0.03).view(np.uint16)))


def columns(rows: int):
    def of(*elements):
        return st.lists(st.one_of(*elements), min_size=rows, max_size=rows)

    any_pattern = st.integers(0, 0xFFFF)
    return st.one_of(
        st.just([0] * rows),
        st.just([0x8000] * rows),
        any_pattern.map(lambda pattern: [pattern] * rows),
        of(GAUSSIAN),
        of(any_pattern),
        of(st.integers(0, 0x03FF)),
        of(GAUSSIAN, OUTLIER),
        of(GAUSSIAN, SPECIAL),
        st.integers(0, rows - 1).map(lambda k: [0x2666] * k + [0x7BFF] + [0x2666] * (rows - 1 - k)),
    )


@st.composite
def blocks(draw):
    rows = draw(st.integers(1, 40))
    count = draw(st.integers(1, 4))
    return np.array([draw(columns(rows)) for _ in range(count)], np.uint16).T


def inputs(k: int, seed: int = 0, count: int = 300) -> Metric:
    random = np.random.default_rng(seed)
    mix = np.eye(k) + 2 * random.standard_normal((k, k)) / np.sqrt(k)
    size = np.exp(random.standard_normal(k))
    moments = Moments(k)
    moments.add((random.standard_normal((count, k)) @ mix * size).astype(np.float16))
    found = metric(moments)
    assert found is not None
    return found


def gaussian(rows, count, seed=0):
    weights = np.random.default_rng(seed).standard_normal((rows, count)) * 0.03
    return weights.astype(np.float16).view(np.uint16)


def loss(bits, encoded: Encoded, book, found: Metric):
    """Squared errors of the output by the definition, float64[N]."""
    scales = np.abs(encoded.scales.astype(np.float64)).repeat(encoded.group_size, axis=0)
    draft = draft_values(encoded.codes, book).astype(np.float64) * scales[: len(bits)]
    error = bits.view(np.float16).astype(np.float64) - draft
    h = found.moments.astype(np.float64) - found.damping * np.eye(len(bits))
    return np.sum(error * (h @ error), axis=0)


@settings(deadline=None, max_examples=60)
@given(blocks(), st.integers(1, 50), st.integers(0, 5))
def test_every_block_comes_back_exactly(bits, group_size, seed):
    chosen = choose(bits, SETS, group_size, 0, inputs(len(bits), seed))
    assert np.array_equal(decode(chosen.encoded, SETS), bits)
    assert chosen.encoded.codes.max() < 16 and chosen.encoded.rest.max() < 4096
    assert np.all(chosen.after <= chosen.before)


@settings(deadline=None, max_examples=30)
@given(blocks(), st.sampled_from(sorted(LEVEL_SETS)))
def test_every_level_set_is_exact(bits, levels):
    book = load_codebook("sets", levels)
    chosen = choose(bits, book, 8, 0, inputs(len(bits)))
    assert np.array_equal(decode(chosen.encoded, book), bits)
    assert np.all(chosen.after <= chosen.before)


@pytest.mark.parametrize("name", ["paper", "naive"])
@pytest.mark.parametrize("factor", [1, 40])
def test_books_with_forced_codes_get_better_scales(name, factor):
    book = load_codebook(name)
    bits = (gaussian(96, 8).view(np.float16) * np.float16(factor)).view(np.uint16)
    bits[bits & 0x7FFF < 0x1000] = 0
    found = fit(book, *counted_exponents(bits))
    assert found.ok and (found.shift > 0) == (factor > 1)
    chosen = choose(bits, book, 32, found.shift, inputs(96))
    nearest = encode(bits, book, 32, found.shift)
    assert np.array_equal(decode(chosen.encoded, book, found.shift), bits)
    assert np.array_equal(chosen.encoded.codes, nearest.codes)
    assert chosen.after.sum() < chosen.before.sum()


def test_all_65536_patterns_come_back():
    bits = np.random.default_rng(3).permutation(1 << 16).astype(np.uint16).reshape(128, 512)
    chosen = choose(bits, SETS, 32, 0, inputs(128))
    assert np.array_equal(decode(chosen.encoded, SETS), bits)


@pytest.mark.parametrize("levels", sorted(LEVEL_SETS))
def test_the_output_error_falls(levels):
    book, bits, found = load_codebook("sets", levels), gaussian(200, 70), inputs(200)
    chosen = choose(bits, book, 64, 0, found)
    nearest = loss(bits, encode(bits, book, 64), book, found)
    assert np.allclose(chosen.before, nearest, rtol=1e-3)
    assert np.allclose(chosen.after, loss(bits, chosen.encoded, book, found), rtol=1e-3)
    # With free levels nearest codes leave a signal 20 dB over the error, and GPTQ wins dB of it.
    assert chosen.after.sum() < 0.75 * chosen.before.sum()


def test_the_more_rounds_the_smaller_the_error():
    bits, found = gaussian(192, 64), inputs(192)
    errors = [choose_block(bits, SETS, 64, 0, found, rounds).after.sum() for rounds in (0, 1, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_one_row_alone_is_its_nearest_code():
    # Without neighbours nothing is compensated: the draft of a group of one is its own weight.
    bits = gaussian(1, 64)
    chosen = choose(bits, SETS, 1, 0, inputs(1))
    assert np.all(chosen.after <= 1e-3 * chosen.power)


def test_columns_do_not_know_of_each_other():
    bits, found = gaussian(96, 150), inputs(96)
    whole = choose(bits, SETS, 32, 0, found)
    for part in (slice(0, 1), slice(60, 130), slice(149, 150)):
        alone = choose(np.ascontiguousarray(bits[:, part]), SETS, 32, 0, found)
        assert np.array_equal(alone.encoded.codes, whole.encoded.codes[:, part])
        assert np.array_equal(alone.encoded.rest, whole.encoded.rest[:, part])
        scales = whole.encoded.scales[:, part].view(np.uint16)
        assert np.array_equal(alone.encoded.scales.view(np.uint16), scales)


def test_columns_with_nan_keep_their_nearest_codes_and_disturb_no_other():
    bits, found = gaussian(64, 3), inputs(64)
    bad = bits.copy()
    bad[5, 1] = 0x7E00
    clean, spoilt = choose(bits, SETS, 32, 0, found), choose(bad, SETS, 32, 0, found)
    for column in (0, 2):
        same = clean.encoded.codes[:, column] == spoilt.encoded.codes[:, column]
        assert same.all()
    assert np.array_equal(spoilt.encoded.codes[:, 1], encode(bad, SETS, 32).codes[:, 1])
    assert spoilt.before[1] == spoilt.after[1] == 0


def test_an_input_that_is_never_on_costs_nothing():
    k = 64
    moments = Moments(k)
    x = np.random.default_rng(0).standard_normal((300, k)).astype(np.float16)
    x[:, 10] = 0
    moments.add(x)
    found = metric(moments)
    assert found is not None and found.order[-1] == 10
    bits = gaussian(k, 5)
    chosen = choose(bits, SETS, 32, 0, found)
    assert np.array_equal(decode(chosen.encoded, SETS), bits)


@pytest.mark.parametrize("old", [0x0001, 0x83FF, 0x0400, 0x8405, 0x2345, 0xA5FB, 0x7800, 0x7BFF])
def test_scales_that_no_table_serves_stop_at_the_end_of_their_class(old):
    members = np.flatnonzero(scale_class(np.arange(65536, dtype=np.uint16)) == class_of(old))
    if old & 0x7C00 == 0:
        members = np.arange(max(old & 0xFE00, 1), (old & 0xFE00) + 0x200)
    for magnitude in [*range(1, 0x7C00, 97), old & 0x7FFF]:
        wanted = magnitude | (old & 0x8000)
        found = int(gptq._nearest_of_class(np.uint16(magnitude), np.uint16(old)))
        nearest = members[np.abs(members - wanted).argmin()]
        assert found in members
        assert abs(found - nearest) <= 8


def test_a_table_that_has_the_codes_is_found_if_there_is_one():
    book = load_codebook("sets")
    random = np.random.default_rng(0)
    kept = moved = 0
    for _ in range(400):
        old, wanted = (random.integers(0x1C00, 0x2400, 2) | random.integers(0, 2, 2) << 15).tolist()
        fields = random.integers(4, 9, 6)
        owners = book.allowed[class_of(old), fields]
        codes = np.array(
            [[c for c in range(8) if owned >> c & 1][-1] for owned in owners], np.uint8
        )
        wanted &= 0x7FFF
        found = int(
            gptq._table_with_codes(
                np.uint16(wanted), np.uint16(old), fields.astype(np.uint8), codes, book.allowed
            )
        )
        serves = [
            np.all(book.allowed[class_of(with_table(np.uint16(wanted), t)), fields] >> codes & 1)
            for t in range(16)
        ]
        assert (found != 0) == any(serves)
        if found:
            table = found >> 15 << 3 | found & 7
            used = old >> 15 << 3 | old & 7
            assert serves[table]
            assert table == used or not serves[used]
            kept, moved = kept + (table == used), moved + (table != used)
    assert kept > 20
    assert moved > 20
