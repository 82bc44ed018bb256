from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, ModuleOp, i64
from xdsl.dialects.func import FuncOp

from speqc.dialects.speq import EXPERTS
from speqc.runtime.routing import Router, expected_rows, from_text, routers, to_text


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 200))
def test_expected_rows_are_those_of_all_tokens(experts: int, chosen: int, tokens: int) -> None:
    router = Router(max(experts, chosen), min(experts, chosen))
    rows = router.expected(tokens)
    assert len(rows) == router.experts
    assert sum(rows) == router.chosen * tokens
    # As even as whole rows can be, and no row chooses an expert twice.
    used = [count for count in rows if count]
    assert max(used) - min(used) <= 1
    assert max(used) <= tokens


def test_one_token_chooses_what_its_router_says() -> None:
    assert Router(8, 2).expected(1) == (1, 1, 0, 0, 0, 0, 0, 0)
    assert expected_rows([Router(2, 1), Router(3, 1)], 1) == (1, 0, 1, 0, 0)


def test_expected_number_of_experts_is_the_mean_of_random_choices() -> None:
    experts, chosen, tokens = 16, 4, 5
    random = np.random.default_rng(0)
    counts = []
    for _ in range(2000):
        picks = [random.choice(experts, chosen, replace=False) for _ in range(tokens)]
        counts.append(len(set(np.concatenate(picks).tolist())))
    found = sum(rows > 0 for rows in Router(experts, chosen).expected(tokens))
    assert found == round(np.mean(counts))


@given(st.lists(st.integers(0, 70), min_size=1, max_size=40))
def test_a_text_gives_its_rows_back(rows: Sequence[int]) -> None:
    assert from_text(to_text(tuple(rows)), len(rows)) == tuple(rows)


def test_text() -> None:
    assert to_text((1, 0, 12, 0)) == "0 2x12"
    assert to_text((0, 0)) == ""


@pytest.mark.parametrize("text", ["4", "-1", "x", "1x0", "1x-2", "0 four"])
def test_a_text_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expert|invalid literal"):
        from_text(text, 4)


def test_routers_of_a_step() -> None:
    step = FuncOp("full", ((), ()))
    ModuleOp([step])
    assert routers(step) == []
    pairs = [DenseArrayBase.from_list(i64, pair) for pair in ([8, 2], [4, 1])]
    step.attributes[EXPERTS] = ArrayAttr(pairs)
    assert routers(step) == [Router(8, 2), Router(4, 1)]
