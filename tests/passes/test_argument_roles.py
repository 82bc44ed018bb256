"""What arguments are for: by what the graph does with them, by their names only between equals."""

import pytest
from conftest import RunPasses

from speqc.passes.argument_roles import Role
from speqc.passes.matching import main_function
from speqc.passes.step_samples import step_arguments
from speqc.runtime.errors import SpeqcError

HEAD = """
builtin.module attributes {onnx.opset = 20 : i64} {
func.func @main(
  %a: tensor<1x?xi64> {onnx.name = "NAME_A", onnx.dims = ["1", "DIM_A"]},
  %b: tensor<1x?xi64> {onnx.name = "NAME_B", onnx.dims = ["1", "DIM_B"]}
) -> tensor<1x?xVOCABULARYxf16> {
  %first = onnx.initializer "first", "none" : tensor<99x8xf16>
  %second = onnx.initializer "second", "none" : tensor<500x8xf16>
  %x = onnx.Gather %first, %a : (tensor<99x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
"""

LOOKED_UP = """
  %z = onnx.Gather %second, %b : (tensor<500x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
  %y = onnx.Add %x, %z : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
"""

TURNED = """
  %f = onnx.Cast %b {to = 10 : i64} : (tensor<1x?xi64>) -> tensor<1x?xf16>
  %last = onnx.Constant dense<-1> : tensor<1xi64>
  %u = onnx.Unsqueeze %f, %last : (tensor<1x?xf16>, tensor<1xi64>) -> tensor<1x?x1xf16>
  %c = onnx.Cos %u : (tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
  %y = onnx.Mul %x, %c : (tensor<1x?x8xf16>, tensor<1x?x1xf16>) -> tensor<1x?x8xf16>
"""

COMPARED = """
  %t = onnx.Cast %b {to = 9 : i64} : (tensor<1x?xi64>) -> tensor<1x?xi1>
  %y = onnx.Identity %x : (tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
"""

TAIL = """
  %head = onnx.initializer "head", "none" : tensor<8xVOCABULARYxf16>
  %logits = onnx.MatMul %y, %head : (tensor<1x?x8xf16>, tensor<8xVOCABULARYxf16>) -> tensor<1x?xVOCABULARYxf16>
  func.return %logits : tensor<1x?xVOCABULARYxf16>
}
}
"""  # noqa: E501 (lines of IR)


def text(body: str, names: tuple[str, str], dim: str = "sequence", vocabulary: int = 99) -> str:
    result = HEAD + body + TAIL
    for old, new in zip(("NAME_A", "NAME_B"), names, strict=True):
        result = result.replace(old, new)
    result = result.replace("DIM_A", "sequence").replace("DIM_B", dim)
    return result.replace("VOCABULARY", str(vocabulary))


def roles(run_passes: RunPasses, source: str) -> list[Role]:
    module = run_passes(source)
    function = main_function(module)
    assert function is not None
    return [argument.role for argument in step_arguments(module, function)]


T, P, M, N = Role.TOKENS, Role.POSITIONS, Role.MASK, Role.OTHER


@pytest.mark.parametrize(
    ("body", "names", "dim", "vocabulary", "expected"),
    [
        # The table with a row for each logit is that of the tokens, whatever names say.
        (LOOKED_UP, ("position", "tokens"), "sequence", 99, [T, N]),
        (LOOKED_UP, ("x", "position_ids"), "sequence", 500, [N, T]),
        # Where no table has, that of no positions is; and where names are silent the larger.
        (LOOKED_UP, ("tokens", "position_ids"), "sequence", 128, [T, P]),
        (LOOKED_UP, ("x", "y"), "sequence", 128, [N, T]),
        (LOOKED_UP, ("tokens", "token_type_ids"), "sequence", 99, [T, N]),
        (LOOKED_UP, ("tokens", "type_mask"), "sequence", 99, [T, N]),
        (TURNED, ("x", "y"), "sequence", 99, [T, P]),
        (TURNED, ("x", "mask"), "sequence", 99, [T, P]),
        (COMPARED, ("x", "y"), "past + sequence", 99, [T, M]),
        (COMPARED, ("x", "position_ids"), "past + sequence", 99, [T, M]),
        (COMPARED, ("x", "attention_mask"), "sequence", 99, [T, M]),
        (COMPARED, ("x", "y"), "sequence", 99, [T, N]),
        (COMPARED, ("x", "position_ids"), "3", 99, [T, N]),
    ],
)
def test_roles(
    body: str,
    names: tuple[str, str],
    dim: str,
    vocabulary: int,
    expected: list[Role],
    run_passes: RunPasses,
) -> None:
    assert roles(run_passes, text(body, names, dim, vocabulary)) == expected


def test_an_input_that_nothing_tells_of_is_refused(run_passes: RunPasses) -> None:
    source = text(LOOKED_UP, ("tokens", "token_type_ids"))
    with pytest.raises(SpeqcError, match=r"^input 'token_type_ids' \[1, sequence\] is neither"):
        run_passes(source, "raise-positions", "raise-linear")
