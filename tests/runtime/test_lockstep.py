"""Sequences in lock-step get the bits that each of them gets alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from speqc.artifact import load_artifact
from speqc.runtime.attention import KVCache
from speqc.runtime.errors import SpeqcError
from speqc.runtime.lockstep import Branch, Lockstep
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile

LENGTHS = (1, 3, 17, 9)
"""Positions that the sequences have behind them when they meet."""


def machine_of(artifact: Path) -> Machine:
    loaded = load_artifact(artifact)
    return Machine(loaded.program, WeightFile(loaded.weights))


@pytest.fixture(scope="module")
def machine(embedded: Callable[[str], Path]) -> Machine:
    return machine_of(embedded("sets"))


@pytest.fixture
def lockstep(machine: Machine) -> Lockstep:
    return Lockstep(machine)


def texts(machine: Machine, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, machine.vocabulary, length).tolist() for length in lengths]


def alone(machine: Machine, function: str, past: Sequence[int], rows: Sequence[int]) -> NDArray:
    machine.reset()
    machine.call("full", past)
    return machine.call(function, rows)


def check(machine: Machine) -> None:
    """Ragged pasts, ragged rows, both step functions, and one more row of each behind those."""
    lockstep = Lockstep(machine)
    pasts = texts(machine, LENGTHS)
    rows = texts(machine, (2, 1, 3, 1), seed=1)
    following = texts(machine, (1, 1, 1, 1), seed=2)
    for function in ("draft", "full"):
        branches = [lockstep.branch() for _ in pasts]
        lockstep.prefill(branches, pasts, chunk=4)
        first = lockstep.call(function, branches, rows)
        second = lockstep.call(function, branches, following)
        for place, past in enumerate(pasts):
            expected = alone(machine, function, past, rows[place])
            assert first[place].tobytes() == expected.tobytes()
            expected = machine.call(function, following[place])
            assert second[place].tobytes() == expected.tobytes()


def test_embedded_model(machine: Machine) -> None:
    check(machine)


def test_prefill_gives_the_last_row(machine: Machine, lockstep: Lockstep) -> None:
    prompts = texts(machine, (5, 2, 12))
    branches = [lockstep.branch() for _ in prompts]
    for last, prompt in zip(lockstep.prefill(branches, prompts, 5), prompts, strict=True):
        machine.reset()
        assert last.tobytes() == machine.call("full", prompt)[-1].tobytes()
    assert [branch.length for branch in branches] == [5, 2, 12]


def test_a_fork_shares_the_past_and_nothing_else(machine: Machine, lockstep: Lockstep) -> None:
    text, other = texts(machine, (70, 6))
    trunk = lockstep.branch()
    lockstep.prefill([trunk], [text])
    forks = [trunk.fork(length, room=2) for length in (3, 64, 65, 70)]
    for fork, logits in zip(forks, lockstep.call("draft", forks, [other] * 4), strict=True):
        past = text[: fork.length - len(other)]
        assert logits.tobytes() == alone(machine, "draft", past, other).tobytes()
    (behind,) = lockstep.call("full", [trunk], [other])
    assert behind.tobytes() == alone(machine, "full", text, other).tobytes()


def test_truncated_branch(machine: Machine, lockstep: Lockstep) -> None:
    text, other = texts(machine, (9, 4))
    branch = lockstep.branch()
    lockstep.prefill([branch], [text])
    branch.truncate(6)
    (logits,) = lockstep.call("full", [branch], [other])
    assert logits.tobytes() == alone(machine, "full", text[:6], other).tobytes()


def test_the_machine_is_not_touched(machine: Machine, lockstep: Lockstep) -> None:
    machine.reset()
    machine.call("full", [1, 2, 3])
    lockstep.prefill([lockstep.branch()], [[4, 5]])
    assert machine.length == 3
    assert len(machine.take_calls()) == 1


def test_misuse(machine: Machine, lockstep: Lockstep) -> None:
    branch = lockstep.branch()
    with pytest.raises(ValueError, match="a branch comes twice"):
        lockstep.call("full", [branch, branch], [[1], [2]])
    with pytest.raises(ValueError, match="expected branches, and tokens for each"):
        lockstep.call("full", [branch], [[]])
    with pytest.raises(SpeqcError, match="no step function @other"):
        lockstep.call("other", [branch], [[1]])
    with pytest.raises(ValueError, match="a branch of 0 positions has no first 1"):
        branch.fork(1)
    full = Branch(machine.empty_caches(), np.zeros(machine.context, np.int64))
    with pytest.raises(SpeqcError, match="no room for 1 token behind 1,024 positions"):
        lockstep.call("full", [full], [[1]])


def test_a_forked_cache_grows_within_its_capacity() -> None:
    cache = KVCache(1, 2, 100, np.float32)
    ones = np.ones((1, 90, 2), np.float32)
    cache.append(ones, ones)
    fork = cache.fork(10)
    fork.append(2 * ones, 2 * ones)
    assert fork.length == 100
    with pytest.raises(ValueError, match="exceed the capacity 100"):
        fork.append(ones, ones)
    assert cache.length == 90
    assert (cache.values[0, 0, :90, :2] == 1).all()
