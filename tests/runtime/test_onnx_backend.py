"""ONNX's own node tests, for every operator of the vector unit, and their table in the docs."""

import fnmatch
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from speqc.runtime.vector_ops import VECTOR_OPS

TOOL = Path(__file__).parents[2] / "tools" / "node_tests.py"


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("node_tests", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


node_tests = _tool()
INCLUDED = [case for case in node_tests.cases() if node_tests.reason_of(case) is None]


@pytest.mark.parametrize("case", INCLUDED, ids=lambda case: case.name)
def test_node(case: Any) -> None:
    node_tests.check(case)


@pytest.mark.parametrize("pattern", node_tests.EXCLUDED)
def test_exclusions_are_needed(pattern: str) -> None:
    excluded = [c for c in node_tests.cases() if fnmatch.fnmatchcase(c.name, pattern)]
    assert excluded
    for case in excluded:
        with pytest.raises(Exception):  # noqa: B017
            node_tests.check(case)


def test_every_operator_has_a_test_that_passes() -> None:
    tested = {node_tests.operator_of(case) for case in INCLUDED}
    assert tested >= set(node_tests.operators())
    assert set(node_tests.operators()) <= {*VECTOR_OPS, *node_tests.RAISED}


def test_the_page_is_what_the_command_writes() -> None:
    """The tests above say that what is not excluded passes."""
    page = node_tests.PAGE.read_text("utf-8")
    if f"({node_tests.VERSION})" not in page:
        pytest.skip(f"docs/operators.md is of another version than {node_tests.VERSION}")
    assert node_tests.page() == page, f"run {node_tests.COMMAND}"
