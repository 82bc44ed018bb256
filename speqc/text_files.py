"""Files that a user asked for: looked at before the work, written whole or not at all."""

import os
from pathlib import Path

from speqc.runtime.errors import SpeqcError


def write_text(text: str, destination: str) -> None:
    """Write a file beside its name and rename it when complete.

    Raises SpeqcError, which names the file that was asked for, where it can't be written.
    """
    path = Path(destination)
    try:
        if _stays(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path, text)
    except OSError as error:
        raise SpeqcError(f"{path}: {error.strerror or error}") from error


def check_destination(destination: str | None, option: str) -> None:
    """Raise SpeqcError, naming the option, where `write_text` could not write."""
    if destination is None:
        return
    path = Path(destination)
    try:
        if path.is_dir():
            raise SpeqcError(f"{option}: {path} is a folder")
        problem = _link_problem(path) if _stays(path) else folder_problem(path)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise SpeqcError(f"{option}: {path}: {problem}")


def folder_problem(path: Path) -> str:
    """What keeps a new file or folder from being made beside `path`; "" for nothing.

    One is made and removed: what a file system allows shows only when it is asked.
    """
    folder = path.absolute().parent
    if not folder.exists():
        return f"the folder {path.parent} does not exist"
    if not folder.is_dir():
        return f"{path.parent} is a file, not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write to {folder}"
    trial = _part(path)
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        return f"nothing can be written to {folder}: {error.strerror or error}"
    return ""


def _stays(path: Path) -> bool:
    """A device, a pipe, or a link such as /dev/stdout: a rename would put a file in its place."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def _link_problem(path: Path) -> str:
    if not path.exists():
        return folder_problem(path.resolve())
    return "" if os.access(path, os.W_OK) else "no permission to write to it"


def _part(path: Path) -> Path:
    """The file in the making: its name is short, for that of `path` may be as long as can be."""
    return path.with_name(f".speqc-{os.getpid()}.part")


def _replace(path: Path, text: str) -> None:
    making = _part(path)
    try:
        making.write_text(text, encoding="utf-8")
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
