import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from speqc.runtime.bsfp import Encoded, draft_values, encode, narrowed
from speqc.runtime.codebook import LEVEL_SETS, load_codebook
from speqc.runtime.planes import (
    NIBBLE_PLANES,
    Planes,
    decodes_to,
    draft_panels,
    empty_planes,
    encode_to_planes,
    full_panels,
    pack,
    to_panels,
    unpack,
    wide_panels,
)

SETS = load_codebook("sets")
SHAPES = [(64, 64, 64), (70, 130, 32), (1, 1, 64), (129, 65, 128), (40, 200, 7)]


def gaussian(rows, columns, seed=0):
    weights = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.03
    return weights.astype(np.float16).view(np.uint16)


def same(one: Planes, other: Planes):
    return (
        all(np.array_equal(a, b) for a, b in zip(one.nibbles, other.nibbles, strict=True))
        and np.array_equal(one.scales.view(np.uint16), other.scales.view(np.uint16))
        and one.group_size == other.group_size
    )


def panels(block):
    """[K, N] as [NB, K, 64], zero padded."""
    padded = np.pad(block, ((0, 0), (0, -block.shape[1] % 64)))
    return padded.reshape(len(block), -1, 64).transpose(1, 0, 2)


@st.composite
def encodings(draw):
    k, n = draw(st.integers(1, 9)), draw(st.integers(1, 140))
    group_size = draw(st.integers(1, 10))
    codes = draw(hnp.arrays(np.uint8, (k, n), elements=st.integers(0, 15)))
    rest = draw(hnp.arrays(np.uint16, (k, n), elements=st.integers(0, 4095)))
    scales = draw(hnp.arrays(np.uint16, (-(-k // group_size), n), elements=st.integers(0, 65535)))
    return Encoded(codes, rest, scales.view(np.float16), group_size)


@settings(deadline=None, max_examples=100)
@given(encodings())
def test_unpack_undoes_pack(encoded):
    planes = pack(encoded)
    back = unpack(planes, encoded.codes.shape[1])
    assert np.array_equal(back.codes, encoded.codes)
    assert np.array_equal(back.rest, encoded.rest)
    assert np.array_equal(back.scales.view(np.uint16), encoded.scales.view(np.uint16))
    assert same(pack(back), planes)


def test_bytes_lie_where_the_layout_says():
    k, n = 3, 100
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (k, n)).astype(np.uint8)
    rest = rng.integers(0, 4096, (k, n)).astype(np.uint16)
    scales = rng.standard_normal((2, n)).astype(np.float16)
    planes = pack(Encoded(codes, rest, scales, 2))
    assert all(plane.shape == (2, k, 32) for plane in planes.nibbles)
    assert planes.scales.shape == (2, 2, 64)
    for row in range(k):
        for column in range(128):
            nibble = int(codes[row, column]) if column < n else 0
            value = int(rest[row, column]) if column < n else 0
            block, lane = divmod(column, 64)
            stored = [int(p[block, row, lane // 2]) >> 4 * (lane % 2) & 15 for p in planes.nibbles]
            assert stored == [nibble, value >> 8, value >> 4 & 15, value & 15]
    assert np.array_equal(panels(scales), planes.scales)


@pytest.mark.parametrize("name", ["sets", "paper", "naive"])
@pytest.mark.parametrize(("k", "n", "group_size"), SHAPES)
def test_encode_to_planes_is_encode_and_pack(name, k, n, group_size):
    book = load_codebook(name)
    bits = gaussian(k, n)
    importance = np.arange(1, k + 1, dtype=np.float32)
    encoded = encode(bits, book, group_size, importance=importance)
    assert same(encode_to_planes(bits, book, group_size, importance=importance), pack(encoded))


@pytest.mark.parametrize("step", [64, 128, 192])
def test_planes_do_not_depend_on_the_split(step):
    bits = gaussian(100, 300)
    whole = encode_to_planes(bits, SETS, 64)
    filled = empty_planes(100, 300, 64)
    for start in range(0, 300, step):
        blocks = slice(start // 64, (start + step) // 64)
        out = Planes(*filled.part(blocks), filled.scales[blocks], 64)
        returned = encode_to_planes(bits[:, start : start + step], SETS, 64, out=out)
        assert returned is out
    assert same(filled, whole)


@pytest.mark.parametrize("name", ["sets", "paper", "naive"])
@pytest.mark.parametrize(("k", "n", "group_size"), SHAPES)
def test_panels_are_the_weights_and_their_drafts(name, k, n, group_size):
    book = load_codebook(name)
    bits = gaussian(k, n)
    encoded = encode(bits, book, group_size)
    planes = pack(encoded)
    full = full_panels(planes, book, n)
    draft = draft_panels(planes, book, n)
    assert full.dtype == draft.dtype == np.uint16
    assert np.array_equal(full, panels(bits))
    assert np.array_equal(draft, panels(draft_values(encoded.codes, book).view(np.uint16)))


def test_full_panels_hold_all_patterns():
    bits = np.arange(65536, dtype=np.uint16).reshape(512, 128)
    assert np.array_equal(full_panels(encode_to_planes(bits, SETS, 64), SETS, 128), panels(bits))


def test_full_panels_undo_the_shift():
    book = load_codebook("paper")
    bits = gaussian(64, 70)
    bits = np.where((bits >> 10 & 31) < 3, 0x8000, bits + (3 << 10)).astype(np.uint16)
    planes = encode_to_planes(bits, book, 128, shift=3)
    assert np.array_equal(full_panels(planes, book, 70, shift=3), panels(bits))


def kept(pattern: int, mantissa_bits: int) -> int:
    """A pattern with its leading mantissa bits, and half a unit of the last of them."""
    missing = 10 - mantissa_bits
    cut = pattern >> missing << missing
    return cut | 1 << missing - 1 if 0 < pattern >> 10 & 31 < 31 else cut


@pytest.mark.parametrize("mantissa_bits", [2, 6])
def test_narrowed_keeps_sign_exponent_and_leading_mantissa(mantissa_bits):
    bits = np.arange(65536, dtype=np.uint16)
    found = narrowed(bits, mantissa_bits)
    assert found.dtype == np.uint16
    assert found.tolist() == [kept(pattern, mantissa_bits) for pattern in range(65536)]
    special = np.array([0, 0x8000, 0x7C00, 0xFC00], np.uint16)
    assert np.array_equal(narrowed(special, mantissa_bits), special)
    assert np.isnan(narrowed(np.array([0x7E00], np.uint16), mantissa_bits).view(np.float16)[0])


@pytest.mark.parametrize("mantissa_bits", [2, 6])
def test_narrowed_is_off_by_half_a_step_at_most(mantissa_bits):
    """The patterns that share the bits which are kept span 2^-b of their power of two."""
    bits = np.arange(0x0400, 0x7C00, dtype=np.uint16)
    exact = bits.view(np.float16).astype(np.float64)
    found = narrowed(bits, mantissa_bits).view(np.float16).astype(np.float64)
    step = 2.0 ** (np.frexp(exact)[1] - 1 - mantissa_bits)
    assert np.all(np.abs(found - exact) <= step / 2)


@pytest.mark.parametrize("name", ["sets", "paper", "naive"])
@pytest.mark.parametrize(("weight_bits", "mantissa_bits"), [(8, 2), (12, 6)])
@pytest.mark.parametrize(("k", "n", "group_size"), SHAPES)
def test_wide_panels_are_the_narrowed_weights(name, weight_bits, mantissa_bits, k, n, group_size):
    book, bits = load_codebook(name), gaussian(k, n)
    planes = encode_to_planes(bits, book, group_size)
    expected = panels(narrowed(bits, mantissa_bits))
    assert np.array_equal(wide_panels(planes, book, n, weight_bits), expected)


@pytest.mark.parametrize("levels", LEVEL_SETS)
@pytest.mark.parametrize(("weight_bits", "mantissa_bits"), [(8, 2), (12, 6)])
def test_wide_panels_of_all_patterns(levels, weight_bits, mantissa_bits):
    book, bits = load_codebook("sets", levels), np.arange(65536, dtype=np.uint16).reshape(512, 128)
    planes = encode_to_planes(bits, book, 64)
    expected = panels(narrowed(bits, mantissa_bits))
    assert np.array_equal(wide_panels(planes, book, 128, weight_bits), expected)


@pytest.mark.parametrize(("weight_bits", "count"), [(8, 2), (12, 3)])
def test_wide_panels_read_no_more_planes_than_they_have_bits_for(weight_bits, count):
    bits = gaussian(70, 130)
    planes = encode_to_planes(bits, SETS, 32)
    before = wide_panels(planes, SETS, 130, weight_bits)
    for plane in planes.nibbles[count:]:
        plane[:] = ~plane
    assert np.array_equal(wide_panels(planes, SETS, 130, weight_bits), before)
    planes.nibbles[count - 1][:] = ~planes.nibbles[count - 1]
    assert not np.array_equal(wide_panels(planes, SETS, 130, weight_bits), before)


def test_wide_panels_undo_the_shift():
    book = load_codebook("paper")
    bits = gaussian(64, 70)
    bits = np.where((bits >> 10 & 31) < 3, 0x8000, bits + (3 << 10)).astype(np.uint16)
    planes = encode_to_planes(bits, book, 128, shift=3)
    assert np.array_equal(wide_panels(planes, book, 70, 8, shift=3), panels(narrowed(bits, 2)))


@pytest.mark.parametrize(("weight_bits", "mantissa_bits"), [(8, 2), (12, 6)])
def test_a_midpoint_is_nearer_than_a_truncated_weight(weight_bits, mantissa_bits):
    """Four times the error of a value spread evenly over its interval, half of its error in dB."""
    bits = gaussian(512, 64)
    exact = bits.view(np.float16).astype(np.float64)
    missing = np.uint16(10 - mantissa_bits)
    truncated = (bits >> missing << missing).view(np.float16)
    found = narrowed(bits, mantissa_bits).view(np.float16)
    assert weight_bits == mantissa_bits + 6
    assert np.sum((found - exact) ** 2) < 0.3 * np.sum((truncated - exact) ** 2)


def test_planes_may_be_mapped_read_only(tmp_path):
    bits = gaussian(64, 100)
    planes = encode_to_planes(bits, SETS, 64)
    parts = {}
    for name in (*NIBBLE_PLANES, "scales"):
        np.save(tmp_path / name, getattr(planes, name))
        parts[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    mapped = Planes(**parts, group_size=64)
    assert np.array_equal(full_panels(mapped, SETS, 100), panels(bits))
    assert np.array_equal(draft_panels(mapped, SETS, 100), draft_panels(planes, SETS, 100))
    assert np.array_equal(unpack(mapped, 100).rest, unpack(planes, 100).rest)


@pytest.mark.parametrize("n", [0, 64, 129])
def test_a_wrong_number_of_columns_is_refused(n):
    planes = encode_to_planes(gaussian(4, 100), SETS, 64)
    for read in (
        unpack,
        lambda p, n: full_panels(p, SETS, n),
        lambda p, n: draft_panels(p, SETS, n),
        lambda p, n: wide_panels(p, SETS, n, 8),
    ):
        with pytest.raises(ValueError, match="columns"):
            read(planes, n)


def test_storage_is_sixteen_bits_a_weight_and_a_scale_for_each_group():
    planes = empty_planes(256, 128, 64)
    assert sum(plane.nbytes for plane in planes.nibbles) == 2 * 256 * 128
    assert planes.draft.nbytes * 8 / (256 * 128) == 4
    assert planes.scales.nbytes * 8 / (256 * 128) == 16 / 64


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(70, 130), (1, 1), (1100, 65), (64, 64)])
def test_to_panels_pads_with_zeros(shape, order):
    bits = np.asarray(gaussian(*shape), order=order)
    assert np.array_equal(to_panels(bits), panels(bits))
    assert np.array_equal(to_panels(bits[:, :1]), panels(bits[:, :1]))


@pytest.mark.parametrize("name", ["sets", "paper", "naive"])
@pytest.mark.parametrize("group_size", [64, 100, 3000])
def test_tiles_do_not_change_the_planes(name, group_size, monkeypatch):
    """More rows than a tile has, groups that do not divide it, a last group that is not full."""
    bits, book = gaussian(5001, 70), load_codebook(name)
    tiled = encode_to_planes(bits, book, group_size)
    monkeypatch.setattr("speqc.runtime.planes.TILE_ROWS", 1 << 20)
    assert same(tiled, encode_to_planes(bits, book, group_size))
    assert same(tiled, pack(encode(bits, book, group_size)))


@pytest.mark.parametrize("part", [*NIBBLE_PLANES, "scales"])
def test_decodes_to_sees_every_changed_bit(part):
    bits = gaussian(2100, 130)
    planes = encode_to_planes(bits, SETS, 64)
    assert decodes_to(planes, SETS, to_panels(bits), 130)
    values = getattr(planes, part).view(np.uint8 if part != "scales" else np.uint16)
    # Of a scale an exponent bit: two tables of one half octave may agree on a group.
    values[1, -1, 0] ^= 0x80 if part != "scales" else 0x0400
    assert not decodes_to(planes, SETS, to_panels(bits), 130)


def test_decodes_to_takes_the_shift():
    bits = np.full((3, 2), np.float16(3.0)).view(np.uint16)
    book = load_codebook("paper")
    planes = encode_to_planes(bits, book, 2, shift=1)
    assert decodes_to(planes, book, to_panels(bits), 2, shift=1)
    assert not decodes_to(planes, book, to_panels(bits), 2)
