"""The tensors of an artifact, and the panels of weights that kernels compute with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from speqc.dialects.speq import WeightOp
from speqc.runtime.bsfp import BLOCK
from speqc.runtime.codebook import (
    CLASSES,
    CODEBOOK_EXPONENTS,
    CODEBOOK_LEVELS,
    CODES,
    SLOTS,
    CodeBook,
)
from speqc.runtime.copy_formats import COPY_LEVELS, NIBBLES, CopyFormat, copy_format
from speqc.runtime.copy_planes import CopyPlanes, copy_differences, copy_tensors
from speqc.runtime.errors import SpeqcError
from speqc.runtime.planes import (
    NIBBLE_PLANES,
    Planes,
    draft_panels,
    full_panels,
    wide_panels,
)


class WeightFile:
    """The memory-mapped `weights.safetensors` of an artifact.

    A split weight NAME stands as NAME.draft, NAME.leading, NAME.middle, NAME.low and NAME.scales
    (see `planes`), one kept as FP16 as NAME.fp16 (uint16[NB, K, 64] patterns), and one with a copy
    as that and NAME.draft, NAME.scales and NAME.zeros (see `copy_planes`); constants stand
    under their own names. The code book of all split weights stands in two tensors of its own, and
    so do the levels of copies, so that the file says what its bits mean whatever this speqc has.
    """

    def __init__(self, path: Path):
        """Open the file; raises SpeqcError where it is missing or damaged."""
        try:
            self._file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise SpeqcError(f"{path}: cannot be read as safetensors: {error}") from None
        self.path = path
        self.names = frozenset(self._file.keys())
        self._book: CodeBook | None = None

    def read(self, name: str) -> NDArray:
        """The tensor of that name; raises SpeqcError where there is none."""
        if name not in self.names:
            raise SpeqcError(f"{self.path}: tensor {name} is missing: compile the model again")
        return self._file.get_tensor(name)

    def codebook(self, weight: WeightOp) -> CodeBook:
        """The code book of a split weight; raises SpeqcError where the file holds none."""
        assert weight.codebook is not None and weight.group_size is not None
        if self._book is None:
            self._book = self._read_codebook(weight.codebook.data, weight.group_size.value.data)
        return self._book

    def _read_codebook(self, name: str, group_size: int) -> CodeBook:
        levels, exponents = self.read(CODEBOOK_LEVELS), self.read(CODEBOOK_EXPONENTS)
        found = (levels.dtype, levels.shape, exponents.dtype, exponents.shape)
        if found != (np.float16, (CODES,), np.uint8, (CLASSES, CODES, SLOTS)):
            raise SpeqcError(f"{self.path}: the code book is damaged: compile the model again")
        return CodeBook(name, group_size, levels, exponents)

    def planes(self, weight: WeightOp) -> Planes:
        """The planes of a split weight."""
        name = weight.sym_name.data
        assert weight.group_size is not None
        draft, leading, middle, low = (self.read(f"{name}.{plane}") for plane in NIBBLE_PLANES)
        scales = self.read(f"{name}.scales")
        return Planes(draft, leading, middle, low, scales, weight.group_size.value.data)

    def copy_form(self, weight: WeightOp) -> CopyFormat:
        """The format of a weight's copy, with the file's levels; SpeqcError where it has none."""
        assert weight.copy is not None
        levels = self.read(COPY_LEVELS)
        if (levels.dtype, levels.shape) != (np.float16, (NIBBLES,)):
            raise SpeqcError(
                f"{self.path}: the levels of copies are damaged: compile the model again"
            )
        return replace(copy_format(weight.copy.data), levels=levels)

    def copy(self, weight: WeightOp) -> CopyPlanes:
        """The copy of a weight that has one; raises SpeqcError where its tensors are none."""
        assert weight.copy is not None and weight.group_size is not None
        (k, n), size = weight.shape, weight.group_size.value.data
        declared = copy_tensors(k, -(-n // BLOCK), copy_format(weight.copy.data), size)
        found: dict[str, NDArray] = {}
        for part, expected in declared.items():
            name = f"{weight.sym_name.data}.{part}"
            found[part] = tensor = self.read(name)
            if (tensor.dtype, tensor.shape) != expected:
                raise SpeqcError(
                    f"{self.path}: tensor {name} is {tensor.dtype}{list(tensor.shape)}, not "
                    f"{expected[0]}{list(expected[1])}: compile the model again"
                )
        return CopyPlanes(found["draft"], found["scales"], found.get("zeros"), size)

    def copied(self, weight: WeightOp) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        """What a draft multiplies by: panels uint16[NB, K, 64], and scales float16[NB, G, 64].

        The panels have FP16 patterns of each nibble's level less the zero point.
        """
        planes, form = self.copy(weight), self.copy_form(weight)
        shift = 0 if weight.shift is None else weight.shift.value.data
        panels = copy_differences(planes, form, weight.shape[1])
        return panels, form.scale_values(planes.scales, shift)


class Weight:
    """One weight of a program; each view is decoded once, when it is first used."""

    def __init__(self, declaration: WeightOp, file: WeightFile):
        """Raises SpeqcError where the weight is split and the file has no code book."""
        self.declaration = declaration
        self.k, self.n = declaration.shape
        self._file = file
        self._book = file.codebook(declaration) if declaration.is_split else None
        self._full: NDArray[np.uint16] | None = None
        self._draft: NDArray[np.uint16] | None = None
        self._scales: NDArray[np.float16] | None = None
        self._wide: dict[int, NDArray[np.uint16]] = {}

    @property
    def group_size(self) -> int:
        """Weights along K that share a scale."""
        assert self.declaration.group_size is not None
        return self.declaration.group_size.value.data

    def full(self) -> NDArray[np.uint16]:
        """The exact FP16 patterns as panels uint16[NB, K, 64]."""
        if self._full is None:
            self._full = self._decode_full()
        return self._full

    def draft(self) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        """The draft: panels uint16[NB, K, 64] of sign * level, and scales float16[NB, G, 64].

        Of a copy, what `WeightFile.copied` gives.
        """
        if self._draft is None or self._scales is None:
            self._draft, self._scales = self._decode_draft()
        return self._draft, self._scales

    def _decode_draft(self) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
        if self.declaration.copy is not None:
            return self._file.copied(self.declaration)
        assert self._book is not None
        planes = self._file.planes(self.declaration)
        return draft_panels(planes, self._book, self.n), planes.scales

    def wide(self, weight_bits: int) -> NDArray[np.uint16]:
        """The FP16 patterns of the view of 8 or 12 bits as panels uint16[NB, K, 64]."""
        if weight_bits not in self._wide:
            assert self._book is not None
            planes = self._file.planes(self.declaration)
            self._wide[weight_bits] = wide_panels(
                planes, self._book, self.n, weight_bits, self._shift
            )
        return self._wide[weight_bits]

    @property
    def _shift(self) -> int:
        shift = self.declaration.shift
        return 0 if shift is None else shift.value.data

    def columns(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        """The exact columns of these indices [...]: [..., K]."""
        block, column = np.divmod(indices, 64)
        return self.full()[block, :, column].view(np.float16)

    def _decode_full(self) -> NDArray[np.uint16]:
        if self._book is None:
            return self._file.read(f"{self.declaration.sym_name.data}.fp16")
        planes = self._file.planes(self.declaration)
        return full_panels(planes, self._book, self.n, self._shift)
