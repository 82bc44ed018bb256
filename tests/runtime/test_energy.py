from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speqc.runtime.energy import (
    Work,
    attention_on_array,
    attention_on_vector,
    buffered,
    energy,
    product,
    touched,
)
from speqc.runtime.target import Target

SIZES = st.integers(1, 9)


def test_energy_by_hand() -> None:
    target = replace(
        Target(),
        dram_energy_picojoules_per_bit=18.75,
        sram_energy_picojoules_per_bit=0.5,
        array_full_energy_picojoules_per_multiply_add=2,
        array_draft_energy_picojoules_per_multiply_add=1.25,
        vector_energy_picojoules_per_operation=4,
    )
    found = energy(10**12, Work(10**12, 3 * 10**12, 8 * 10**12, 5 * 10**12), target)
    # 8e12 bits at 18.75 pJ; 1e12 bits at 0.5 pJ; 6 and 10 J; 20 J.
    assert found.dram == pytest.approx(150)
    assert found.sram == pytest.approx(0.5)
    assert found.array == pytest.approx(16)
    assert found.vector == pytest.approx(20)
    assert found.total == pytest.approx(186.5)


def test_product_by_hand() -> None:
    # 3 x 2 tiles of 8 x 4 weights, 5 rows. Each tile reads 5 x 8 activations of 16 bits; the two
    # tiles below the first of each column take 5 x 4 sums of 32 bits over: written and read.
    work = product((3, 2), (8, 4), 5, draft=False)
    assert work == Work(6 * 5 * 8 * 16 + 4 * 5 * 4 * 32 * 2, 6 * 8 * 4 * 5, 0, 0)
    drafted = product((3, 2), (8, 4), 5, draft=True)
    assert drafted == work._replace(full_multiply_adds=0, draft_multiply_adds=6 * 8 * 4 * 5)


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_product_against_a_walk_of_its_tiles(k: int, n: int, depth: int, columns: int, m: int):
    bits = multiply_adds = 0
    for _column in range(n):
        for row in range(k):
            multiply_adds += depth * columns * m
            bits += depth * m * 16
            if row > 0:
                bits += columns * m * 32
            if row < k - 1:
                bits += columns * m * 32
    assert product((k, n), (depth, columns), m, draft=False) == Work(bits, multiply_adds, 0, 0)


def test_attention_on_the_array_by_hand() -> None:
    # 2 cache heads, each 3 rows by a 64 x 100 matrix of 2 bytes: a tile along K, two along N.
    work = attention_on_array(2, 3, 64, 100, Target(), 2, 16)
    head_bits = 2 * 3 * 64 * 16 + 64 * 100 * 16
    assert work == Work(2 * head_bits, 2 * 2 * 64 * 64 * 3, 0, 0)


def test_attention_on_the_vector_unit_by_hand() -> None:
    # 6 rows by 64 x 100: each multiply-add reads 2 bytes of the cache, each row its 64 values.
    work = attention_on_vector(6, 64, 100, 2, 16)
    assert work == Work(6 * 6400 * 16 + 6 * 64 * 16, 0, 0, 6 * 6400)


def test_buffers() -> None:
    assert buffered(5) == touched(5) == Work(sram_bits=40)
    assert buffered(5).plus(Work(1, 2, 3, 4)) == Work(41, 2, 3, 4)
