"""The tensors of a model by name: memory-mapped where they lie, with digests and statistics.

IR text holds a tensor's name, type and digest (`onnx.initializer`); its bytes are read here.
Nothing stays in memory between reads, save tensors that the ONNX file embeds.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from speqc.dialects.digests import NO_BYTES
from speqc.runtime.codebook import EXPONENTS, count_exponents

CHUNK = 1 << 20
"""Elements that a scan over a tensor converts at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: what `read` will give, and what a scan found in it.

    `digest` is "none" where nothing has been read, else "sha256:" and the SHA-256 of the little-
    endian bytes in row-major order, after the conversion to `dtype`. FP16 tensors of two or more
    dimensions have `exponents`, the number of values per value of the 5-bit exponent field, and
    `zeros`, the number of zeros of either sign. FP16 tensors of three dimensions, stacks of
    matrices, have the same facts of each in `parts`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    digest: str
    exponents: tuple[int, ...] | None
    zeros: int | None
    source: ir.TensorProtocol
    parts: tuple[tuple[str, tuple[int, ...], int], ...] = ()

    def read(self, part: int | None = None) -> np.ndarray:
        """The whole tensor or one part along its first dimension, row-major and aligned.

        A view of the file if that is possible.
        """
        array = self.source.numpy()
        array = array if part is None else array[part]
        return np.require(_convert(array, self.dtype), requirements=["C", "A"])

    def read_columns(self, start: int, stop: int, part: int | None = None) -> np.ndarray:
        """Columns `start` to `stop` of a matrix [rows, columns], or of one of a stack.

        Aligned; a view of the file if that is possible.
        """
        return np.require(_convert(self._matrix(part)[:, start:stop], self.dtype), None, ["A"])

    def read_rows(self, start: int, stop: int, part: int | None = None) -> np.ndarray:
        """Rows `start` to `stop`, as `read_columns` gives columns."""
        return np.require(_convert(self._matrix(part)[start:stop], self.dtype), None, ["A"])

    def _matrix(self, part: int | None) -> np.ndarray:
        array = self.source.numpy()
        array = array if part is None else array[part]
        if array.ndim != 2:
            raise ValueError(f"tensor '{self.name}' has {len(self.shape)} dimensions, not 2")
        return array


class TensorStore(Mapping[str, StoredTensor]):
    """Name -> `StoredTensor`, in the order in which they were added."""

    def __init__(self, files: tuple[Path, ...] = (), *, scanned: bool = True):
        """`files` are the model's files; where `scanned` is off, no tensor is read when added."""
        self._tensors: dict[str, StoredTensor] = {}
        self._by_content: dict[tuple[str, tuple[int, ...], str], StoredTensor] = {}
        self._by_counts: dict[tuple, list[StoredTensor]] = defaultdict(list)
        self.files = files
        self.scanned = scanned

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
        if not self.scanned:
            shape, dtype = tuple(source.shape.numpy()), dtype or np.dtype(source.dtype.numpy())
            self._tensors[name] = StoredTensor(name, shape, dtype, NO_BYTES, None, None, source)
            return self._tensors[name]
        array = source.numpy()
        dtype = dtype or array.dtype.newbyteorder("=")
        counted = dtype == np.float16 and array.ndim >= 2
        digest, exponents, zeros = _scan(array, dtype, counted)
        parts = tuple(_facts(matrix, dtype) for matrix in array) if _is_stack(array, dtype) else ()
        tensor = StoredTensor(name, array.shape, dtype, digest, exponents, zeros, source, parts)
        first = self._by_content.setdefault((digest, tensor.shape, dtype.str), tensor)
        if first is tensor:
            self._tensors[name] = tensor
            self._by_counts[tensor.shape, exponents, zeros].append(tensor)
        return first

    def transpose_of(self, tensor: StoredTensor) -> StoredTensor | None:
        """A matrix of the store that is the transpose of `tensor`, bit for bit.

        The histogram of exponents, which no order of values changes, says which may be; those are
        compared piece by piece.
        """
        if tensor.exponents is None or len(tensor.shape) != 2:
            return None
        candidates = self._by_counts.get((tensor.shape[::-1], tensor.exponents, tensor.zeros), ())
        return next((other for other in candidates if _is_transpose(other, tensor)), None)

    def read(self, name: str) -> np.ndarray:
        """The whole tensor `name`."""
        return self[name].read()

    def read_columns(self, name: str, start: int, stop: int) -> np.ndarray:
        """Columns `start` to `stop` of the matrix `name`."""
        return self[name].read_columns(start, stop)


def file_digests(paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each file, in hexadecimal; large files side by side."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(file_digest, paths), strict=True))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The elements of a row-major array, `CHUNK` at a time, as vectors.

    Pages of a mapped file are given back behind each, so that a scan keeps little in memory.
    """
    mapped = _mapping(array)
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK]
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array is a view of, where the system lets its pages go."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None


def _convert(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return array if array.dtype == dtype else array.astype(dtype)


def _is_stack(array: np.ndarray, dtype: np.dtype) -> bool:
    return dtype == np.float16 and array.ndim == 3


def _facts(matrix: np.ndarray, dtype: np.dtype) -> tuple[str, tuple[int, ...], int]:
    digest, exponents, zeros = _scan(matrix, dtype, counted=True)
    assert exponents is not None and zeros is not None
    return digest, exponents, zeros


def _scan(
    array: np.ndarray, dtype: np.dtype, counted: bool
) -> tuple[str, tuple[int, ...] | None, int | None]:
    """Digest, exponent histogram and number of zeros in one pass, in two threads."""
    digest = hashlib.sha256()
    counts = np.zeros(EXPONENTS + 1, np.int64)
    with ThreadPoolExecutor(1) as pool:
        for chunk in chunks(array):
            values = np.require(chunk, dtype.newbyteorder("<"), ["C", "A"])
            hashing = pool.submit(digest.update, values.view(np.uint8).data)
            if counted:
                count_exponents(values.view(np.uint16), counts)
            hashing.result()
    name = f"sha256:{digest.hexdigest()}"
    if not counted:
        return name, None, None
    *exponents, zeros = counts.tolist()
    return name, tuple(exponents), zeros


def _is_transpose(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two matrices of transposed shapes have the same bits."""
    rows, columns = first.shape
    step = max(1, CHUNK // max(1, columns))
    return all(
        np.array_equal(
            first.read_rows(start, start + step).view(np.uint16),
            second.read_columns(start, start + step).view(np.uint16).T,
        )
        for start in range(0, rows, step)
    )
