"""Models as exporters write them compile, decode losslessly, and agree with onnxruntime."""

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx_corpus import COMPACT, VARIABLE, Case, check_case, corpus_folder, read_cases

FOLDER = corpus_folder()
SHIPPED = list(read_cases(COMPACT))
FULL = list(read_cases(FOLDER)) if FOLDER is not None else []


def check(case: Case, out: Path, record: Callable[[str, object], None]) -> None:
    result = "FAIL"
    try:
        result = check_case(case, out / "model.speq")
    finally:
        record("corpus", [case.family, case.exporter, result])


@pytest.mark.parametrize("case", SHIPPED, ids=str)
def test_shipped_model(
    case: Case, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    check(case, tmp_path, record_property)


@pytest.mark.skipif(FOLDER is None, reason=f"no corpus beside the project; set {VARIABLE} to one")
@pytest.mark.parametrize("case", FULL, ids=str)
def test_corpus_model(
    case: Case, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    check(case, tmp_path, record_property)
