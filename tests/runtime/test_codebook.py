import json
from pathlib import Path

import numpy as np
import pytest

from speqc.runtime.bsfp import NO_FIT_SCALE, decode, encode
from speqc.runtime.codebook import (
    CODEBOOKS,
    LEVEL_SETS,
    TABLES,
    UNUSED,
    class_of,
    count_exponents,
    fit,
    format_table,
    load_codebook,
    parse_table,
    scale_class,
    table_class,
)
from speqc.runtime.errors import SpeqcError

ROOT = Path(__file__).resolve().parents[2]

# Code (as printed, e3 e2 e1) to exponents, as the paper's table gives them.
PAPER = {
    "001": [0, 1, 2, 3],
    "011": [4, 5, 6, 7],
    "100": [8],
    "000": [9],
    "101": [10],
    "010": [11],
    "110": [12, 13],
    "111": [14, 15],
}
NAIVE = {f"{code:03b}": [2 * code, 2 * code + 1] for code in range(8)}
FIXED = {"paper": PAPER, "naive": NAIVE}


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(SpeqcError, match=r"'bsfp'.*sets, paper, naive"):
        load_codebook("bsfp")


@pytest.mark.parametrize("name", CODEBOOKS)
def test_lookup_tables_agree_with_the_exponents(name):
    book = load_codebook(name)
    _, indices = np.unique(book.exponents, axis=0, return_index=True)
    for index in [*indices[:200].tolist(), 0, 1023]:
        for code in range(8):
            owned = [int(e) for e in book.exponents[index, code] if e != UNUSED]
            assert len(set(owned)) == len(owned)
            assert [int(book.slots[index, code, e]) for e in owned] == list(range(len(owned)))
            assert np.count_nonzero(book.slots[index, code] != UNUSED) == len(owned)
            for exponent in range(32):
                assert bool(book.allowed[index, exponent] >> code & 1) == (exponent in owned)
        for exponent in range(32):
            held = bool(book.held[index] >> np.uint32(exponent) & 1)
            assert held == any(exponent in row for row in book.exponents[index])


def test_books_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        load_codebook("sets").levels[0] = 1


def test_group_sizes():
    assert {name: load_codebook(name).group_size for name in CODEBOOKS} == {
        "sets": 64,
        "paper": 128,
        "naive": 128,
    }


@pytest.mark.parametrize("name", LEVEL_SETS)
def test_sets_tables_hold_what_their_class_promises(name):
    book = load_codebook("sets", name)
    for field in range(30):
        largest = field + book.octave
        wide = sum(1 << e for e in range(min(largest + 4, 31)))
        tight = sum(1 << e for e in range(max(0, largest - 11), largest + 3))
        for half in (0, 1):
            held = [int(book.held[table_class(field, half, table)]) for table in range(TABLES)]
            if field == 0:
                assert held == [wide] * 8 + [tight] * 8
            elif largest + 2 < 31:
                assert held == [wide] + [tight] * 15
            else:
                assert held == [wide] * 16


def test_larger_scales_have_the_same_tight_tables_moved_up():
    book = load_codebook("sets")
    for half in (0, 1):
        for table in range(1, TABLES):
            for field in (13, 20, 28):
                moved = book.exponents[table_class(12, half, table)].astype(int) + field - 12
                assert np.array_equal(book.exponents[table_class(field, half, table)], moved)


@pytest.mark.parametrize("field", [30, 31])
def test_sets_has_the_bijection_for_the_largest_scales(field):
    exponents = load_codebook("sets").exponents
    for table in range(TABLES):
        found = exponents[table_class(field, table & 1, table)]
        assert found.reshape(-1).tolist() == list(range(32))


def test_no_fit_scale_picks_a_bijection():
    book = load_codebook("sets")
    assert np.uint16(NO_FIT_SCALE).view(np.float16) == 32768
    assert book.held[scale_class(np.array([NO_FIT_SCALE], np.uint16))[0]] == 0xFFFFFFFF


def test_sets_levels_ascend():
    levels = load_codebook("sets").levels
    assert levels.dtype == np.float16
    assert np.all(np.diff(levels) > 0)
    assert levels[0] > 0


def test_scale_class_is_sign_exponent_and_first_and_last_mantissa_bits():
    scales = np.array([1.0, 1.4990234375, 1.5, 2.0, -1.0], np.float16).view(np.uint16)
    assert scale_class(scales).tolist() == [240, 247, 248, 256, 752]
    assert [class_of(scale) for scale in scales] == [240, 247, 248, 256, 752]
    assert table_class(15, 0, 7) == 247
    assert table_class(15, 0, 8) == 752


@pytest.mark.parametrize("name", FIXED)
def test_fixed_books_reproduce_the_table_for_every_pattern(name):
    """F, R and the way back for the 32,768 patterns with e4 = 0, from the table as printed."""
    book = load_codebook(name)
    patterns = np.arange(65536, dtype=np.uint16)
    patterns = patterns[patterns >> 14 & 1 == 0]
    assert patterns.size == 32768
    code_of, slot_of = {}, {}
    for code, exponents in FIXED[name].items():
        for slot, exponent in enumerate(exponents):
            code_of[exponent], slot_of[exponent] = int(code, 2), slot
    exponents = (patterns >> 10 & 31).tolist()
    nibbles = [int(p) >> 15 << 3 | code_of[e] for p, e in zip(patterns, exponents, strict=True)]
    rest = [slot_of[e] << 10 | int(p) & 1023 for p, e in zip(patterns, exponents, strict=True)]

    encoded = encode(patterns.reshape(128, 256), book, 128)
    assert encoded.codes.reshape(-1).tolist() == nibbles
    assert encoded.rest.reshape(-1).tolist() == rest
    assert np.array_equal(decode(encoded, book).reshape(-1), patterns)


def test_fixed_levels_are_the_powers_of_two_that_the_nibbles_mean():
    plain = [2.0 ** (2 * code - 15) for code in range(8)]
    assert load_codebook("naive").levels.tolist() == plain
    remapped = plain.copy()
    remapped[0b000], remapped[0b010] = 2.0 ** (9 - 15), 2.0 ** (11 - 15)
    assert load_codebook("paper").levels.tolist() == remapped


@pytest.mark.parametrize("name", FIXED)
def test_fixed_books_have_one_table_for_all_classes(name):
    book = load_codebook(name)
    assert not book.scale_indexed
    assert np.all(book.held == 0xFFFF)


def histogram(**counts: int) -> np.ndarray:
    result = np.zeros(32, np.int64)
    for name, count in counts.items():
        result[int(name[1:])] = count
    return result


@pytest.mark.parametrize(
    ("counts", "zeros", "shift"),
    [
        (histogram(), 0, 0),
        (histogram(e0=5, e3=10, e15=1), 2, 0),
        (histogram(e3=10, e17=1), 0, 2),
        (histogram(e0=4, e3=10, e17=1), 4, 2),
        (histogram(e16=1), 0, 1),
        (histogram(e30=1), 0, 15),
    ],
)
def test_fit_shifts_where_nothing_is_lost(counts, zeros, shift):
    result = fit(load_codebook("paper"), counts, zeros)
    assert (result.ok, result.shift, result.reason) == (True, shift, "")


@pytest.mark.parametrize(
    ("counts", "zeros", "reason"),
    [
        (histogram(e0=5, e4=10, e17=1), 4, "subnormal"),
        (histogram(e2=10, e17=1), 0, r"2\.\.17"),
        (histogram(e12=1, e31=1), 0, "Inf or NaN"),
    ],
)
def test_fit_refuses_where_bits_would_be_lost(counts, zeros, reason):
    result = fit(load_codebook("naive"), counts, zeros)
    assert not result.ok
    assert result.shift == 0
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


def test_sets_fit_everything():
    assert fit(load_codebook("sets"), np.ones(32, np.int64), 0) == fit(
        load_codebook("paper"), np.zeros(32, np.int64), 0
    )


def counted_exponents(bits: np.ndarray) -> tuple[np.ndarray, int]:
    """How many FP16 patterns have each exponent, and how many are zeros."""
    flat = np.ravel(bits)
    return np.bincount(flat >> 10 & 31, minlength=32), int((flat & 0x7FFF == 0).sum())


@pytest.mark.parametrize("size", [0, 1, 6, 65536])
def test_exponents_are_counted_onto_what_was_counted(size):
    bits = np.random.default_rng(size).permutation(65536).astype(np.uint16)[:size]
    bits[::3] = 0x8000
    bits.flags.writeable = False
    counts = np.ones(33, np.int64)
    count_exponents(bits, counts)
    exponents, zeros = counted_exponents(bits)
    assert (counts - 1).tolist() == [*exponents.tolist(), zeros]


def test_table_text_round_trips():
    text = "0123 9abc v u 4567 - 8 d".replace("-", "tuv")
    assert format_table(parse_table(text)) == text


@pytest.fixture(scope="module")
def design(tool):
    return tool("design_bank")


@pytest.fixture(scope="module")
def banks():
    return json.loads((ROOT / "runtime/bank_sets.json").read_text("utf-8"))["level_sets"]


@pytest.fixture(scope="module")
def bank(banks):
    return banks["free"]


def designed(design, bank):
    octave = bank["octave"]
    return design.Levels(np.array(bank["levels"]), octave, bank["rms"] / 2.0**octave)


@pytest.mark.parametrize("name", LEVEL_SETS)
@pytest.mark.parametrize(("field", "half"), [(12, 1), (10, 0), (20, 0)])
def test_shipped_wide_tables_are_what_the_script_designs(design, banks, name, field, half):
    bank = banks[name]
    found = design.wide_table(designed(design, bank), field, half)
    assert found == bank["wide"][str(2 * field + half)]


@pytest.mark.parametrize("name", ["free", "fp4"])
def test_shipped_tight_tables_are_what_the_script_designs(design, banks, name):
    bank, lowest = banks[name], design.TIGHT_FIELDS[-2]
    tables = design.tight_tables(designed(design, bank), 1, lowest)
    assert list(tables) == [lowest + 1, lowest]
    for field, own in tables.items():
        fields = design.fields_of_class("tight", field)
        texts = [design.table_text(fields, owners) for owners in own]
        assert texts == bank["tight"][str(2 * (field - bank["octave"]) + 1)]


def test_shipped_levels_are_where_the_script_settles(design, bank):
    levels = np.array(bank["levels"])
    rounding = np.spacing(levels.astype(np.float16)).astype(np.float64)
    moved = np.abs(design.refit_levels(levels) - levels)
    assert np.all(moved < 2 * design.SETTLED + rounding)


@pytest.mark.parametrize(("name", "bits"), [("m2", 2), ("m1", 1), ("pow2", 0)])
def test_levels_on_a_grid_stay_on_it_and_have_no_better_neighbour(design, banks, name, bits):
    levels = designed(design, banks[name])
    assert np.array_equal(design.on_grid(levels.values, bits), levels.values)
    assert np.sqrt(0.5) <= levels.rms <= np.sqrt(2)
    least = design.error(levels)
    for other in design.neighbours(levels, bits):
        assert np.array_equal(design.on_grid(other.values, bits), other.values)
        assert design.error(other) > least - 1e-9


def test_fp4_has_the_levels_of_ocp(banks):
    assert banks["fp4"]["levels"] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_neighbours_of_numbers_on_a_grid(design):
    assert [design.below(x, 1) for x in (1.5, 1.0, 3.0)] == [1.0, 0.75, 2.0]
    assert [design.above(x, 1) for x in (1.5, 1.0, 3.0)] == [2.0, 1.5, 4.0]
    assert [design.below(1.0, 0), design.above(1.0, 0)] == [0.5, 2.0]
    crowded = np.array([0.9, 0.95, 1.0, 1.05, 2.0, 2.1, 3.9, 4.0])
    assert design.on_grid(crowded, 0).tolist() == [2.0**e for e in range(-5, 3)]


def test_shipped_file_is_what_the_script_writes(design, banks):
    sets = {
        name: (designed(design, bank), design.Tables(bank["wide"], bank["tight"]))
        for name, bank in banks.items()
    }
    assert design.bank_text(sets) == (ROOT / "runtime/bank_sets.json").read_text("utf-8")
    assert banks.keys() == LEVEL_SETS.keys()
    for bank in banks.values():
        assert len(bank["wide"]) == 2 * len(design.DESIGNED_FIELDS)
        assert [len(tables) for tables in bank["tight"].values()] == 2 * ([1] + [TABLES - 1] * 12)


def test_local_search_respects_capacity_and_beats_a_plain_spread(design, bank):
    levels = np.array(bank["levels"])
    costs = design.octave_costs(design.unit_density("wide"), levels)[0]
    costs = design.class_costs(costs, design.fields_of_class("wide", 12), 12)
    owners = design.design_table(costs)
    assert np.all(design.MEMBERS[owners].sum(axis=0) <= 4)
    assert np.all(owners > 0)
    spread = 1 << (np.arange(len(costs)) // 4)
    assert design.table_cost(costs, owners) < 0.5 * design.table_cost(costs, spread)
