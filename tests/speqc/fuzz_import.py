"""Compiles thousands of damaged models: each must be refused in one line, or compiled.

    python tests/speqc/fuzz_import.py --count 10000 --seed 3

Every case runs in a worker process with limits of time and memory. One is reported that ends in a
traceback or an internal error, takes too long, ends the process, warns, writes elsewhere than to
standard error, or leaves a file. Its files are saved under `--keep`; `--case NUMBER` repeats it in
this process.
"""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fuzz_mutations import Files, case
from fuzz_worker import TIME_LIMIT, Judge, judge, work

WAIT_LIMIT = 60.0
"""Seconds by the clock within which a worker answers, also one that waits without computing."""

START_LIMIT = 300.0
"""The same, while it imports everything and compiles the valid models."""


class Failure(NamedTuple):
    """A case that went wrong, and how."""

    number: int
    complaint: str


class Worker:
    """A process that compiles one case after another, and is replaced when a case costs it."""

    def __init__(self, judge: Judge = judge) -> None:
        """`judge` is what the process does with each case; it must be importable."""
        self._judge = judge
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, self._judge), daemon=True)
        self._process.start()
        other.close()
        if complaint := self._answer(START_LIMIT):
            raise RuntimeError(f"a worker can't compile the valid models: {complaint}")

    def judge(self, files: Files) -> str:
        """What is wrong with a case, or "" if nothing is."""
        self._connection.send(files)
        complaint = self._answer(WAIT_LIMIT)
        if not self._process.is_alive():
            self._start()
        return complaint

    def _answer(self, seconds: float) -> str:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
            complaint = f"it waits for {seconds:g} s"
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            late = -code == signal.SIGXCPU
            complaint = f"it takes {TIME_LIMIT} s" if late else f"it ends the process ({code})"
        self.stop()
        return complaint

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def fuzz(
    seed: int, numbers: Sequence[int], jobs: int, found: Callable[[Failure], None]
) -> list[Failure]:
    """Run cases of a seed in `jobs` processes; gives the failures, and tells `found` of each."""

    def share(start: int, worker: Worker) -> list[Failure]:
        failures = []
        for number in numbers[start::jobs]:
            if complaint := worker.judge(case(seed, number)):
                failures.append(Failure(number, complaint))
                found(failures[-1])
        return failures

    workers: list[Worker] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            workers += pool.map(lambda _: Worker(), range(jobs))
            return sorted(one for part in pool.map(share, range(jobs), workers) for one in part)
        finally:
            for worker in workers:
                worker.stop()


def save(files: Files, folder: Path) -> None:
    """Write the files of a case into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> int:
    """Run the cases that the command line asks for; 1 if one goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), metavar="DIR")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="only this one, not limited")
    options = parser.parse_args()
    if options.case is not None:
        files = case(options.seed, options.case)
        save(files, options.keep / f"{options.seed}-{options.case}")
        complaint = judge(files)
        print(complaint or "nothing is wrong")
        return bool(complaint)

    def found(failure: Failure) -> None:
        folder = options.keep / f"{options.seed}-{failure.number}"
        save(case(options.seed, failure.number), folder)
        print(f"{folder}: {failure.complaint}".rstrip())
        print(f"repeat it with --seed {options.seed} --case {failure.number}", flush=True)

    numbers = range(options.first, options.first + options.count)
    failures = fuzz(options.seed, numbers, options.jobs, found)
    print(f"{len(failures)} of {options.count} cases of seed {options.seed} went wrong")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
