"""Formats of separate 4-bit copies: what a draft reads where it reads no slice of the FP16 bits.

A copy has a nibble for each weight, and for each group of weights along K of a column a scale and,
in `int4`, a zero point. Its value is (level[nibble] - zero) * scale. Level differences are FP16
numbers, so that their products with FP16 activations are exact in FP32; scales are FP16 numbers
whatever their format, so that the machine multiplies by just what stands in the copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from speqc.dialects.speq import COPIES, COPY_SHIFTS
from speqc.runtime.errors import SpeqcError

NIBBLES = 16

COPY_LEVELS = "copy.levels"
"""The tensor of an artifact's weights that holds `CopyFormat.levels`."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E8M0_BIAS = 127
_E4M3_CODES = range(1, 127)
_HALF_EXPONENTS = range(-24, 16)


@dataclass(frozen=True, eq=False)
class CopyFormat:
    """One format.

    Attributes:
        name: what `--draft-format` and `speq.weight` call it.
        levels: float16[16], what each nibble means; FP4 nibbles are sign << 3 | code.
        group_size: weights along K that share a scale, unless another number is chosen.
        scale_bits: of a scale; `zero_bits`: of a zero point, 0 where there is none.
        mantissa_bits: that a multiplier needs for level differences, behind the leading one.
        first_code: of the scales that `scales` lists, which have one code after another.
    """

    name: str
    levels: NDArray[np.float16]
    group_size: int
    scale_bits: int
    zero_bits: int
    mantissa_bits: int
    first_code: int

    @property
    def integers(self) -> bool:
        """Whether levels are integers less a zero point, not E2M1 numbers."""
        return self.zero_bits > 0

    @property
    def group_bits(self) -> int:
        """Bits that a group takes beside its nibbles."""
        return self.scale_bits + self.zero_bits

    @property
    def scale_dtype(self) -> np.dtype:
        """What scales are stored as."""
        return np.dtype(np.float16 if self.scale_bits == 16 else np.uint8)

    def scales(self, shift: int = 0) -> NDArray[np.float16]:
        """Every positive scale that there is, ascending; of a tensor scaled by 2^shift."""
        return _scales(self.name, shift)

    def scale_codes(self, scales: NDArray[np.float16], shift: int = 0) -> NDArray:
        """Scales, which must be some of those of `scales`, as they are stored."""
        if self.scale_dtype == np.float16:
            return scales
        places = np.searchsorted(self.scales(shift), scales)
        return (places + self.first_code).astype(np.uint8)

    def scale_values(self, codes: NDArray, shift: int = 0) -> NDArray[np.float16]:
        """What the machine multiplies by: the inverse of `scale_codes`; 0 for all other codes."""
        if self.scale_dtype == np.float16:
            return codes
        values = np.zeros(256, np.float16)
        known = self.scales(shift)
        values[self.first_code : self.first_code + len(known)] = known
        return values[codes]


@cache
def _scales(name: str, shift: int) -> NDArray[np.float16]:
    if name == "int4":
        found = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    elif name == "mxfp4":
        found = np.ldexp(1.0, np.array(_HALF_EXPONENTS)).astype(np.float16)
    else:
        codes = np.array(_E4M3_CODES)
        field, mantissa = codes >> 3, codes & 7
        significand = np.where(field > 0, 8 + mantissa, mantissa)
        found = np.ldexp(significand, np.maximum(field, 1) - 10 + shift).astype(np.float16)
    found.flags.writeable = False
    return found


def _int4() -> CopyFormat:
    """Asymmetric 4-bit integers: (q - z) s, an FP16 scale and a 4-bit zero point for 64 weights.

    What AWQ (Lin et al., arXiv 2306.00978) and GPTQ (Frantar et al., arXiv 2210.17323) store, but
    mostly for groups of 128, 4.156 bits a weight. Groups of 64 are those of `sets`: 4 + 16/64 +
    4/64 = 4.3125 bits. Differences of 4-bit numbers have four bits of magnitude.
    """
    return CopyFormat("int4", np.arange(NIBBLES).astype(np.float16), 64, 16, 4, 3, 1)


def _mxfp4() -> CopyFormat:
    """MXFP4: E2M1 numbers, for 32 of them a power of two in 8 bits (E8M0).

    OCP Microscaling Formats (MX) Specification v1.0, sections 5.3.3, 5.4.1 and 6.3: 4.25 bits a
    weight. Powers beyond FP16 are not used: none below 2^-24 could hold an FP16 weight any better,
    nor one above 2^14, four times which no FP16 weight reaches.
    """
    first = _HALF_EXPONENTS.start + _E8M0_BIAS
    return CopyFormat("mxfp4", _e2m1(), COPIES["mxfp4"] or 0, 8, 0, 1, first)


def _nvfp4() -> CopyFormat:
    """NVFP4: E2M1 numbers, for 16 of them an E4M3 number, and an FP32 scale for the tensor.

    NVIDIA, "Introducing NVFP4" (2025) and the Transformer Engine: 4.5 bits a weight. The tensor's
    scale is a power of two, so that its products with group scales are exact; E4M3 has 15 octaves
    of normal numbers, so that nothing is lost by not choosing it more finely.
    """
    return CopyFormat("nvfp4", _e2m1(), COPIES["nvfp4"] or 0, 8, 0, 1, _E4M3_CODES.start)


def _e2m1() -> NDArray[np.float16]:
    positive = np.array(_E2M1, np.float16)
    return np.concatenate([positive, -positive])


COPY_FORMATS: Mapping[str, CopyFormat] = {
    found.name: found for found in (_int4(), _mxfp4(), _nvfp4())
}
"""The formats by name."""


def copy_format(name: str) -> CopyFormat:
    """The format of that name; raises SpeqcError where there is none."""
    if name not in COPY_FORMATS:
        raise SpeqcError(f"unknown format of a copy {name!r}: choose one of {', '.join(COPIES)}")
    return COPY_FORMATS[name]


def copy_group_size(name: str, wanted: int | None) -> int:
    """Weights along K that share a scale: as wanted, or those of the format.

    Raises SpeqcError where a format has groups of its own and others are wanted.
    """
    found = copy_format(name)
    fixed = COPIES[name]
    if fixed is not None and wanted not in (None, fixed):
        raise SpeqcError(f"{name} has groups of {fixed}: leave the group size out, or give {fixed}")
    return wanted or found.group_size


def tensor_shift(name: str, largest_exponent: int) -> int:
    """The power of two that scales a tensor whose largest FP16 exponent field is the one given.

    In `nvfp4` the one that this exponent shows to suffice for the scales of groups, peak / 6, to be
    at most 448, E4M3's largest, within `COPY_SHIFTS`. The others have no scale for a tensor.
    """
    if name != "nvfp4":
        return 0
    # |w| < 2^(field - 14), and 6 * 448 > 2^11.
    wanted = largest_exponent - 14 - 11
    return min(max(wanted, COPY_SHIFTS.start), COPY_SHIFTS.stop - 1)
