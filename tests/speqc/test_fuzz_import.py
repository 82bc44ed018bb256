"""Damaged models, and that the fuzzer sees what it looks for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz_import import Worker
from fuzz_mutations import MODEL, Files, case, seeds
from fuzz_worker import judge

CASES = 300


@pytest.mark.parametrize("part", [0, 1])
def test_damaged_models_are_compiled_or_refused(part, tmp_path):
    """`python tests/speqc/fuzz_import.py --seed 0 --case NUMBER` repeats one that is not."""
    half = CASES // 2
    fuzz = [sys.executable, Path(__file__).with_name("fuzz_import.py"), "--seed", "0"]
    chosen = ["--first", str(part * half), "--count", str(half), "--jobs", "1"]
    # In a process of its own: workers inherit what earlier tests did to this one. Its threads would
    # take their stacks from the little address space that a worker has.
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [*fuzz, *chosen, "--keep", tmp_path],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | alone,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_is_its_number():
    assert case(1, 2) == case(1, 2)
    assert len({case(1, number)[MODEL] for number in range(100)}) > 90


def test_most_cases_differ_from_the_valid_models():
    valid = seeds()
    assert sum(case(2, number) not in valid for number in range(100)) > 90


def work_with(monkeypatch: pytest.MonkeyPatch, effect) -> str:
    """What the judge says of a valid model when `effect` takes the place of its import."""
    monkeypatch.setattr("speqc.compile.import_model", effect)
    return judge(seeds()[0])


def test_internal_errors_are_seen(monkeypatch):
    assert "its message is not right" in work_with(monkeypatch, lambda *_, **options: {}["key"])


def test_files_left_behind_are_seen(monkeypatch):
    def leave(path: Path, *_: object, **options: object) -> None:
        path.with_name("left").touch()
        raise MemoryError

    complaint = work_with(monkeypatch, leave)
    assert "it leaves ['left']" in complaint
    assert "its message is not right" in complaint


def test_changed_models_are_seen(monkeypatch):
    def empty(path: Path, *_: object, **options: object) -> None:
        path.write_text("")

    assert f"it changes ['{MODEL}']" in work_with(monkeypatch, empty)


def compute_for_ever(files: Files) -> str:
    while "endless" in files:
        pass
    return ""


def end_the_process(files: Files) -> str:
    raise SystemExit(3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge", "complaint"), [(compute_for_ever, "it takes 5 s"), (end_the_process, "it ends")]
)
def test_a_case_that_costs_its_process(judge, complaint):
    worker = Worker(judge)
    start = time.monotonic()
    try:
        assert worker.judge({"endless": b""}).startswith(complaint)
        assert worker.judge({}) == "" or judge is end_the_process
    finally:
        worker.stop()
    assert time.monotonic() - start < 300
