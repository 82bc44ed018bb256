"""Messages of `verify-onnx`."""

import pytest
from conftest import RunPasses

from speqc.runtime.errors import SpeqcError

MAIN = """
func.func @main(%tokens: tensor<1x?xi64>) -> tensor<1x?xi64> {
  %p = speq.positions %tokens : tensor<1x?xi64> loc("here")
  func.return %p : tensor<1x?xi64>
}
"""

CASES = {
    "no function @main": "func.func @step() { func.return }",
    "speq.positions 'here': expected operations of the onnx dialect only": MAIN,
    "@main and nothing else, got func.func": (
        "func.func @main() { func.return }\nfunc.func @other() { func.return }"
    ),
    "argument 0 has type i64, not a tensor": "func.func @main(%x: i64) { func.return }",
}


@pytest.mark.parametrize("message", CASES)
def test_says_what_is_no_import(message: str, run_passes: RunPasses) -> None:
    with pytest.raises(SpeqcError, match=message):
        run_passes(CASES[message], "verify-onnx")
