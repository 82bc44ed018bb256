"""The tensors of a model by name: memory-mapped where they lie, with digests and statistics.

IR text holds a tensor's name, type and digest (`onnx.initializer`); its bytes are read here.
Nothing stays in memory between reads, save tensors that the ONNX file embeds.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

CHUNK = 1 << 20
"""Elements that a scan over a tensor converts at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: what `read` will give, and what a scan found in it.

    `digest` is "sha256:" and the SHA-256 of the little-endian bytes in row-major order, after the
    conversion to `dtype`. FP16 tensors of two or more dimensions have `exponents`, the number of
    values per value of the 5-bit exponent field, and `zeros`, the number of zeros of either sign.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    digest: str
    exponents: tuple[int, ...] | None
    zeros: int | None
    source: ir.TensorProtocol

    def read(self) -> np.ndarray:
        """The whole tensor, row-major and aligned; a view of the file if that is possible."""
        return np.require(_convert(self.source.numpy(), self.dtype), requirements=["C", "A"])

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """A copy of columns `start` to `stop` of a matrix [rows, columns]."""
        if len(self.shape) != 2:
            raise ValueError(f"tensor '{self.name}' has {len(self.shape)} dimensions, not 2")
        return np.array(self.source.numpy()[:, start:stop], self.dtype, order="C")


class TensorStore(Mapping[str, StoredTensor]):
    """Name -> `StoredTensor`, in the order in which they were added."""

    def __init__(self, files: tuple[Path, ...] = ()):
        """`files` are the model's files, for `file_digests`."""
        self._tensors: dict[str, StoredTensor] = {}
        self._by_content: dict[tuple[str, tuple[int, ...], str], StoredTensor] = {}
        self._files = files

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def add(
        self, name: str, source: ir.TensorProtocol, dtype: np.dtype | None = None
    ) -> StoredTensor:
        """Scan a tensor and keep a reference to it; `dtype` converts it on every read.

        A tensor equal to one that is already here (exporters duplicate tied weights) is not added:
        the result is then the other, of another name.
        """
        array = source.numpy()
        dtype = dtype or array.dtype.newbyteorder("=")
        counted = dtype == np.float16 and array.ndim >= 2
        digest, exponents, zeros = _scan(array, dtype, counted)
        tensor = StoredTensor(name, array.shape, dtype, digest, exponents, zeros, source)
        first = self._by_content.setdefault((digest, tensor.shape, dtype.str), tensor)
        self._tensors[first.name] = first
        return first

    def read(self, name: str) -> np.ndarray:
        """The whole tensor `name`."""
        return self[name].read()

    def read_columns(self, name: str, start: int, stop: int) -> np.ndarray:
        """Columns `start` to `stop` of the matrix `name`."""
        return self[name].read_columns(start, stop)

    def file_digests(self) -> dict[str, str]:
        """SHA-256 of each of the model's files, by file name, as `sha256sum` prints it."""
        return {path.name: file_digest(path) for path in self._files}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The elements of a row-major array, `CHUNK` at a time, as vectors.

    Pages of a mapped file are given back behind each, so that a scan keeps little in memory.
    """
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK]
        if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            array.base.madvise(mmap.MADV_DONTNEED)


def _convert(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return array if array.dtype == dtype else array.astype(dtype)


def _scan(
    array: np.ndarray, dtype: np.dtype, counted: bool
) -> tuple[str, tuple[int, ...] | None, int | None]:
    """Digest, exponent histogram and number of zeros in one pass."""
    digest = hashlib.sha256()
    patterns = np.zeros(1 << 16, np.int64)
    for chunk in chunks(array):
        values = np.ascontiguousarray(chunk, dtype.newbyteorder("<"))
        digest.update(values.view(np.uint8).data)
        if counted:
            patterns += np.bincount(values.view(np.uint16), minlength=1 << 16)
    name = f"sha256:{digest.hexdigest()}"
    if not counted:
        return name, None, None
    exponents = patterns.reshape(2, 32, 1024).sum((0, 2))
    return name, tuple(exponents.tolist()), int(patterns[0] + patterns[0x8000])
