"""A folder of results that is written whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speqc.runtime.errors import SpeqcError
from speqc.text_files import folder_problem


def check_place(path: Path, replaceable: Callable[[Path], bool], what: str) -> None:
    """Raise SpeqcError unless `path` is free for a folder, or holds one that may go.

    `what` says in messages what it would have to be.
    """
    if problem := folder_problem(path):
        raise SpeqcError(f"{path}: {problem}")
    if os.path.lexists(path) and not replaceable(path):
        raise SpeqcError(f"{path}: exists and is no {what}; it is not replaced")


@contextmanager
def folder_in_the_making(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its name at the end, or goes.

    Raises SpeqcError where it can't be written.
    """
    making = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        making.mkdir()
        yield making
        _put_in_place(making, path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise SpeqcError(f"{path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _put_in_place(making: Path, path: Path) -> None:
    if not os.path.lexists(path):
        making.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        path.rename(old)
        making.rename(path)
    finally:
        # An interruption may come behind either.
        if not os.path.lexists(path):
            old.rename(path)
        elif os.path.lexists(old):
            _remove(old)


def _remove(old: Path) -> None:
    if old.is_symlink():
        old.unlink()
        return
    try:
        shutil.rmtree(old)
    finally:
        # What an interruption left of it.
        shutil.rmtree(old, ignore_errors=True)
