"""Run ONNX's own node tests on the vector unit, and write the table of operators in the docs.

    python tools/node_tests.py [--check] [--page docs/operators.md]

Every standard operator of ONNX stands on the page: those that the machine runs, with the number of
tests that pass and the reason why others cannot, and those that it does not have, with the reason.
With `--check` nothing is written: exit code 1 says that the page is not what would be written.
"""

import argparse
import fnmatch
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from speqc.runtime.vector_logic import DTYPE_OF_ONNX
from speqc.runtime.vector_ops import VECTOR_OPS, evaluate
from speqc.runtime.vector_upgrade import OLDEST_OPSET

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
COMMAND = "python tools/node_tests.py"
VERSION = f"onnx {onnx.__version__}"

Case = Any
Tensors = Mapping[str, np.ndarray | None]

RAISED: Mapping[str, str] = {
    "Attention": "has no kernel, since `raise-attention` makes `speq.attention` of it; the tests "
    "of its definition pass",
}
"""Operators that the compiler takes and the vector unit has not."""

EXCLUDED: Mapping[str, str] = {
    "test_attention_4d_causal_fp16_expanded": "roundings on the way differ: two elements are two "
    "units in the last place apart, the exact values between them",
    "test_training_dropout": "elements fall out at random, which is for training",
    "test_training_dropout_mask": "elements fall out at random, which is for training",
    "test_training_dropout_default*": "elements fall out at random, which is for training",
}
"""Names of tests (with wildcards) that the machine does not pass, and why."""

KINDS = {"sequence_type": "sequences", "optional_type": "optional values"}
"""Types that are no tensors, and what holds them."""

TYPES = {
    "BFLOAT16": "bfloat16",
    "FLOAT8": "8-bit floats",
    "FLOAT4": "4-bit floats",
    "INT": "integers of 2 or 4 bits",
    "UINT": "integers of 2 or 4 bits",
    "STRING": "strings",
}
"""Beginnings of the names of the data types that the machine lacks, in words."""

ABSENT: Mapping[str, str] = {
    "are functions that no decoder computes": "Acos Acosh Asin Asinh Atan Atanh Cosh Det Shrink "
    "Sinh Tan Unique",
    "are for images": "AffineGrid AveragePool BatchNormalization CenterCropPad Col2Im Conv "
    "ConvTranspose DeformConv DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample "
    "ImageDecoder LRN LpPool MaxPool MaxRoiPool MaxUnpool MeanVarianceNormalization "
    "NonMaxSuppression Resize RoiAlign SpaceToDepth Upsample",
    "are for sound": "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT",
    "carry a state from token to token, or turn their order round": "CausalConvWithState GRU LSTM "
    "LinearAttention RNN ReverseSequence Scan",
    "hold graphs of their own": "If Loop SequenceMap",
    "are for sequences, optional values or text": "ConcatFromSequence Optional OptionalGetElement "
    "OptionalHasElement RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase "
    "SequenceInsert SequenceLength SplitToSequence StringConcat StringNormalizer StringSplit "
    "TfIdfVectorizer",
    "draw random numbers": "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform "
    "RandomUniformLike",
    "are for training": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "multiply quantised numbers": "ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv "
    "QLinearMatMul",
    "have been replaced in ONNX before the oldest version that is read": "Scatter Upsample",
}
"""What the operators that the machine does not have are for, or why it has them not."""

MODULE_OF_OPERATOR = {"Range": "rangeop"}
"""Modules of onnx.backend.test.case.node are named after operators, with these exceptions."""

PACKAGE = "onnx.backend.test.case.node"


@dataclass
class Row:
    """What the page says of one operator: how many tests pass, and reason -> how many do not."""

    passed: int = 0
    excluded: dict[str, int] = field(default_factory=dict)


@cache
def operators() -> tuple[str, ...]:
    """The operators with tests: those of the vector unit that this ONNX knows, and `RAISED`."""
    return tuple(sorted(name for name in {*VECTOR_OPS, *RAISED} if onnx.defs.has(name)))


@cache
def cases() -> Sequence[Case]:
    """ONNX's tests of our operators, and of their definitions by other operators ("expanded").

    Loading all of ONNX's takes 10 seconds.
    """
    path = importlib.import_module(PACKAGE).__path__
    files = {module.name.replace("_", ""): module.name for module in pkgutil.iter_modules(path)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in operators():
            file = MODULE_OF_OPERATOR.get(name) or files[name.lower()]
            importlib.import_module(f"{PACKAGE}.{file}")
    found = importlib.import_module(PACKAGE)._NodeTestCases
    return [case for case in found if operator_of(case) in operators()]


@cache
def _single_operators() -> Mapping[str, str]:
    """Test -> its operator, for all tests of one node."""
    found = importlib.import_module(PACKAGE)._NodeTestCases
    names = {case.name: [n.op_type for n in case.model.graph.node] for case in found}
    return {name: types[-1] for name, types in names.items() if len({*types} - {"Constant"}) == 1}


def operator_of(case: Case) -> str | None:
    """The operator that a test is about: of an expanded one, that which is expanded."""
    base, _, _ = case.name.partition("_expanded")
    return _single_operators().get(base) or _single_operators().get(case.name)


def reason_of(case: Case) -> str | None:
    """Why a test is excluded, or None."""
    graph = case.model.graph
    kinds = [value.type for value in graph.output]
    kinds += [value.type for value in graph.input if _is_text(value.type)]
    for kind in kinds:
        if (reason := _unknown_type(kind)) is not None:
            return reason
    for pattern, reason in EXCLUDED.items():
        if fnmatch.fnmatchcase(case.name, pattern):
            return reason
    missing = sorted({n.op_type for n in case.model.graph.node} - {*VECTOR_OPS, "Constant"})
    if not missing:
        return None
    return RAISED.get(missing[0], f"written out with {missing[0]}, which the machine has not")


def _unknown_type(kind: onnx.TypeProto) -> str | None:
    field = kind.WhichOneof("value")
    if field in KINDS:
        return f"tensors only, no {KINDS[field]}"
    number = kind.tensor_type.elem_type
    if number in DTYPE_OF_ONNX:
        return None
    name = onnx.TensorProto.DataType.Name(number)
    words = next(words for start, words in TYPES.items() if name.startswith(start))
    return f"the machine has no {words}"


def _is_text(kind: onnx.TypeProto) -> bool:
    return kind.tensor_type.elem_type == onnx.TensorProto.STRING


def _tensor(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else _tensor(value)


def _run_node(node: onnx.NodeProto, opset: int, tensors: Tensors) -> Mapping[str, np.ndarray]:
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    if node.op_type == "Constant":
        (value,) = attributes.values()
        dtype = np.float32 if "float" in next(iter(attributes)) else None
        results = [np.asarray(value, dtype)]
    else:
        inputs = [tensors[name] if name else None for name in node.input]
        results = evaluate(node.op_type, inputs, attributes, opset, len(node.output))
    return dict(zip(node.output, results, strict=False))


def _run(case: Case, inputs: Sequence[Any]) -> Tensors:
    """All tensors of a test's graph."""
    graph = case.model.graph
    # A test states its operator's own version, which may be older than any model's.
    opset = max(case.model.opset_import[0].version, OLDEST_OPSET)
    names = [value.name for value in graph.input]
    tensors = {name: np.array(_tensor(x)) for name, x in zip(names, inputs, strict=True)}
    for node in graph.node:
        tensors.update(_run_node(node, opset, tensors))
    for name, x in zip(names, inputs, strict=True):
        assert tensors[name].tobytes() == np.array(_tensor(x)).tobytes(), "input written to"
    return tensors


def check(case: Case) -> None:
    """Run a test; an exception says that it fails."""
    for inputs, outputs in case.data_sets:
        tensors = _run(case, inputs)
        for value, output in zip(case.model.graph.output, outputs, strict=True):
            expected, actual = _tensor(output), tensors[value.name]
            assert isinstance(actual, np.ndarray)
            assert actual.flags.c_contiguous
            assert actual.dtype == expected.dtype
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=case.rtol, atol=case.atol)


def table(run: bool) -> Mapping[str, Row]:
    """What the page says of each operator; `run` runs the tests, else they are taken to pass.

    An exception says that a test fails that should not.
    """
    rows = {name: Row() for name in operators()}
    for case in cases():
        row, reason = rows[operator_of(case) or ""], reason_of(case)
        if reason is not None:
            row.excluded[reason] = row.excluded.get(reason, 0) + 1
            continue
        if run:
            check(case)
        row.passed += 1
    return rows


def absent() -> Mapping[str, Sequence[str]]:
    """Reason -> the standard operators that the machine does not have for it."""
    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    left = standard - {*VECTOR_OPS, *RAISED, "Constant"}
    groups = {reason: sorted(left.intersection(names.split())) for reason, names in ABSENT.items()}
    if unnamed := sorted(left.difference(*groups.values())):
        raise ValueError(f"no reason for the absence of {', '.join(unnamed)}")
    return groups


def page(run: bool = False) -> str:
    """The text of the page; `run` as in `table`."""
    return "\n".join(_lines(table(run)))


def _lines(rows: Mapping[str, Row]) -> Iterator[str]:
    passed = sum(row.passed for row in rows.values())
    excluded = sum(sum(row.excluded.values()) for row in rows.values())
    tests = f"{len(rows)} operators have {passed + excluded} tests"
    yield f"""# Operators

Written by `{COMMAND}`: ONNX's own node tests ({VERSION}) on the kernels
of the vector unit, results compared within the tests' tolerances. Among them are the tests of an
operator's definition by other operators. {tests}: {passed} pass,
{excluded} are excluded. The machine has truth values, FP16, FP32, FP64 and integers of 8 to 64
bits; numbers of other types are read where they are converted, and not made.

A step may use any operator here, as far as it keeps the rows of different tokens apart
(`passes/row_rules.py`). `NonZero`, `Compress` and `EyeLike`, whose results are sized by values or
by the number of tokens, stand in constants only; `RotaryEmbedding` and `TensorScatter` are taken
by passes first.

| operator | passed | excluded | why |
|---|---:|---:|---|"""
    for name, row in rows.items():
        reasons = "; ".join(f"{why} ({count})" for why, count in sorted(row.excluded.items()))
        yield f"| {name} | {row.passed} | {sum(row.excluded.values())} | {reasons} |"
    yield """
## What the machine does not have

A graph in which one of these stands behind the importer's constant folding is refused.

| operators | they |
|---|---|"""
    for reason, names in absent().items():
        yield f"| {', '.join(names)} | {reason} |"
    yield ""


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page lies")
    options = parser.parse_args()
    text = page(run=True)
    if not options.check:
        options.page.write_text(text, "utf-8")
        return 0
    if options.page.exists() and options.page.read_text("utf-8") == text:
        return 0
    print(f"{options.page} is stale: run {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
