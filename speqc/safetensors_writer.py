"""Writes a safetensors file piece by piece.

The format is a header (8 bytes of length, then JSON) and the tensors' bytes without gaps. All sizes
are known beforehand, so the header comes first, and no tensor has to be in memory as a whole.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""The tensors' bytes start at a multiple of this: one DRAM burst, one cache line."""

DTYPE_NAMES: Mapping[np.dtype, str] = {
    np.dtype(dtype): name
    for dtype, name in (
        (np.bool_, "BOOL"),
        (np.uint8, "U8"),
        (np.int8, "I8"),
        (np.uint16, "U16"),
        (np.int16, "I16"),
        (np.float16, "F16"),
        (ml_dtypes.bfloat16, "BF16"),
        (np.uint32, "U32"),
        (np.int32, "I32"),
        (np.float32, "F32"),
        (np.uint64, "U64"),
        (np.int64, "I64"),
        (np.float64, "F64"),
    )
}
"""How the format calls a type."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file to be."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """A safetensors file with a known list of tensors, filled in any order by any threads."""

    def __init__(self, path: Path, entries: Sequence[Entry]):
        """Create the file; raises ValueError where two entries have one name."""
        self._offsets: dict[str, tuple[Entry, int]] = {}
        header: dict[str, object] = {}
        end = 0
        for entry in entries:
            if entry.name in header:
                raise ValueError(f"two tensors have the name {entry.name!r}")
            header[entry.name] = {
                "dtype": DTYPE_NAMES[entry.dtype],
                "shape": entry.shape,
                "data_offsets": (end, end + entry.size),
            }
            self._offsets[entry.name] = entry, end
            end += entry.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._start = 8 + len(text)
        self._lock = threading.Lock()
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)

    def write(self, name: str, part: NDArray, first: int = 0) -> None:
        """Put `part` into a tensor at index `first` of its first dimension."""
        entry, offset = self._offsets[name]
        assert part.dtype == entry.dtype and part.shape[1:] == entry.shape[1:]
        stride = prod(entry.shape[1:]) * entry.dtype.itemsize
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        with self._lock:
            self._file.seek(self._start + offset + first * stride)
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
