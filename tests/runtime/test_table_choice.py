import numpy as np
import pytest

from speqc.runtime.codebook import LEVEL_SETS, load_codebook, table_class
from speqc.runtime.table_choice import MISS, held_exponents, missed_errors, table_errors, with_table

LEVELS = load_codebook("sets").levels.astype(np.float64)


def members(subset):
    return [code for code in range(8) if subset >> code & 1]


@pytest.mark.parametrize("subset", [1, 0b10000000, 0b101, 0b11111111, 0b01101000])
@pytest.mark.parametrize("rms", [1.0, 2.0])
def test_missed_errors_are_those_of_random_misses(subset, rms):
    points = np.array([0, 0.01, 0.4, 1.0, 3.3, 7.9])
    misses = np.random.default_rng(0).standard_normal((200000, 1)) * MISS * rms
    distances = np.abs((points + misses)[..., None] - LEVELS[members(subset)]).min(axis=2)
    found = missed_errors(points, LEVELS, rms)[subset]
    assert np.allclose(found, np.mean(distances**2, axis=0), rtol=0.02, atol=2e-4)


def test_more_levels_have_no_larger_errors_and_none_an_infinite_one():
    points = np.linspace(0, 8, 40)
    errors = missed_errors(points, LEVELS)
    assert np.all(np.isinf(errors[0]))
    for subset in range(1, 256):
        for code in range(8):
            assert np.all(errors[subset | 1 << code] <= errors[subset] + 1e-12)


@pytest.mark.parametrize("name", LEVEL_SETS)
def test_table_errors_are_those_of_weights_with_an_exponent(name):
    """Against weights and scales drawn evenly over their octaves."""
    book = load_codebook("sets", name)
    random = np.random.default_rng(1)
    field, half, table = 8, 1, 5
    index, kind = table_class(field, half, table), 2 * field + half
    scales = 2.0 ** random.uniform(np.log2(1.5), 1, 4000)
    for exponent in (0, 4, 7, 8, 9, 10):
        weights = 2.0 ** (exponent - field + random.random(4000)) / scales
        levels = book.levels.astype(np.float64)
        expected = missed_errors(weights, levels, book.rms)[book.allowed[index, exponent]].mean()
        found = table_errors(book)[kind, exponent, table] / 2**16
        assert found == pytest.approx(expected, rel=0.05)


def test_what_a_table_lacks_costs_at_least_as_much_as_anything_it_has():
    book = load_codebook("sets")
    errors = table_errors(book)
    assert errors.shape == (64, 32, 16)
    bits = held_exponents(book)[:, None] >> np.arange(32, dtype=np.uint32)[:, None] & 1
    lacking = bits == 0
    assert errors[lacking].min() == errors.max() == 64 * 2**16


def test_held_exponents_are_those_of_the_classes():
    book = load_codebook("sets", "fp4")
    held = held_exponents(book)
    for kind in (0, 1, 17, 40, 63):
        for table in range(16):
            assert held[kind, table] == book.held[table_class(kind >> 1, kind & 1, table)]


@pytest.mark.parametrize("table", range(16))
def test_a_scale_with_another_table_is_next_to_it(table):
    for pattern in (0x0001, 0x03FF, 0x0400, 0x2345, 0x7BFF):
        found = int(with_table(np.uint16(pattern), table))
        assert found >> 15 == table >> 3
        if pattern < 0x0400:
            assert found & 0x7FFF == pattern
        else:
            assert found & 7 == table & 7
            assert found & 0x7FF8 == pattern & 0x7FF8
