"""Copies in storage: what is packed comes back, and products with it are those of the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.dialects.speq import COPY_SHIFTS, View, WeightOp
from speqc.runtime import costs, reference_kernels
from speqc.runtime.copies import Copied, encode_copy, level_differences
from speqc.runtime.copy_formats import COPY_FORMATS, tensor_shift
from speqc.runtime.copy_planes import (
    copy_differences,
    copy_panels,
    copy_tensors,
    pack_copy,
)
from speqc.runtime.matmul import matmul_draft
from speqc.runtime.planes import to_panels
from speqc.runtime.target import Target
from speqc.runtime.weight_traffic import weight_traffic

FORMATS = list(COPY_FORMATS.values())
EVERY = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
SHAPES = pytest.mark.parametrize(("k", "n"), [(1, 1), (64, 64), (130, 65), (100, 190)])


def gaussian(rows, columns, seed=0):
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.05
    return values.astype(np.float16).view(np.uint16)


def columns(panels, n):
    """Panels [NB, rows, 64] as a matrix [rows, n]."""
    return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)[:, :n]


def random_copy(form, k, n, shift, seed):
    """Any nibbles, zero points and scales, the largest and least among them."""
    random = np.random.default_rng(seed)
    groups, known = -(-k // form.group_size), form.scales(shift)
    places = random.integers(0, len(known), (groups, n))
    places[random.random((groups, n)) < 0.1] = len(known) - 1
    places[random.random((groups, n)) < 0.1] = 0
    zeros = random.integers(0, 16 if form.integers else 1, (groups, n)).astype(np.uint8)
    nibbles = random.integers(0, 16, (k, n)).astype(np.uint8)
    return Copied(nibbles, known[places], zeros, form.group_size)


@EVERY
@SHAPES
def test_what_is_packed_comes_back(form, k, n):
    shift = -9 if form.name == "nvfp4" else 0
    copied = random_copy(form, k, n, shift, k + n)
    planes = pack_copy(copied, form, shift)
    panels = copy_differences(planes, form, n)
    expected = level_differences(copied, form)
    assert np.array_equal(columns(panels, n), expected.view(np.uint16))
    assert np.array_equal(columns(form.scale_values(planes.scales, shift), n), copied.scales)
    beyond = columns(panels, 64 * len(panels))[:, n:]
    assert not beyond.any()
    declared = copy_tensors(k, len(panels), form, form.group_size)
    found = {name: (part.dtype, part.shape) for name, part in planes.tensors.items()}
    assert found == declared


@EVERY
def test_stored_bits_are_those_that_are_counted(form):
    """Of a weight of whole blocks and groups, without any padding."""
    k, n = 2 * form.group_size, 128
    planes = pack_copy(random_copy(form, k, n, 0, 1), form)
    stored = sum(part.nbytes for part in planes.tensors.values())
    assert stored * 8 == k * n * 4 + 2 * n * form.group_bits


@EVERY
@SHAPES
def test_panels_are_copied_as_columns_are(form, k, n):
    bits = gaussian(k, n)
    shift = tensor_shift(form.name, int((bits >> 10 & 31).max()))
    planes = copy_panels(to_panels(bits), n, form, form.group_size, shift)
    expected = pack_copy(encode_copy(bits, form, form.group_size, shift), form, shift)
    for name, part in expected.tensors.items():
        assert np.array_equal(planes.tensors[name], part), name


@EVERY
@given(
    k=st.integers(1, 150),
    n=st.integers(1, 130),
    rows=st.integers(1, 6),
    half=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=25, deadline=None)
def test_products_are_those_of_the_reference(form, k, n, rows, half, seed):
    """Bit for bit, with any activation: the definition on what `level_differences` gives."""
    random = np.random.default_rng(seed)
    shift = int(random.choice(COPY_SHIFTS)) if form.name == "nvfp4" else 0
    copied = random_copy(form, k, n, shift, seed)
    planes = pack_copy(copied, form, shift)
    panels = copy_differences(planes, form, n)
    scales = form.scale_values(planes.scales, shift)
    x = random.standard_normal((rows, k)) * np.exp2(random.integers(-12, 8, (rows, 1)))
    x = x.astype(np.float16 if half else np.float32)
    arguments = x, panels, scales, form.group_size, n, np.float32
    fast = matmul_draft(*arguments)
    assert np.array_equal(
        fast.view(np.uint32), reference_kernels.matmul_draft(*arguments).view(np.uint32)
    )
    levels = level_differences(copied, form).astype(np.float32)
    total = np.zeros((rows, n), np.float32)
    with np.errstate(all="ignore"):
        for group in range(len(copied.scales)):
            part = slice(group * form.group_size, (group + 1) * form.group_size)
            sums = reference_kernels.product(x.astype(np.float32)[:, part], levels[part])
            total = total + sums * copied.scales[group].astype(np.float32)
    assert np.array_equal(fast, total, equal_nan=True)


@EVERY
def test_products_with_fp16_activations_are_exact(form):
    """Each level difference times any FP16 number is an FP32 number."""
    activations = np.arange(0, 0x7C00, 7, dtype=np.uint16).view(np.float16)
    zeros = np.arange(16 if form.integers else 1, dtype=np.float16)
    differences = form.levels[:, None] - zeros
    exact = np.multiply.outer(activations.astype(np.float64), differences.astype(np.float64))
    single = np.multiply.outer(activations.astype(np.float32), differences.astype(np.float32))
    assert np.array_equal(exact, single)


def weight(name, group_size):
    from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64

    found = WeightOp("w", "w", "sha256:00", (256, 128))
    found.copy, found.group_size = StringAttr(name), IntegerAttr(group_size, i64)
    found.verify()
    return found


@pytest.mark.parametrize(
    ("name", "group_size", "draft"),
    [
        ("int4", 64, (4, 64, 3, 20)),
        ("int4", 32, (4, 32, 3, 20)),
        ("mxfp4", 32, (4, 32, 1, 8)),
        ("nvfp4", 16, (4, 16, 1, 8)),
    ],
)
def test_traffic_is_that_of_the_copy_or_of_the_fp16_weight(name, group_size, draft):
    declared = weight(name, group_size)
    assert weight_traffic(declared, View.DRAFT) == draft
    assert weight_traffic(declared, View.FULL)[:3] == (16, None, 10)
    target = Target()
    cost = costs.gemm(256, 128, 1, target, **weight_traffic(declared, View.DRAFT)._asdict())
    assert cost.stream_bytes * 8 == 256 * 128 * 4 + 256 // group_size * 128 * draft[3]


@pytest.mark.parametrize(
    ("mantissa_bits", "lanes"), [(0, ()), (1, ("mxfp4", "nvfp4")), (3, COPY_FORMATS)]
)
def test_lanes_take_the_formats_that_they_can_multiply(mantissa_bits, lanes):
    target = Target(draft_mantissa_bits=mantissa_bits)
    for name, form in COPY_FORMATS.items():
        facts = weight_traffic(weight(name, form.group_size), View.DRAFT)._asdict()
        depth = costs.tile_weight(256, 128, target, **facts).depth
        assert depth == target.array_rows * (target.draft_lanes if name in lanes else 1)
