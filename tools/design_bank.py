"""Design exponent sets and draft levels of the `sets` code book: writes runtime/bank_sets.json.

There is a bank for each level set: `free` levels, levels of at most two or one mantissa bits (`m2`,
`m1`), the numbers of OCP FP4 E2M1 (`fp4`), and powers of two (`pow2`).

Weights are taken to follow a unit-scale density. Tables are to leave nearly every code to a weight,
so levels are designed as if all were allowed: random groups of weights each take their best scale,
each level moves to what serves the weights that choose it, and so on. Levels with few mantissa bits
start as rounded multiples of these and move along their grid while that lowers the error.

For a half octave of scales the density gives, for each exponent field of w and each set of codes
that might own it, the expected squared error of the nearest allowed level, where what is aimed at
misses w a little (runtime/table_choice.py). A table is a choice of one set of codes for each
exponent such that no code owns more than four. It is found by local search: two exponents share
out their slots anew in the best of all ways, until no pair gains. One wide table holds all
exponents up to the largest that may occur. Tight ones hold fewer, and there are many of them:
random groups each go to the table that is best for them, the tables are designed anew for the
groups that they have, and so on.

Everything is deterministic, and takes some three minutes.
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
    TABLES,
    CodeBook,
    format_table,
    load_codebook,
    sets_book,
)
from speqc.runtime.table_choice import missed_errors

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
"""Share of exact zeros where tight tables hold them (scales with exponent field up to 11)."""
WIDE_ZEROS = 1 / 128
WIDE_TINY = 1 / 128
"""A group of 64 takes the wide table because some weight is zero or tiny: half a weight of each."""
TINY = 2.0**-9

DESIGNED_FIELDS = range(30)
"""Scale exponent fields with designed tables. From 30 on (s >= 32768) the bijection stays."""
TIGHT_OCTAVES = 11
"""Octaves below the scale's own that tight tables hold."""
TIGHT_FIELDS = range(TIGHT_OCTAVES + 2)
"""Scale exponent fields with own tight tables; the last one's, moved up, serve larger scales."""
GROUP, GROUPS = 64, 4096
"""Random groups of weights that tight tables are designed for."""
SORTINGS, RESORTINGS = 12, 3
"""Times that groups are sorted to tables and these designed anew: for the last of the fields above,
and for each other one, which begins with the tables of the next."""
LEAST_GROUPS = 8
"""A table with fewer groups begins anew, with a random one."""
COMMON = 1e-3
"""Share of all groups in what a table is designed for, so that it has all exponents."""
FIRST_LEVELS = (0.05, 0.25, 0.5, 0.85, 1.25, 1.7, 2.25, 3.1)
LEVEL_GROUPS = 4096
"""Random groups of weights that levels are designed for."""
SCALE_FACTORS = 2.0 ** (np.arange(-8, 9) / 16)
"""Scales that a group may take before its least-squares step, over what its rms suggests."""
MOST_ROUNDS = 400
SETTLED = 1e-4

MANTISSA_BITS = {"m2": 2, "m1": 1, "pow2": 0}
"""Level sets that are searched on a grid: mantissa bits of its numbers."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_OCTAVE = 1
"""Weights that fill E2M1's levels have an rms near two scales."""
STARTS, DESCENTS = 16, 4
"""Multiples of the free levels, spread over an octave, that a search on a grid may start from, and
how many of them it does start from."""

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
        return range(max(0, field - TIGHT_OCTAVES), min(field + 3, EXPONENTS - 1))
    return range(min(field + 4, EXPONENTS - 1))


def octave_costs(density: FloatArray, levels: FloatArray, rms: float = 1.0) -> list[FloatArray]:
    """For each half, the expected error [octave j of w / 2^(field - 15), set of codes].

    Row j holds the weights with 2^j <= |u| m < 2^(j + 1), averaged over the scale mantissas m of
    the half (uniform in log m); the first row is j = LOWEST.
    """
    nearest = density * missed_errors(grid_points(), levels, rms)
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


def design_table(costs: FloatArray, start: IntArray | None = None) -> IntArray:
    """The best table that local search finds, from a table or from plain ones: sets of codes."""
    rank = np.arange(len(costs))
    plain = (rank // SLOTS, CODES - 1 - rank // SLOTS, rank % CODES)
    starts = [1 << codes for codes in plain] if start is None else [start]
    found = [improve(costs, start) for start in starts]
    return fill(min(found, key=lambda owners: table_cost(costs, owners)))


def fill(owners: IntArray) -> IntArray:
    """Give slots that the density has no use for to the largest exponents that lack the code."""
    owners = owners.copy()
    for code in range(CODES):
        lacking = np.flatnonzero(MEMBERS[owners, code] == 0)[::-1]
        owners[lacking[: SLOTS - MEMBERS[owners, code].sum()]] |= 1 << code
    return owners


@cache
def level_groups() -> FloatArray:
    """Magnitudes of random weights with unit variance, float64[groups, 64]."""
    random = np.random.default_rng(0)
    weights = random.standard_t(DEGREES, (LEVEL_GROUPS, GROUP))
    return np.abs(weights) * np.sqrt((DEGREES - 2) / DEGREES)


def fit_scales(levels: Levels) -> tuple[FloatArray, FloatArray, IntArray]:
    """The best scale of each group of `level_groups`, its squared error, and the weights' codes."""
    weights = level_groups()
    middles = (levels.values[1:] + levels.values[:-1]) / 2
    usual = np.sqrt(np.mean(weights**2, axis=1)) / levels.scales
    scales, errors = np.empty(len(weights)), np.full(len(weights), np.inf)
    codes = np.empty(weights.shape, np.int64)
    for factor in SCALE_FACTORS:
        chosen = np.searchsorted(middles, weights / (usual * factor)[:, None])
        drafts = levels.values[chosen]
        scale = np.sum(weights * drafts, axis=1) / np.sum(drafts**2, axis=1)
        error = np.sum((weights - scale[:, None] * drafts) ** 2, axis=1)
        better = error < errors
        scales[better], errors[better], codes[better] = scale[better], error[better], chosen[better]
    return scales, errors, codes


def error(levels: Levels) -> float:
    """Mean squared error of `level_groups` with all codes allowed."""
    return float(fit_scales(levels)[1].mean()) / GROUP


def with_rms(levels: Levels) -> Levels:
    """The same levels with the rms that weights have in units of the scales that suit them."""
    scales = fit_scales(levels)[0]
    rms = float(np.mean(np.sqrt(np.mean(level_groups() ** 2, axis=1)) / scales))
    return in_octave(replace(levels, rms=rms / 2.0**levels.octave))


def fit_levels(progress: Callable[[str], None]) -> FloatArray:
    """Alternate scales and levels until these settle; they end as FP16 values."""
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
    """One round: the levels that suit the weights that choose them; in units of these' rms."""
    scales, _, codes = fit_scales(Levels(levels))
    scales = np.repeat(scales, GROUP)
    moments = np.bincount(codes.reshape(-1), scales * level_groups().reshape(-1), CODES)
    found = Levels(moments / np.bincount(codes.reshape(-1), scales**2, CODES))
    rms = with_rms(found)
    return found.values / rms.scales


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


def neighbours(levels: Levels, bits: int) -> Iterator[Levels]:
    """Level sets with one level moved along its grid; the lowest one may also become zero."""
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


def descend(levels: Levels, bits: int) -> Levels:
    """Go to the best neighbour while that lowers the error."""
    least = error(levels)
    while True:
        found = {error(other): other for other in neighbours(levels, bits)}
        if min(found) >= least - LEAST_GAIN:
            return levels
        least = min(found)
        levels = found[least]


def search_levels(free: FloatArray, bits: int) -> Levels:
    """The best levels with so many mantissa bits that searches from multiples of `free` find."""
    factors = 2.0 ** (np.arange(STARTS) / STARTS - 0.5)
    starts = [Levels(on_grid(free * factor, bits), 0, float(factor)) for factor in factors]
    best = sorted(starts, key=error)[:DESCENTS]
    return with_rms(min((descend(start, bits) for start in best), key=error))


def design_level_sets(progress: Callable[[str], None]) -> dict[str, Levels]:
    """The levels of every set, by name."""
    sets = {"free": with_rms(Levels(fit_levels(progress)))}
    for name, bits in MANTISSA_BITS.items():
        sets[name] = search_levels(sets["free"].values, bits)
    sets["fp4"] = with_rms(Levels(np.array(E2M1), E2M1_OCTAVE))
    assert np.array_equal(sets["fp4"].values, E2M1)
    for name, levels in sets.items():
        places = f"{' '.join(map(str, levels.values))}, rms {levels.rms:.3f}"
        progress(f"{name}: {places}, error {error(levels):.5f}")
    return sets


@dataclass(frozen=True)
class Tables:
    """The tables of a bank, by 2 * exponent field of the scale + first bit of its mantissa.

    `wide` has a text for each class, `tight` several, or one where scales are subnormal.
    """

    wide: dict[str, str]
    tight: dict[str, list[str]]


def wide_table(levels: Levels, field: int, half: int) -> str:
    """The wide table of a class as text, exponents of each code in ascending order."""
    costs = octave_costs(unit_density("wide", levels.rms), levels.scaled, levels.rms)[half]
    fields = fields_of_class("wide", field + levels.octave)
    return table_text(fields, design_table(class_costs(costs, fields, field + levels.octave)))


def wide_tables(levels: Levels) -> dict[str, str]:
    """`wide_table` of all designed classes."""
    return {
        str(2 * field + half): wide_table(levels, field, half)
        for field in DESIGNED_FIELDS
        for half in range(len(HALVES))
    }


def group_costs(levels: Levels, half: int) -> FloatArray:
    """What each set of codes costs random groups, float32[groups, octave, set].

    Octaves are those of w / 2^(field - 15). The first is that below the tight tables', with all
    smaller weights; the last is the third. A set costs nothing where a group has no weight.
    Groups with larger weights are left out.
    """
    random = np.random.default_rng(half)
    shares = np.cumsum(unit_density("tight", levels.rms))
    cells = np.searchsorted(shares, random.random((GROUPS, GROUP)) * shares[-1])
    octaves = (cells + random.integers(*HALVES[half], (GROUPS, 1))) // STEPS + LOWEST
    usual = np.all(octaves <= 2, axis=1)
    cells, rows = cells[usual], np.maximum(octaves[usual] + TIGHT_OCTAVES + 1, 0)
    errors = missed_errors(grid_points(), levels.scaled, levels.rms).astype(np.float32).T
    errors[:, 0] = 1e3
    costs = np.zeros((len(cells), TIGHT_OCTAVES + 4, len(SUBSETS)), np.float32)
    for place in range(GROUP):
        costs[np.arange(len(cells)), rows[:, place]] += errors[cells[:, place]]
    return costs / GROUP


def tight_tables(levels: Levels, half: int, lowest: int = 0) -> dict[int, list[IntArray]]:
    """Tight tables for scales of 2^(field - 15), for the `TIGHT_FIELDS` from `lowest` on."""
    costs = group_costs(levels, half)
    highest = TIGHT_FIELDS[-1]
    inside = costs[:, 0].max(axis=1) == 0
    random = np.random.default_rng(half)
    tables = sorted_tables(costs[inside, 1:], None, SORTINGS, random)
    found = {highest: tables}
    for field in range(highest - 1, lowest - 1, -1):
        below = highest - field
        merged = np.concatenate(
            [costs[:, : below + 1].sum(axis=1, keepdims=True), costs[:, below + 1 :]], axis=1
        )
        if field < highest - 1:
            tables = [np.append(owners[0] | owners[1], owners[2:]) for owners in tables]
        tables = sorted_tables(merged, tables, RESORTINGS, random)
        found[field] = tables
    return found


def sorted_tables(
    costs: FloatArray, tables: list[IntArray] | None, times: int, random: np.random.Generator
) -> list[IntArray]:
    """Tables for groups that each go to the best one (Lloyd's method). The first serves all."""
    common = costs.mean(axis=0, dtype=np.float64)

    def begin() -> IntArray:
        return design_table(costs[random.integers(len(costs))] + COMMON * common)

    if tables is None:
        tables = [design_table(common), *(begin() for _ in range(TABLES - 2))]
    tables = list(tables)
    for _ in range(times):
        best = np.argmin([table_costs(costs, owners) for owners in tables], axis=0)
        for number, owners in enumerate(tables):
            groups = costs[best == number] if number else costs
            if len(groups) < LEAST_GROUPS:
                tables[number] = begin()
            else:
                mean = groups.mean(axis=0, dtype=np.float64)
                tables[number] = design_table(mean + COMMON * common, owners)
    return tables


def table_costs(costs: FloatArray, owners: IntArray) -> FloatArray:
    """What a table costs each group."""
    return costs[:, np.arange(len(owners)), owners].sum(axis=1)


def table_text(fields: range, owners: IntArray) -> str:
    """Write a table the way the bank keeps it."""
    return format_table(
        [
            [field for field, codes in zip(fields, owners, strict=True) if codes >> code & 1]
            for code in range(CODES)
        ]
    )


def design_tables(levels: Levels) -> Tables:
    """All tables of a level set."""
    tight: dict[str, list[str]] = {}
    for half in range(len(HALVES)):
        tables = tight_tables(levels, half)
        for scale in TIGHT_FIELDS:
            field = scale + levels.octave
            fields = fields_of_class("tight", field)
            own = tables[min(field, TIGHT_FIELDS[-1])]
            own = own if scale else own[:1]
            tight[str(2 * scale + half)] = [table_text(fields, owners) for owners in own]
    return Tables(wide_tables(levels), tight)


def bank_book(levels: Levels, tables: Tables) -> CodeBook:
    """The code book of a bank."""
    return sets_book("sets", levels.values, tables.wide, tables.tight, levels.octave, levels.scales)


def encoded_snr(book: CodeBook, group_size: int) -> float:
    """SNR in dB of Gaussian weights that went through the codec with this book."""
    weights = np.random.default_rng(0).standard_normal((4096, 256)) * 0.02
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
    """The code books of another file of banks: this script's, or with one table for each sign.

    The latter have `classes`, with sign, exponent and first mantissa bit of the scale as keys, and
    lists of exponents.
    """
    other = json.loads(path.read_text("utf-8"))
    for name, design in other.get("level_sets", other.get("banks", {})).items():
        if "classes" in design:
            classes = {int(key): format_table(table) for key, table in design["classes"].items()}
            wide = {str(key): table for key, table in classes.items() if key < 2 * EXPONENTS}
            tight = {key: [classes[int(key) + 2 * EXPONENTS]] for key in wide}
        else:
            wide, tight = design["wide"], design["tight"]
        octave, rms = design.get("octave", 0), design.get("rms", 1.0)
        yield name, sets_book(name, design["levels"], wide, tight, octave, rms)


def bank_text(sets: dict[str, tuple[Levels, Tables]]) -> str:
    """The banks as JSON."""
    about = (
        "Scale-indexed exponent sets, written by tools/design_bank.py. Keys are 2 * exponent field"
        " + first mantissa bit of the FP16 scale; a table has a word for each code, a base-32 digit"
        " for each slot. wide: table 0; tight: tables 1 to 15, by the scale's sign and last three"
        " mantissa bits, or one for all negative scales; those of the last field, moved up, serve"
        " larger scales too. Weights stay under 2^(3 + octave) scales; rms: what theirs is near."
    )
    banks = {
        name: {
            "levels": levels.values.tolist(),
            "octave": levels.octave,
            "rms": levels.scales,
            "wide": tables.wide,
            "tight": tables.tight,
        }
        for name, (levels, tables) in sets.items()
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
        name: (levels, design_tables(levels)) for name, levels in design_level_sets(print).items()
    }
    arguments.output.write_text(bank_text(sets), encoding="utf-8")
    for name, (levels, tables) in sets.items():
        print(f"{name}: {encoded_snr(bank_book(levels, tables), 64):.2f} dB")
    if arguments.compare:
        for name, book in compared(arguments.compare):
            print(f"{arguments.compare.name} {name}: {encoded_snr(book, 64):.2f} dB")


if __name__ == "__main__":
    main()
