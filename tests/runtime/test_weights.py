from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from xdsl.dialects.builtin import IntegerAttr, StringAttr, i64

from speqc.dialects.speq import WeightOp
from speqc.runtime.bsfp import narrowed
from speqc.runtime.codebook import CodeBook, load_codebook
from speqc.runtime.copy_formats import COPY_LEVELS, copy_format
from speqc.runtime.copy_planes import copy_panels
from speqc.runtime.errors import SpeqcError
from speqc.runtime.planes import NIBBLE_PLANES, encode_to_planes, to_panels
from speqc.runtime.weights import Weight, WeightFile

K, N = 100, 70
"""Not whole groups along K, nor whole blocks of 64 along N."""


@pytest.fixture(scope="module")
def values() -> NDArray[np.float16]:
    """Numbers of which none becomes subnormal where a book divides them by a power of two."""
    random = np.random.default_rng(1)
    numbers = 0.1 * random.standard_normal((K, N))
    return np.copysign(np.maximum(np.abs(numbers), 2**-9), numbers).astype(np.float16)


def declare(codebook: str | None, group_size: int = 32, shift: int | None = None) -> WeightOp:
    weight = WeightOp("w", "w", "sha256:00", (K, N))
    if codebook is not None:
        weight.codebook = StringAttr(codebook)
        weight.group_size = IntegerAttr(group_size, i64)
    if shift is not None:
        weight.shift = IntegerAttr(shift, i64)
    weight.verify()
    return weight


def stored(
    path: Path,
    values: NDArray[np.float16],
    codebook: str | CodeBook,
    group_size: int = 32,
    shift: int = 0,
    changes: Mapping[str, NDArray | None] | None = None,
) -> WeightFile:
    """A file with one split weight; `changes` replace or drop `levels` or `exponents`."""
    book = load_codebook(codebook) if isinstance(codebook, str) else codebook
    planes = encode_to_planes(values.view(np.uint16), book, group_size, shift=shift)
    tensors = {f"w.{name}": getattr(planes, name) for name in (*NIBBLE_PLANES, "scales")}
    for name, part in (
        {"levels": book.levels, "exponents": book.exponents} | dict(changes or {})
    ).items():
        if part is not None:
            tensors[f"codebook.{name}"] = part
    save_file(tensors, path / "weights.safetensors")
    return WeightFile(path / "weights.safetensors")


def unpacked(panels: NDArray) -> NDArray[np.float16]:
    """Panels [NB, K, 64] as the matrix [K, N]."""
    return panels.transpose(1, 0, 2).reshape(K, -1)[:, :N].view(np.float16)


@pytest.mark.parametrize(
    ("codebook", "shift"), [("sets", None), ("paper", None), ("naive", None), ("paper", 2)]
)
def test_full_view_is_exact(
    tmp_path: Path, values: NDArray[np.float16], codebook: str, shift: int | None
) -> None:
    scaled = (values * 2 ** (shift or 0)).astype(np.float16)
    weight = Weight(
        declare(codebook, shift=shift), stored(tmp_path, scaled, codebook, shift=shift or 0)
    )
    assert weight.full().shape == (2, K, 64)
    assert np.array_equal(unpacked(weight.full()).view(np.uint16), scaled.view(np.uint16))
    assert not weight.full()[1, :, N - 64 :].any()


@pytest.mark.parametrize(
    ("codebook", "shift", "worst"), [("sets", None, 0.12), ("paper", None, 0.3), ("paper", 2, 0.3)]
)
def test_draft_view_is_near(
    tmp_path: Path,
    values: NDArray[np.float16],
    codebook: str,
    shift: int | None,
    worst: float,
) -> None:
    """Relative error: 18 dB is 0.126; the paper's powers of two have 13 to 15 dB, 0.22 at worst."""
    scaled = (values * 2 ** (shift or 0)).astype(np.float16)
    weight = Weight(
        declare(codebook, shift=shift), stored(tmp_path, scaled, codebook, shift=shift or 0)
    )
    panels, scales = weight.draft()
    assert scales.shape == (2, 4, 64)
    whole = np.repeat(np.abs(scales.astype(np.float64)), 32, axis=1)[:, :K]
    draft = (panels.view(np.float16) * whole).transpose(1, 0, 2).reshape(K, -1)[:, :N]
    error = np.linalg.norm(draft - scaled) / np.linalg.norm(scaled.astype(np.float64))
    assert 0.01 < error < worst


def test_plain_weight(tmp_path: Path, values: NDArray[np.float16]) -> None:
    panels = np.zeros((2, K, 64), np.uint16)
    panels[0], panels[1, :, : N - 64] = (
        values.view(np.uint16)[:, :64],
        values.view(np.uint16)[:, 64:],
    )
    save_file({"w.fp16": panels}, tmp_path / "weights.safetensors")
    weight = Weight(declare(None), WeightFile(tmp_path / "weights.safetensors"))
    assert np.array_equal(unpacked(weight.full()), values)


def test_columns(tmp_path: Path, values: NDArray[np.float16]) -> None:
    weight = Weight(declare("sets"), stored(tmp_path, values, "sets"))
    picked = np.array([[0, 69, 63, 64, 0]])
    found = weight.columns(picked)
    assert found.shape == (1, 5, K)
    assert found.dtype == np.float16
    assert np.array_equal(found[0], values.T[picked[0]])


@pytest.mark.parametrize(("codebook", "shift"), [("sets", None), ("paper", 1)])
@pytest.mark.parametrize(("bits", "mantissa_bits"), [(8, 2), (12, 6)])
def test_wide_view(
    tmp_path: Path,
    values: NDArray[np.float16],
    codebook: str,
    shift: int | None,
    bits: int,
    mantissa_bits: int,
) -> None:
    scaled = (values * 2 ** (shift or 0)).astype(np.float16)
    file = stored(tmp_path, scaled, codebook, shift=shift or 0)
    panels = Weight(declare(codebook, shift=shift), file).wide(bits)
    expected = narrowed(scaled.view(np.uint16), mantissa_bits)
    assert np.array_equal(unpacked(panels).view(np.uint16), expected)


def test_views_are_decoded_once(tmp_path: Path, values: NDArray[np.float16]) -> None:
    weight = Weight(declare("sets"), stored(tmp_path, values, "sets"))
    assert weight.wide(8) is weight.wide(8)
    assert weight.full() is weight.full()
    assert weight.draft()[0] is weight.draft()[0]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpeqcError, match="cannot be read as safetensors"):
        WeightFile(tmp_path / "weights.safetensors")


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(SpeqcError, match="cannot be read as safetensors"):
        WeightFile(path)


def test_missing_tensor(tmp_path: Path, values: NDArray[np.float16]) -> None:
    file = stored(tmp_path, values, "sets")
    with pytest.raises(SpeqcError, match="tensor other is missing"):
        file.read("other")
    with pytest.raises(SpeqcError, match=r"tensor w\.fp16 is missing"):
        Weight(declare(None), file).full()


def test_the_code_book_is_the_file_s(tmp_path: Path, values: NDArray[np.float16]) -> None:
    """Another book of that name, with other tables and levels: the bits mean what the file says."""
    sets = load_codebook("sets")
    other = CodeBook("sets", 64, sets.levels * np.float16(2), sets.exponents[:, ::-1].copy())
    weight = Weight(declare("sets"), stored(tmp_path, values, other))
    assert np.array_equal(unpacked(weight.full()).view(np.uint16), values.view(np.uint16))
    levels = np.unique(np.abs(weight.draft()[0].view(np.float16)))
    assert set(levels[levels > 0]) <= set(other.levels)
    assert not set(levels[levels > 0]) <= set(sets.levels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": None}, r"tensor codebook\.levels is missing"),
        ({"exponents": None}, r"tensor codebook\.exponents is missing"),
        ({"levels": np.zeros(7, np.float16)}, "the code book is damaged"),
        ({"levels": np.zeros(8, np.float32)}, "the code book is damaged"),
        ({"exponents": np.zeros((128, 8), np.uint8)}, "the code book is damaged"),
    ],
)
def test_a_file_without_its_code_book_is_refused(
    tmp_path: Path,
    values: NDArray[np.float16],
    changes: dict[str, NDArray | None],
    message: str,
) -> None:
    file = stored(tmp_path, values, "sets", changes=changes)
    with pytest.raises(SpeqcError, match=message):
        Weight(declare("sets"), file)


def copied(path: Path, values: NDArray[np.float16], **changes: NDArray) -> Weight:
    """A weight with an INT4 copy, of whose tensors some are replaced."""
    form = copy_format("int4")
    declared = WeightOp("w", "w", "sha256:00", (K, N))
    declared.copy, declared.group_size = StringAttr("int4"), IntegerAttr(64, i64)
    planes = copy_panels(to_panels(values.view(np.uint16)), N, form, 64)
    tensors = {f"w.{name}": part for name, part in (planes.tensors | changes).items()}
    save_file({**tensors, COPY_LEVELS: form.levels}, path / "weights.safetensors")
    return Weight(declared, WeightFile(path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("name", "part", "line"),
    [
        ("draft", np.zeros((2, K - 1, 32), np.uint8), r"uint8\[2, 99, 32\], not uint8\[2, 100, 32"),
        ("draft", np.zeros((1, K, 32), np.uint8), r"uint8\[1, 100, 32\], not uint8\[2, 100, 32"),
        ("scales", np.zeros((2, 2, 64), np.uint8), r"uint8\[2, 2, 64\], not float16\[2, 2, 64"),
        ("zeros", np.zeros((2, 1, 32), np.uint8), r"uint8\[2, 1, 32\], not uint8\[2, 2, 32"),
    ],
)
def test_a_copy_of_another_shape_or_type_is_refused(
    tmp_path: Path, values: NDArray[np.float16], name: str, part: NDArray, line: str
) -> None:
    panels, scales = copied(tmp_path, values).draft()
    assert (panels.shape, scales.shape) == ((2, K, 64), (2, 2, 64))
    with pytest.raises(SpeqcError, match=rf"tensor w\.{name} is {line}\]: compile the model again"):
        copied(tmp_path, values, **{name: part}).draft()
