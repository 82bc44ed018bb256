"""What signals leave behind: nothing, and a line."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from speqc.folder_writer import folder_in_the_making
from speqc.termination import Terminated, raise_terminated

ASKED_WHILE_WRITING = """
import os, sys
import speqc.artifact
from speqc.cli import main

number = int(sys.argv.pop())

def write(path, *rest):
    path.touch()
    os.kill(os.getpid(), number)

speqc.artifact.write_weights = write
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_compilation_that_is_asked_to_end_leaves_nothing(model: Path, tmp_path: Path, number):
    arguments = ("compile", model, "-o", tmp_path / "x.speq", int(number))
    ended = subprocess.run(
        [sys.executable, "-P", "-c", ASKED_WHILE_WRITING, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 128 + number
    said = [line for line in ended.stderr.splitlines() if not line.startswith("note: ")]
    assert said == ["terminated"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_disturb_the_answer_to_the_first():
    cleared = False
    with pytest.raises(Terminated, match="SIGTERM") as raised, raise_terminated():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            try:
                raise OSError
            except OSError:
                os.kill(os.getpid(), signal.SIGHUP)
            cleared = True
    assert cleared
    assert raised.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_signal_with_another_answer_keeps_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_terminated():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    found = []

    def look():
        with raise_terminated():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.parametrize(("renames", "left"), [(1, "old"), (2, "new")])
def test_an_interruption_behind_a_rename_leaves_one_folder(tmp_path, monkeypatch, renames, left):
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    rename, done = Path.rename, []

    def interrupted(path, target):
        renamed = rename(path, target)
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), folder_in_the_making(place) as folder:
        (folder / "new").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"place", left}


def test_an_interruption_while_the_old_folder_goes_leaves_the_new_one_alone(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    remove = shutil.rmtree
    asked = iter([True])

    def interrupted(path, **options):
        if next(asked, False):
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), folder_in_the_making(place) as folder:
        (folder / "new").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"place", "new"}
