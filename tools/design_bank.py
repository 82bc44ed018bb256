"""Design exponent sets and draft levels of the `sets` code book: writes runtime/bank_sets.json.

There is a bank for each level set: `free` levels, levels of at most two or one mantissa bits (`m2`,
`m1`), the numbers of OCP FP4 E2M1 (`fp4`), and powers of two (`pow2`).

A weight divided by the scale of its group, u = w / s, is taken to follow a unit-scale density. For
a class of scales (an exponent field and a half octave of mantissas) that gives, for each exponent
field of w and each set of codes that might own it, the expected squared error of the nearest
allowed level. A table is a choice of one set of codes for each exponent such that no code owns more
than four. It is found by local search: two exponents share out their slots anew in the best of all
ways, until no pair gains; the best of a few starting points is kept. Levels are found by
alternating: tables for the levels, then each level moves to the mean of the |u| that choose it.
Levels with few mantissa bits start as rounded multiples of these, and move along their grid, with
the rms of u, while that lowers the error. E2M1 has its levels; its rms is searched.

Everything is deterministic, and takes some five minutes.
Run: python tools/design_bank.py [--output FILE] [--compare FILE] [--snr]
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import draft_snr_db, encode
from speqc.runtime.codebook import (
    CODES,
    EXPONENTS,
    LEVEL_SETS,
    SLOTS,
    CodeBook,
    format_table,
    load_codebook,
    sets_book,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEPS = 188
"""Grid points an octave: 110/188 of an octave is a factor of 1.5001, where the classes divide."""
LOWEST, HIGHEST = -32, 4
"""Octaves of |u| that the grid covers."""
HALVES = ((0, 110), (110, STEPS))
"""Scale mantissas of a class (first mantissa bit 0 or 1), in grid steps above a power of two."""

DEGREES = 14
"""Student's t with unit variance: near a Gaussian, with the heavier tails of real weights."""
TIGHT_ZEROS = 1 / 512
"""Share of exact zeros where the tight table holds them (scales with exponent field up to 9)."""
WIDE_ZEROS = 1 / 128
WIDE_TINY = 1 / 128
"""A group of 64 takes the wide table because some weight is zero or tiny: half a weight of each."""
TINY = 2.0**-9

DESIGNED_FIELDS = range(30)
"""Scale exponent fields with designed tables. From 30 on (s >= 32768) the bijection stays."""
LEVEL_FIELD = 12
LEVEL_SHARES = {"tight": 0.9, "wide": 0.1}
"""Levels are fitted to the classes of this field, in the shares in which groups use them."""
FIRST_LEVELS = (0.05, 0.25, 0.5, 0.85, 1.25, 1.7, 2.25, 3.1)
MOST_ROUNDS = 50
SETTLED = 1e-3
LEVEL_STRIDE = 8
"""Every which scale mantissa of the grid counts in a refit of the levels."""

MANTISSA_BITS = {"m2": 2, "m1": 1, "pow2": 0}
"""Level sets that are searched on a grid: mantissa bits of its numbers."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_OCTAVE = 1
"""Weights that fill E2M1's levels have an rms near two scales."""
STARTS, DESCENTS = 16, 4
"""Multiples of the free levels, spread over an octave, that a search on a grid may start from, and
how many of them it does start from."""
RMS_STEP = 2 ** (1 / 32)

LEAST_GAIN = 1e-14
"""Smaller gains are rounding."""

SUBSETS = np.arange(256)
MEMBERS: IntArray = (SUBSETS[:, None] >> np.arange(CODES)) & 1


def grid_edges() -> FloatArray:
    """Edges of the grid cells in |u|."""
    return 2.0 ** (np.arange((HIGHEST - LOWEST) * STEPS + 1) / STEPS + LOWEST)


def grid_points() -> FloatArray:
    """Middles of the grid cells (geometric)."""
    edges = grid_edges()
    return np.sqrt(edges[1:] * edges[:-1])


@dataclass(frozen=True)
class Levels:
    """A level set: its FP16 levels in units of the scale, and what they are designed for.

    `octave` raises the exponents that a class holds: weights reach 2^(3 + octave) scales. `rms` is
    that of the weights, in units of 2^octave scales.
    """

    values: FloatArray
    octave: int = 0
    rms: float = 1.0

    @property
    def scales(self) -> float:
        """The rms of the weights in scales."""
        return self.rms * 2.0**self.octave

    @property
    def scaled(self) -> FloatArray:
        """The levels in units of 2^octave scales."""
        return self.values / 2.0**self.octave


def unit_density(kind: str, rms: float = 1.0) -> FloatArray:
    """Probability of each grid cell of |u| for groups that use `tight` or `wide` tables.

    Exact zeros are put into the lowest cell.
    """
    width = np.diff(grid_edges())
    spread = rms * np.sqrt((DEGREES - 2) / DEGREES)
    body = (1 + (grid_points() / spread) ** 2 / DEGREES) ** (-(DEGREES + 1) / 2) * width
    tiny = np.where(grid_points() < TINY, width, 0)
    zeros, small = (TIGHT_ZEROS, 0.0) if kind == "tight" else (WIDE_ZEROS, WIDE_TINY)
    density = (1 - zeros - small) * body / body.sum() + small * tiny / tiny.sum()
    density[0] += zeros
    return density


def fields_of_class(kind: str, field: int) -> range:
    """Exponent fields that a table holds for scales with this exponent field."""
    if kind == "tight":
        return range(max(0, field - 9), min(field + 3, EXPONENTS - 1))
    return range(min(field + 4, EXPONENTS - 1))


def class_index(kind: str, field: int, half: int) -> int:
    """Place of a class in the code book: sign, exponent and first mantissa bit of the scale."""
    return (64 if kind == "tight" else 0) + 2 * field + half


def octave_costs(density: FloatArray, levels: FloatArray) -> list[FloatArray]:
    """For each half, the expected error [octave j of w / 2^(field - 15), set of codes].

    Row j holds the weights with 2^j <= |u| m < 2^(j + 1), averaged over the scale mantissas m of
    the half (uniform in log m); the first row is j = LOWEST.
    """
    error = density * (grid_points() - levels[:, None]) ** 2
    nearest = np.full((len(SUBSETS), len(density)), np.inf)
    for subset in range(1, len(SUBSETS)):
        lowest = subset & -subset
        nearest[subset] = np.minimum(nearest[subset - lowest], error[lowest.bit_length() - 1])
    nearest[0] = 1.0
    running = np.concatenate([np.zeros((len(SUBSETS), 1)), np.cumsum(nearest, axis=1)], axis=1)
    ends = (np.arange(LOWEST + 1, HIGHEST + 1) - LOWEST) * STEPS
    costs = []
    for first, last in HALVES:
        below = np.mean([running[:, ends - step] for step in range(first, last)], axis=0)
        costs.append(np.diff(below, axis=1, prepend=0).T)
    return costs


def class_costs(costs: FloatArray, fields: range, field: int) -> FloatArray:
    """Expected error [exponent field of w, set of codes] for scales with exponent field `field`.

    Field 0 (zeros and subnormals) gathers all octaves below the normal numbers.
    """
    first = fields.start - field - LOWEST
    table = costs[first : first + len(fields)].copy()
    if fields.start == 0:
        table[0] += costs[:first].sum(axis=0)
    return table


def share_out(one: FloatArray, other: FloatArray, both: int, either: int) -> tuple[int, int, float]:
    """Best sets of codes for two exponents that may share `both` and must divide `either`."""
    part = SUBSETS[(SUBSETS & ~either) == 0]
    total = one[both | part] + other[both | (either ^ part)]
    best = int(total.argmin())
    return int(both | part[best]), int(both | (either ^ part[best])), float(total[best])


def improve(costs: FloatArray, owners: IntArray) -> IntArray:
    """Local search from a valid choice `owners` (set of codes for each exponent)."""
    owners = owners.copy()
    weights = 1 << np.arange(CODES)
    improved = True
    while improved:
        improved = False
        for one in range(len(owners)):
            for other in range(one):
                mine = MEMBERS[owners[one]] + MEMBERS[owners[other]]
                free = SLOTS - MEMBERS[owners].sum(axis=0) + mine
                both, either = int(weights[free >= 2].sum()), int(weights[free == 1].sum())
                first, second, total = share_out(costs[one], costs[other], both, either)
                if total < costs[one, owners[one]] + costs[other, owners[other]] - LEAST_GAIN:
                    owners[one], owners[other] = first, second
                    improved = True
    return owners


def table_cost(costs: FloatArray, owners: IntArray) -> float:
    """Expected squared error of a table."""
    return float(costs[np.arange(len(owners)), owners].sum())


def design_table(costs: FloatArray) -> IntArray:
    """The best table that local search finds: a set of codes for each exponent."""
    rank = np.arange(len(costs))
    starts = (rank // SLOTS, CODES - 1 - rank // SLOTS, rank % CODES)
    found = [improve(costs, 1 << start) for start in starts]
    return fill(min(found, key=lambda owners: table_cost(costs, owners)))


def fill(owners: IntArray) -> IntArray:
    """Give slots that the density has no use for to the largest exponents that lack the code."""
    owners = owners.copy()
    for code in range(CODES):
        lacking = np.flatnonzero(MEMBERS[owners, code] == 0)[::-1]
        owners[lacking[: SLOTS - MEMBERS[owners, code].sum()]] |= 1 << code
    return owners


def fit_levels(progress: Callable[[str], None]) -> FloatArray:
    """Alternate tables and weighted means until the levels settle; they end as FP16 values."""
    levels = np.array(FIRST_LEVELS)
    for round_number in range(MOST_ROUNDS):
        moved = refit_levels(levels)
        change = float(np.abs(moved - levels).max())
        levels = moved
        if change < SETTLED:
            progress(f"levels settled after {round_number + 1} rounds")
            break
    return levels.astype(np.float16).astype(np.float64)


def refit_levels(levels: FloatArray) -> FloatArray:
    """One round: the mean |u| that chooses each level under the tables best for these levels."""
    weight, moment = np.zeros(CODES), np.zeros(CODES)
    for kind, share in LEVEL_SHARES.items():
        density = unit_density(kind)
        costs = octave_costs(density, levels)
        fields = fields_of_class(kind, LEVEL_FIELD)
        for half, (first, last) in enumerate(HALVES):
            owners = design_table(class_costs(costs[half], fields, LEVEL_FIELD))
            for step in range(first, last, LEVEL_STRIDE):
                chosen, used = choices(levels, owners, fields, step)
                mass = density * used * share / STEPS
                weight += np.bincount(chosen, mass, CODES)
                moment += np.bincount(chosen, mass * grid_points(), CODES)
    return moment / weight


def choices(
    levels: FloatArray, owners: IntArray, fields: range, step: int
) -> tuple[IntArray, NDArray[np.bool_]]:
    """Code chosen at each grid point under one scale mantissa, and whether the table holds it."""
    field = (np.arange(len(grid_points())) + step) // STEPS + LOWEST + LEVEL_FIELD
    field = np.maximum(field, 0)
    used = (field >= fields.start) & (field < fields.stop)
    owner = owners[np.clip(field - fields.start, 0, len(fields) - 1)]
    distance = np.abs(grid_points() - levels[:, None])
    chosen = np.where(MEMBERS[owner].T == 1, distance, np.inf).argmin(axis=0)
    return chosen, used


@cache
def grid_error(values: tuple[float, ...], octave: int, rms: float) -> float:
    """Expected squared error over squared rms, under the tight tables best for these levels.

    Weights that these tables do not hold take the nearest level: one rms compares with another.
    """
    levels = Levels(np.array(values), octave, rms)
    fields = fields_of_class("tight", LEVEL_FIELD)
    first = fields.start - LEVEL_FIELD - LOWEST
    total = 0.0
    for costs in octave_costs(unit_density("tight", rms), levels.scaled):
        table = class_costs(costs, fields, LEVEL_FIELD)
        beside = np.delete(costs[:, -1], range(first, first + len(fields)))
        total += table_cost(table, design_table(table)) + beside.sum()
    return total / rms**2


def error(levels: Levels) -> float:
    """`grid_error` of a level set."""
    return grid_error(tuple(levels.values.tolist()), levels.octave, levels.rms)


def below(number: float, bits: int) -> float:
    """The next smaller number with so many mantissa bits."""
    half, exponent = np.frexp(number)
    return number - 2.0 ** (exponent - 1 - bits - (half == 0.5))


def above(number: float, bits: int) -> float:
    """The next larger number with so many mantissa bits."""
    return number + 2.0 ** (np.frexp(number)[1] - 1 - bits)


def on_grid(values: FloatArray, bits: int) -> FloatArray:
    """Numbers rounded to so many mantissa bits, lowered where two would be one."""
    halves, exponents = np.frexp(values)
    rounded = np.ldexp(np.rint(halves * 2 ** (bits + 1)), exponents - bits - 1)
    for code in range(CODES - 2, -1, -1):
        rounded[code] = min(rounded[code], below(rounded[code + 1], bits))
    return rounded


def neighbours(levels: Levels, bits: int | None) -> Iterator[Levels]:
    """Level sets one step away: another rms, or with `bits` one level moved along its grid.

    The lowest one may also become zero.
    """
    for factor in (RMS_STEP, 1 / RMS_STEP):
        yield in_octave(replace(levels, rms=levels.rms * factor))
    if bits is None:
        return
    for code in range(CODES):
        for move in (below, above) if levels.values[code] else ():
            values = levels.values.copy()
            values[code] = move(values[code], bits)
            if np.all(np.diff(values) > 0):
                yield replace(levels, values=values)
    if levels.values[0]:
        yield replace(levels, values=np.array([0.0, *levels.values[1:]]))


def in_octave(levels: Levels) -> Levels:
    """The same levels in units in which the rms is near 1, so that classes hold large weights."""
    if levels.rms > np.sqrt(2):
        return replace(levels, values=levels.values / 2, rms=levels.rms / 2)
    if levels.rms < np.sqrt(0.5):
        return replace(levels, values=levels.values * 2, rms=levels.rms * 2)
    return levels


def descend(levels: Levels, bits: int | None) -> Levels:
    """Go to the best neighbour while that lowers the error."""
    while True:
        best = min(neighbours(levels, bits), key=error)
        if error(best) >= error(levels) - LEAST_GAIN:
            return levels
        levels = best


def search_levels(free: FloatArray, bits: int) -> Levels:
    """The best levels with so many mantissa bits that searches from multiples of `free` find.

    The expected error leads each search; what the codec makes of the results decides.
    """
    factors = 2.0 ** (np.arange(STARTS) / STARTS - 0.5)
    starts = [Levels(on_grid(free * factor, bits), 0, float(factor)) for factor in factors]
    best = sorted(starts, key=error)[:DESCENTS]
    return max([*starts, *(descend(start, bits) for start in best)], key=tried_snr)


def tried_snr(levels: Levels) -> float:
    """SNR in dB of a few Gaussian weights that go through the codec with these levels."""
    classes = design_classes(levels, range(LEVEL_FIELD - 2, LEVEL_FIELD + 3))
    return encoded_snr(bank_book(levels, classes), 64, deviation=2.0 ** (LEVEL_FIELD - 15))


def design_level_sets(progress: Callable[[str], None]) -> dict[str, Levels]:
    """The levels of every set, by name."""
    free = fit_levels(progress)
    sets = {"free": Levels(free)}
    for name, bits in MANTISSA_BITS.items():
        sets[name] = search_levels(free, bits)
        progress(f"{name}: {' '.join(map(str, sets[name].values))}, rms {sets[name].rms:.3f}")
    sets["fp4"] = descend(Levels(np.array(E2M1), E2M1_OCTAVE), None)
    assert np.array_equal(sets["fp4"].values, E2M1)
    progress(f"fp4: rms {sets['fp4'].rms:.3f}")
    return sets


def design_class(kind: str, field: int, half: int, levels: Levels) -> str:
    """The designed table of one class as text, exponents of each code in ascending order."""
    costs = octave_costs(unit_density(kind, levels.rms), levels.scaled)[half]
    return class_text(kind, field + levels.octave, costs)


def class_text(kind: str, field: int, costs: FloatArray) -> str:
    """The table that `octave_costs` give for scales of 2^(field - 15)."""
    fields = fields_of_class(kind, field)
    return table_text(fields, design_table(class_costs(costs, fields, field)))


def table_text(fields: range, owners: IntArray) -> str:
    """Write a table the way the bank keeps it."""
    return format_table(
        [
            [field for field, codes in zip(fields, owners, strict=True) if codes >> code & 1]
            for code in range(CODES)
        ]
    )


def design_classes(levels: Levels, designed: range = DESIGNED_FIELDS) -> dict[str, str]:
    """Tables for the classes of scales with these exponent fields, by class index."""
    tables = {}
    for kind in ("wide", "tight"):
        costs = octave_costs(unit_density(kind, levels.rms), levels.scaled)
        for field in designed:
            for half in range(len(HALVES)):
                text = class_text(kind, field + levels.octave, costs[half])
                tables[str(class_index(kind, field, half))] = text
    return tables


def bank_book(levels: Levels, classes: dict[str, str]) -> CodeBook:
    """The code book of a bank."""
    return sets_book("sets", levels.values, classes, levels.octave, levels.scales)


def encoded_snr(book: CodeBook, group_size: int, deviation: float = 0.02) -> float:
    """SNR in dB of Gaussian weights that went through the codec with this book."""
    weights = np.random.default_rng(0).standard_normal((4096, 256)) * deviation
    bits = weights.astype(np.float16).view(np.uint16)
    return draft_snr_db(bits, encode(bits, book, group_size), book)


def snr_table() -> str:
    """SNR of the shipped level sets on Gaussian weights for each group size, as a table."""
    lines = ["| level set | group 32 | group 64 | group 128 |", "|---|---|---|---|"]
    for name in LEVEL_SETS:
        book = load_codebook("sets", name)
        cells = [f"{encoded_snr(book, size):.2f}" for size in (32, 64, 128)]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(path: Path) -> Iterator[tuple[str, CodeBook]]:
    """The code books of another file of banks, whose tables are texts or lists."""
    other = json.loads(path.read_text("utf-8"))
    for name, design in other.get("level_sets", other.get("banks", {})).items():
        classes = {
            index: table if isinstance(table, str) else format_table(table)
            for index, table in design["classes"].items()
        }
        octave, rms = design.get("octave", 0), design.get("rms", 1.0)
        yield name, sets_book(name, design["levels"], classes, octave, rms)


def bank_text(sets: dict[str, tuple[Levels, dict[str, str]]]) -> str:
    """The banks as JSON."""
    about = (
        "Scale-indexed exponent sets, written by tools/design_bank.py. classes: for each designed"
        " class (top 7 bits of the FP16 scale) a word for each code, a base-32 digit for each slot."
        " Weights stay under 2^(3 + octave) scales; rms: what theirs is near, in scales."
    )
    banks = {
        name: {
            "levels": levels.values.tolist(),
            "octave": levels.octave,
            "rms": levels.scales,
            "classes": classes,
        }
        for name, (levels, classes) in sets.items()
    }
    return json.dumps({"about": about, "level_sets": banks}, indent=1) + "\n"


def main() -> None:
    """Design the banks, write them, and say how good they are."""
    parser = argparse.ArgumentParser(description="design the banks of exponent sets")
    default = Path(__file__).resolve().parent.parent / "runtime" / "bank_sets.json"
    parser.add_argument("--output", type=Path, default=default, help="file to write")
    parser.add_argument("--compare", type=Path, help="other banks to print beside these")
    parser.add_argument(
        "--snr", action="store_true", help="design nothing: print what the shipped banks reach"
    )
    arguments = parser.parse_args()
    if arguments.snr:
        print(snr_table())
        return

    sets = {
        name: (levels, design_classes(levels)) for name, levels in design_level_sets(print).items()
    }
    arguments.output.write_text(bank_text(sets), encoding="utf-8")
    for name, (levels, classes) in sets.items():
        print(f"{name}: {encoded_snr(bank_book(levels, classes), 64):.2f} dB")
    if arguments.compare:
        for name, book in compared(arguments.compare):
            print(f"{arguments.compare.name} {name}: {encoded_snr(book, 64):.2f} dB")


if __name__ == "__main__":
    main()
