"""The level sets of the code book `sets`: exactness, error, and what their nibbles mean."""

import ml_dtypes
import numpy as np
import pytest

from speqc.dialects.speq import LEVELS, View, WeightOp
from speqc.runtime.bsfp import decode, draft_patterns, draft_snr_db, draft_values, encode
from speqc.runtime.codebook import LEVEL_SETS, load_codebook, mantissa_bits
from speqc.runtime.errors import SpeqcError
from speqc.runtime.planes import encode_to_planes
from speqc.runtime.target import Target
from speqc.runtime.weight_traffic import weight_traffic

GROUPS = (32, 64, 128)


def gaussian(rows, columns, scale=0.02, seed=0):
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * scale
    return values.astype(np.float16).view(np.uint16)


ALL = np.arange(65536, dtype=np.uint16)
SURROUNDINGS = {
    "gaussian": gaussian(7, 1).reshape(-1),
    "zeros": np.zeros(7, np.uint16),
    "subnormals": np.array([1, 0x8001, 3, 1023, 512, 2, 77], np.uint16),
    "one huge": np.array([0x7BFF, 1, 0x8002, 0x0400, 0, 0x1234, 0x9000], np.uint16),
    "special": np.array([0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF, 0, 0x3C00], np.uint16),
    "equal": np.full(7, 0x2E66, np.uint16),
}


@pytest.mark.parametrize("levels", LEVEL_SETS)
@pytest.mark.parametrize("group_size", GROUPS)
def test_all_patterns_survive(levels, group_size):
    """Each pattern in a group of its neighbours, of scattered patterns, and on its own."""
    book = load_codebook("sets", levels)
    for bits in (ALL.reshape(-1, 512), ALL.reshape(512, -1)):
        assert np.array_equal(decode(encode(bits, book, group_size), book), bits)


@pytest.mark.parametrize("levels", LEVEL_SETS)
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_all_patterns_survive_in_any_surroundings(levels, name):
    book = load_codebook("sets", levels)
    others = np.repeat(SURROUNDINGS[name][:, None], 65536, axis=1)
    bits = np.concatenate([others[:3], ALL[None], others[3:]])
    assert np.array_equal(decode(encode(bits, book, 8), book), bits)


@pytest.mark.parametrize("levels", LEVEL_SETS)
def test_weights_stay_under_what_the_tables_hold(levels):
    book = load_codebook("sets", levels)
    bits = gaussian(64, 200, scale=1.0)
    bits[0, ::3] = 0x7BFF
    scales = np.abs(encode(bits, book, 64).scales[0].astype(np.float64))
    peaks = np.abs(bits.view(np.float16).astype(np.float64)).max(axis=0)
    assert np.all(peaks < 2.0 ** (3 + book.octave) * scales)


def least_mantissa_bits(levels):
    """Mantissa bits behind the leading one of numbers, zeros aside."""
    halves = np.frexp(np.asarray(levels, np.float64))[0]
    return max(next(b for b in range(11) if half * 2 ** (b + 1) % 1 == 0) for half in halves)


@pytest.mark.parametrize("levels", LEVEL_SETS)
def test_levels_need_the_mantissa_bits_that_are_stated(levels):
    values = load_codebook("sets", levels).levels
    assert np.all(np.diff(values) > 0)
    assert least_mantissa_bits(values) <= LEVEL_SETS[levels] == mantissa_bits("sets", levels)
    if levels != "free":
        assert least_mantissa_bits(values) == LEVEL_SETS[levels]


@pytest.mark.parametrize("name", ["paper", "naive"])
def test_other_books_have_powers_of_two(name):
    assert least_mantissa_bits(load_codebook(name).levels) == mantissa_bits(name) == 0


def test_the_dialect_knows_the_same_names():
    assert tuple(LEVEL_SETS) == LEVELS


def test_fp4_nibbles_are_e2m1_numbers():
    nibbles = np.arange(16, dtype=np.uint8)
    book = load_codebook("sets", "fp4")
    expected = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float16)
    assert np.array_equal(draft_patterns(book), expected.view(np.uint16))
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert draft_values(nibbles, book).tolist() == [*table, *(-x for x in table)]


def test_fp4_draft_plane_is_a_packed_e2m1_tensor():
    """Two numbers a byte, the first in the low nibble, as OCP's formats are packed."""
    bits, book = gaussian(64, 64), load_codebook("sets", "fp4")
    plane = encode_to_planes(bits, book, 32).draft[0]
    nibbles = np.stack([plane & 15, plane >> 4], axis=-1).reshape(64, 64)
    numbers = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float16)
    assert np.array_equal(numbers, draft_values(encode(bits, book, 32).codes, book))


@pytest.mark.parametrize(
    ("levels", "least"), [("free", 20.6), ("m2", 20.5), ("m1", 20.0), ("fp4", 20.0), ("pow2", 15.0)]
)
def test_draft_error_of_gaussian_weights(levels, least):
    """Free levels have 20.6 dB, others .07, .6, .65 and 5 dB less; with a margin."""
    bits, book = gaussian(2048, 128), load_codebook("sets", levels)
    assert draft_snr_db(bits, encode(bits, book, 64), book) > least


@pytest.mark.parametrize("levels", LEVEL_SETS)
def test_error_does_not_depend_on_the_size_of_the_weights(levels):
    """Beyond a third of a dB: large scales have more exponents to hold, small ones fewer."""
    book = load_codebook("sets", levels)
    found = [draft_snr_db(b, encode(b, book, 64), book) for b in _scaled(range(-6, 3))]
    assert max(found) - min(found) < 0.33


def _scaled(exponents):
    return [gaussian(512, 64, scale=2.0**e) for e in exponents]


def test_unknown_levels_are_refused():
    with pytest.raises(SpeqcError, match="unknown levels 'fp6': choose one of free, m2"):
        load_codebook("sets", "fp6")
    with pytest.raises(SpeqcError, match="'paper' has levels of its own"):
        load_codebook("paper", "m2")


def split(levels):
    weight = WeightOp("w", "w", "sha256:00", (64, 64))
    weight.properties.update(_properties(levels))
    weight.verify()
    return weight


def _properties(levels):
    from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64

    found = {"codebook": StringAttr("sets"), "group_size": IntegerAttr(64, i64)}
    return found if levels is None else {**found, "levels": StringAttr(levels)}


@pytest.mark.parametrize(
    ("levels", "bits"), [(None, 10), ("free", 10), ("m2", 2), ("m1", 1), ("fp4", 1), ("pow2", 0)]
)
def test_traffic_tells_what_is_multiplied(levels, bits):
    assert weight_traffic(split(levels), View.DRAFT) == (4, 64, bits, 16)
    assert weight_traffic(split(levels), View.WIDE8) == (8, 64, 3, 16)
    assert weight_traffic(split(levels), View.WIDE12) == (12, 64, 7, 16)
    assert weight_traffic(split(levels), View.FULL) == (16, 64, 10, 16)


def test_default_target_takes_every_level_set():
    assert Target().draft_mantissa_bits == max(LEVEL_SETS.values())
