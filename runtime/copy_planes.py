"""Storage layout of separate 4-bit copies, in blocks of 64 columns as all weights are.

- draft: uint8[NB, K, 32], two nibbles a byte, the even column in the low one;
- scales: [NB, ceil(K / group_size), 64] as the format stores them, float16 or uint8;
- zeros: uint8[NB, ceil(K / group_size), 32], packed as nibbles are; in formats with zero points.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import BLOCK, for_each, row_weights
from speqc.runtime.copies import Copied, copy_block
from speqc.runtime.copy_formats import NIBBLES, CopyFormat

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@dataclass(frozen=True)
class CopyPlanes:
    """The copy of a weight [K, N] as it is stored; the number of columns N is kept by the caller.

    `zeros` is None in formats without zero points.
    """

    draft: NDArray[np.uint8]
    scales: NDArray
    zeros: NDArray[np.uint8] | None
    group_size: int

    @property
    def tensors(self) -> dict[str, NDArray]:
        """The tensors by what their names in a file end with."""
        found = {"draft": self.draft, "scales": self.scales}
        return found if self.zeros is None else {**found, "zeros": self.zeros}


def copy_tensors(
    k: int, blocks: int, form: CopyFormat, group_size: int
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of each of `CopyPlanes.tensors`."""
    groups, byte = -(-k // group_size), np.dtype(np.uint8)
    found = {
        "draft": (byte, (blocks, k, BLOCK // 2)),
        "scales": (form.scale_dtype, (blocks, groups, BLOCK)),
    }
    if form.zero_bits:
        found["zeros"] = byte, (blocks, groups, BLOCK // 2)
    return found


def copy_panels(
    panels: NDArray[np.uint16], n: int, form: CopyFormat, group_size: int, shift: int = 0
) -> CopyPlanes:
    """Copy n columns of FP16 patterns that lie in panels uint16[NB, K, 64].

    The other arguments, and what is raised, are those of `copies.encode_copy`.
    """
    k = panels.shape[1]
    weights = row_weights(None, k)
    blocks: list[Copied | None] = [None] * len(panels)

    def fill(block: int) -> None:
        part = panels[block, :, : n - block * BLOCK]
        blocks[block] = copy_block(part, form, group_size, shift, weights)

    for_each(range(len(panels)), fill)
    return pack_copies([block for block in blocks if block is not None], n, form, shift)


def pack_copy(copied: Copied, form: CopyFormat, shift: int = 0) -> CopyPlanes:
    """Lay a copy [K, N] out for storage."""
    n = copied.nibbles.shape[1]
    parts = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    blocks = [
        Copied(
            _padded(copied.nibbles[:, part]),
            _padded(copied.scales[:, part]),
            _padded(copied.zeros[:, part]),
            copied.group_size,
        )
        for part in parts
    ]
    return pack_copies(blocks, n, form, shift)


def pack_copies(blocks: list[Copied], n: int, form: CopyFormat, shift: int = 0) -> CopyPlanes:
    """Lay blocks of 64 columns, n in all, out for storage; all bits beyond are zero."""
    scales = np.stack([form.scale_codes(block.scales, shift) for block in blocks])
    scales[-1, :, n - (len(blocks) - 1) * BLOCK :] = 0
    zeros = np.stack([_packed(block.zeros) for block in blocks]) if form.zero_bits else None
    draft = np.stack([_packed(block.nibbles) for block in blocks])
    return CopyPlanes(draft, scales, zeros, blocks[0].group_size)


def copy_differences(planes: CopyPlanes, form: CopyFormat, n: int) -> NDArray[np.uint16]:
    """FP16 patterns of level[nibble] - zero as panels uint16[NB, K, 64]; zero beyond n columns.

    A group's sum of products with these, times its scale, is a draft partial sum.
    """
    panels = np.zeros((*planes.draft.shape[:2], BLOCK), np.uint16)
    table = (form.levels[None] - np.arange(NIBBLES, dtype=np.float16)[:, None]).view(np.uint16)
    none = np.zeros((-(-planes.draft.shape[1] // planes.group_size), BLOCK // 2), np.uint8)

    def fill(block: int) -> None:
        zeros = none if planes.zeros is None else planes.zeros[block]
        columns = min(BLOCK, n - block * BLOCK)
        _look_up(planes.draft[block], zeros, planes.group_size, table, columns, panels[block])

    for_each(range(len(panels)), fill)
    return panels


def _packed(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Nibbles [rows, 64] as bytes [rows, 32]."""
    return nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)


def _padded(part: NDArray) -> NDArray:
    padded = np.zeros((len(part), BLOCK), part.dtype)
    padded[:, : part.shape[1]] = part
    return padded


@_jit
def _look_up(draft, zeros, size, table, columns, panel):
    """Fill a panel from packed nibbles and zero points; `table` is uint16[zero, nibble]."""
    for k in range(draft.shape[0]):
        group = k // size
        for n in range(columns):
            place = (n & 1) * 4
            zero = zeros[group, n >> 1] >> place & 0xF
            panel[k, n] = table[zero, draft[k, n >> 1] >> place & 0xF]
