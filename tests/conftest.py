import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

# pytest puts the folders of test files first on the path, and in this one `speqc` is a folder of
# tests: the package is imported before that can hide it.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
import_module("speqc")

COMPILE_SECONDS = 600
"""How long a worker waits for another one's compilation."""

Compiled = Callable[[Path, str], Path]


@pytest.fixture(scope="session")
def tool() -> Callable[[str], ModuleType]:
    """Loads a script of `tools/` by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).resolve().parents[1] / "tools" / f"{name}.py"
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of each model of the corpus: a table, family by exporter."""
    results: dict[tuple[str, str], str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "corpus":
                    family, exporter, result = value
                    results[family, exporter] = result
    if results:
        terminalreporter.section("corpus: largest difference of a logit, as a share of what may be")
        for line in _table(results):
            terminalreporter.write_line(line)


def _table(results: dict[tuple[str, str], str]) -> list[str]:
    """Lines of a table, family by exporter; the exporters are numbered."""
    families = sorted({family for family, _ in results})
    exporters = sorted({exporter for _, exporter in results})
    width = max(len(family) for family in families)
    lines = [f"{number:3} {exporter}" for number, exporter in enumerate(exporters, 1)]
    lines.append(" " * width + "".join(f"{number:6}" for number in range(1, len(exporters) + 1)))
    for family in families:
        cells = "".join(f"{results.get((family, exporter), '.'):>6}" for exporter in exporters)
        lines.append(f"{family:{width}}{cells}")
    return lines
