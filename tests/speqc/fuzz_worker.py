"""Compiles damaged models in a process of its own, and says what is wrong with how that went."""

import math
import os
import resource
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from unittest.mock import patch

from click.testing import CliRunner
from fuzz_mutations import MODEL, Files, seeds

from speqc import onnx_mapping

TIME_LIMIT = 5
"""Seconds of processor time that a case may take; what the clock says depends on other programs."""

Judge = Callable[[Files], str]

MEMORY_LIMIT = 4 << 30
"""Bytes of address space, of which the libraries alone take one and a half."""

FILE_LIMIT = 256 << 20
"""Bytes of a file that a case may write."""

TOO_MUCH = ("internal error", "Traceback", "not enough memory", "File too large")
"""What the line of a refusal must not say of a small file."""


def work(connection: Connection, judge: Judge) -> None:
    """Judge the files of each case that comes in, and send back what is wrong, or "".

    The first answer is to no case: it comes when everything is imported, and says what is wrong
    with models that nothing happened to.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    warnings.simplefilter("always")
    onnx_mapping.SMALLEST = 64  # Else no tensor of these models is one that stays in its file.
    with TemporaryFile() as spoken:
        for stream in (1, 2):
            os.dup2(spoken.fileno(), stream)
        connection.send("; ".join(filter(None, (judge_valid(files) for files in seeds()))))
        while True:
            files = connection.recv()
            _limit_time()
            before = spoken.tell()
            complaint = judge(files)
            spoken.seek(before)
            if not complaint and (said := spoken.read()):
                complaint = f"a library wrote: {said.decode(errors='replace')}"
            connection.send(complaint)


def _limit_time() -> None:
    """Have the process end when it has computed for `TIME_LIMIT` seconds from now."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + TIME_LIMIT, hard))


def judge_valid(files: Files) -> str:
    """What is wrong with how a valid model is compiled, which it must be; "" if nothing is."""
    return judge(files, allowed=(0,))


def judge(files: Files, allowed: tuple[int, ...] = (0, 2)) -> str:
    """What is wrong with how a model is compiled or refused; "" if nothing is.

    A refusal is one line that names the file, and nothing else lies in the folder then.
    """
    from speqc.cli import main

    # What is written to the folder for temporary files is to be seen, too.
    with TemporaryDirectory() as name, patch.dict(os.environ, TMPDIR=name):
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        model, out = folder / MODEL, folder / "out.speq"
        result = CliRunner().invoke(main, ["compile", str(model), "-o", str(out)])
        left = {path.name for path in folder.iterdir()} - {*files}
        changed = [file for file in files if (folder / file).read_bytes() != files[file]]
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    problems = {
        f"exit code {result.exit_code}": result.exit_code not in allowed,
        "it writes to standard output": bool(result.stdout),
        f"it leaves {sorted(left)}": left != ({out.name} if result.exit_code == 0 else set()),
        f"it changes {changed}": bool(changed),
        "its message is not right": result.exit_code == 2 and not _is_refusal(lines, model),
        "it warns": "Warning" in result.stderr,
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    return f"{'; '.join(found)}: {result.stderr}" if found else ""


def _is_refusal(lines: list[str], model: Path) -> bool:
    """Whether this is one line of error about the file."""
    return (
        len(lines) == 1
        and lines[0].startswith("error: ")
        and str(model.parent) in lines[0]
        and not any(phrase in lines[0] for phrase in TOO_MUCH)
    )
