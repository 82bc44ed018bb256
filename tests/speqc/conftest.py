from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from speqc.cli import main
from speqc.compile import CompileOptions, compile_model
from speqc.target_files import load_target

MODEL = Path(str(files("speqc") / "models" / "kjv" / "model.onnx"))

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def model() -> Path:
    """The embedded model's ONNX file, with a tokenizer beside it."""
    return MODEL


@pytest.fixture(scope="session")
def kjv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, compiled: not to be changed."""
    path = tmp_path_factory.mktemp("compiled") / "kjv.speq"
    compile_model(MODEL, path, CompileOptions(load_target("speq-64x64")))
    return path


@pytest.fixture
def invoke() -> Invoke:
    """Runs a command line; standard output and standard error stand apart in the result."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run
