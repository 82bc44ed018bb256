import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

# pytest puts the folders of test files first on the path, and in this one `speqc` is a folder of
# tests: the package is imported before that can hide it.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
import_module("speqc")

COMPILE_SECONDS = 600
"""How long a worker waits for another one's compilation."""

Compiled = Callable[[Path, str], Path]


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The embedded model's ONNX file."""
    return Path(str(files("speqc") / "models" / "kjv" / "model.onnx"))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiles a model with a code book, once for all workers; nobody may change the artifact."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def compile_once(model: Path, codebook: str) -> Path:
        path = folder / f"{model.parent.name}-{codebook}.speq"
        if _is_first(path.with_suffix(".claimed")):
            _compile(model, path, codebook)
        else:
            _wait(path)
        return path

    return compile_once


def _is_first(claim: Path) -> bool:
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _compile(model: Path, path: Path, codebook: str) -> None:
    from speqc.compile import CompileOptions, compile_model
    from speqc.target_files import load_target

    try:
        # The artifact gets its name when it is complete.
        compile_model(model, path, CompileOptions(load_target("speq-64x64"), codebook))
    except BaseException:
        path.with_suffix(".failed").touch()
        raise


def _wait(path: Path) -> None:
    deadline = time.monotonic() + COMPILE_SECONDS
    while not path.exists():
        assert not path.with_suffix(".failed").exists(), f"{path.name} did not compile"
        assert time.monotonic() < deadline, f"{path.name} is not compiled in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def embedded(compiled: Compiled, embedded_model: Path) -> Callable[[str], Path]:
    """The embedded model, compiled with a code book."""
    return lambda codebook: compiled(embedded_model, codebook)
