"""Design exponent sets and draft levels of the `sets` code book: writes runtime/bank_sets.json.

A weight divided by the scale of its group, u = w / s, is taken to follow a unit-scale density. For
a class of scales (an exponent field and a half octave of mantissas) that gives, for each exponent
field of w and each set of codes that might own it, the expected squared error of the nearest
allowed level. A table is a choice of one set of codes for each exponent such that no code owns more
than four. It is found by local search: two exponents share out their slots anew in the best of all
ways, until no pair gains; the best of a few starting points is kept. Levels are found by
alternating: tables for the levels, then each level moves to the mean of the |u| that choose it.

Everything is deterministic. Run: python tools/design_bank.py [--output FILE] [--compare FILE]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import draft_snr_db, encode
from speqc.runtime.codebook import (
    CLASSES,
    CODES,
    EXPONENTS,
    SLOTS,
    UNUSED,
    CodeBook,
    format_table,
    parse_table,
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


def unit_density(kind: str) -> FloatArray:
    """Probability of each grid cell of |u| for groups that use `tight` or `wide` tables.

    Exact zeros are put into the lowest cell.
    """
    width = np.diff(grid_edges())
    spread = np.sqrt((DEGREES - 2) / DEGREES)
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


def design_class(kind: str, field: int, half: int, levels: FloatArray) -> str:
    """The designed table of one class as text, exponents of each code in ascending order."""
    fields = fields_of_class(kind, field)
    costs = octave_costs(unit_density(kind), levels)[half]
    return table_text(fields, design_table(class_costs(costs, fields, field)))


def table_text(fields: range, owners: IntArray) -> str:
    """Write a table the way the bank keeps it."""
    return format_table(
        [
            [field for field, codes in zip(fields, owners, strict=True) if codes >> code & 1]
            for code in range(CODES)
        ]
    )


def design_classes(levels: FloatArray) -> dict[str, str]:
    """Tables for all designed classes, by class index."""
    tables = {}
    for kind in ("wide", "tight"):
        costs = octave_costs(unit_density(kind), levels)
        for field in DESIGNED_FIELDS:
            fields = fields_of_class(kind, field)
            for half in range(len(HALVES)):
                owners = design_table(class_costs(costs[half], fields, field))
                tables[str(class_index(kind, field, half))] = table_text(fields, owners)
    return tables


def expected_snr(kind: str, half: int, levels: FloatArray, table: list[list[int]]) -> float:
    """Expected SNR in dB of a table for scales with field `LEVEL_FIELD`, under our density."""
    fields = fields_of_class(kind, LEVEL_FIELD)
    owners = np.zeros(len(fields), np.int64)
    for code, owned in enumerate(table):
        for field in owned:
            owners[field - fields.start] |= 1 << code
    density = unit_density(kind)
    costs = class_costs(octave_costs(density, levels)[half], fields, LEVEL_FIELD)
    return float(10 * np.log10((density * grid_points() ** 2).sum() / table_cost(costs, owners)))


def encoded_snr(levels: FloatArray, tables: dict[str, list[list[int]]]) -> float:
    """SNR in dB of Gaussian weights that went through the codec with this bank."""
    exponents = np.empty((CLASSES, CODES, SLOTS), np.uint8)
    exponents[:] = np.arange(EXPONENTS, dtype=np.uint8).reshape(CODES, SLOTS)
    for index, table in tables.items():
        exponents[int(index)] = UNUSED
        for code, owned in enumerate(table):
            exponents[int(index), code, : len(owned)] = owned
    book = CodeBook("sets", 64, levels.astype(np.float16), exponents)
    weights = np.random.default_rng(0).standard_normal((2048, 1024)) * 0.03
    bits = weights.astype(np.float16).view(np.uint16)
    return draft_snr_db(bits, encode(bits, book, book.group_size), book)


def report(name: str, design: dict) -> str:
    """One line on a level set: expected SNR by table, and SNR of encoded Gaussian weights."""
    levels = np.array(design["levels"])
    tables = {
        index: parse_table(table) if isinstance(table, str) else table
        for index, table in design["classes"].items()
    }
    parts = [
        f"{kind}/{half} {expected_snr(kind, half, levels, table):.2f}"
        for kind in LEVEL_SHARES
        for half in range(len(HALVES))
        if (table := tables[str(class_index(kind, LEVEL_FIELD, half))])
    ]
    return f"{name}: expected dB {', '.join(parts)}; Gaussian {encoded_snr(levels, tables):.2f} dB"


def bank_text(levels: FloatArray, classes: dict[str, str]) -> str:
    """The bank as JSON."""
    about = (
        "Scale-indexed exponent sets, written by tools/design_bank.py. classes: for each designed"
        " class (top 7 bits of the FP16 scale) a word for each code, a base-32 digit for each slot."
    )
    free = {"levels": levels.tolist(), "classes": classes}
    return json.dumps({"about": about, "level_sets": {"free": free}}, indent=1) + "\n"


def main() -> None:
    """Design the bank, write it, and say how good it is."""
    parser = argparse.ArgumentParser(description="design the bank of exponent sets")
    default = Path(__file__).resolve().parent.parent / "runtime" / "bank_sets.json"
    parser.add_argument("--output", type=Path, default=default, help="file to write")
    parser.add_argument("--compare", type=Path, help="another bank to print beside this one")
    arguments = parser.parse_args()

    levels = fit_levels(print)
    classes = design_classes(levels)
    arguments.output.write_text(bank_text(levels, classes), encoding="utf-8")
    print("levels", " ".join(f"{level:.4f}" for level in levels))
    print(report("designed", {"levels": levels, "classes": classes}))
    if arguments.compare:
        other = json.loads(arguments.compare.read_text("utf-8"))
        for name, design in other.get("level_sets", other.get("banks", {})).items():
            print(report(f"{arguments.compare.name} {name}", design))


if __name__ == "__main__":
    main()
