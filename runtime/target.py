"""The machine a program is compiled for and timed on: sizes, rates and latencies, nothing else.

A ``Target`` is plain data. It comes from a strict mapping (a TOML file, or the target attribute of
a ``pe`` program), so that a misspelt or absurd value is reported instead of silently timed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from speqc.runtime.errors import SpeqcError
from speqc.runtime.strict_values import check_values, is_text


class TargetError(SpeqcError):
    """A target description has a key or a value that no machine can have."""


@dataclass(frozen=True, slots=True)
class Target:
    """One accelerator: a weight-stationary PE array, a vector unit, two SRAMs and a DRAM channel.

    Units stand in the field names. The defaults are the shipped target ``speq-64x64``, whose file
    names the source of each value. ``draft_lanes`` counts the 4-bit weights that one PE holds and
    multiplies per cycle in draft mode; ``weight_sram_banks`` equal banks take one block of a weight
    stream each. A draft lane takes levels of at most ``draft_mantissa_bits`` bits of mantissa. The
    constructor checks nothing; ``from_mapping`` does.
    """

    name: str = "speq-64x64"
    description: str = "64 x 64 PEs at 500 MHz, four 4-bit draft lanes per PE, LPDDR5 at 51.2 GB/s"
    array_rows: int = 64
    array_columns: int = 64
    draft_lanes: int = 4
    draft_mantissa_bits: int = 10
    clock_hz: int = 500_000_000
    dram_bytes_per_second: int = 51_200_000_000
    dram_burst_bytes: int = 64
    dram_latency_ns: int = 100
    weight_sram_bytes: int = 524_288
    weight_sram_banks: int = 8
    activation_sram_bytes: int = 524_288
    vector_lanes: int = 64
    mode_switch_cycles: int = 64
    vector_latency_cycles: int = 8
    dram_energy_picojoules_per_bit: float = 18.75
    sram_energy_picojoules_per_bit: float = 0.43
    array_full_energy_picojoules_per_multiply_add: float = 2.0
    array_draft_energy_picojoules_per_multiply_add: float = 2.0
    vector_energy_picojoules_per_operation: float = 4.6

    @property
    def dram_latency_cycles(self) -> int:
        """Cycles from the end of a DRAM transfer until its data is usable, rounded up."""
        return -(-self.dram_latency_ns * self.clock_hz // 1_000_000_000)

    @property
    def weight_bank_bytes(self) -> int:
        """Capacity of one weight SRAM bank in bytes: the largest block of a stream."""
        return self.weight_sram_bytes // self.weight_sram_banks

    def seconds(self, cycles: int) -> float:
        """Return the time that ``cycles`` take at this clock, in seconds."""
        return cycles / self.clock_hz


# Smallest and largest value of each numeric field. Zero is allowed where it means "for free".
LIMITS: Mapping[str, tuple[int, int]] = {
    "array_rows": (1, 65_536),
    "array_columns": (1, 65_536),
    "draft_lanes": (1, 64),
    "draft_mantissa_bits": (0, 10),
    "clock_hz": (1, 100_000_000_000),
    "dram_bytes_per_second": (1, 10**15),
    "dram_burst_bytes": (1, 65_536),
    "dram_latency_ns": (0, 1_000_000_000),
    "weight_sram_bytes": (1, 2**40),
    "weight_sram_banks": (1, 1024),
    "activation_sram_bytes": (1, 2**40),
    "vector_lanes": (1, 1_048_576),
    "mode_switch_cycles": (0, 1_000_000_000),
    "vector_latency_cycles": (0, 1_000_000),
    "dram_energy_picojoules_per_bit": (0, 10_000),
    "sram_energy_picojoules_per_bit": (0, 10_000),
    "array_full_energy_picojoules_per_multiply_add": (0, 10_000),
    "array_draft_energy_picojoules_per_multiply_add": (0, 10_000),
    "vector_energy_picojoules_per_operation": (0, 10_000),
}

FIELD_NAMES = tuple(field.name for field in fields(Target))

NOT_WHOLE = frozenset(field.name for field in fields(Target) if field.type is float)
"""Fields whose values need not be whole numbers."""


def from_mapping(mapping: Mapping[str, Any], where: str) -> Target:
    """Build a ``Target`` from exactly its fields; ``where`` names the source in error messages.

    Raises TargetError for an unknown or missing key, a wrong type, a value out of range, and a
    weight SRAM that its banks do not divide.
    """
    check_values(mapping, FIELD_NAMES, where, _is_valid, _expectation, error=TargetError)
    target = Target(**mapping)
    if target.weight_sram_bytes % target.weight_sram_banks:
        raise TargetError(
            f"{where}: weight_sram_banks must divide weight_sram_bytes into equal banks, "
            f"got {target.weight_sram_banks} banks of {target.weight_sram_bytes} bytes"
        )
    return target


def _is_valid(key: str, value: object) -> bool:
    if key not in LIMITS:
        return is_text(value)
    numeric = int | float if key in NOT_WHOLE else int
    if isinstance(value, bool) or not isinstance(value, numeric):
        return False
    low, high = LIMITS[key]
    return low <= value <= high


def _expectation(key: str) -> str:
    if key not in LIMITS:
        return "a non-empty string"
    kind = "a number" if key in NOT_WHOLE else "an integer"
    low, high = LIMITS[key]
    return f"{kind} from {low} to {high}"
