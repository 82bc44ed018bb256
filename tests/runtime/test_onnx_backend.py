"""ONNX's own node tests, for every operator of the vector unit."""

import fnmatch
import importlib
import itertools
import pkgutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from speqc.runtime.vector_ops import VECTOR_OPS, evaluate
from speqc.runtime.vector_upgrade import OLDEST_OPSET

Case = Any
Tensors = Mapping[str, np.ndarray | None]

# Modules of onnx.backend.test.case.node are named after operators, with these exceptions.
MODULE_OF_OPERATOR = {"Range": "rangeop"}

# Names of tests (with wildcards) that the machine does not pass, and why.
EXCLUDED: Mapping[str, str] = {
    "test_cast*_to_BFLOAT16*": "the machine has no bfloat16",
    "test_cast*_to_FLOAT8*": "the machine has no 8-bit floats",
    "test_cast*_to_FLOAT4*": "the machine has no 4-bit floats",
    "test_cast*_to_*INT[24]*": "the machine has no integers of 2 or 4 bits",
    "test_identity_sequence": "tensors only, no sequences",
    "test_identity_opt": "tensors only, no optional values",
}


def _cases() -> Sequence[Case]:
    """Load the tests of our operators; loading all of ONNX's takes 10 seconds."""
    package = "onnx.backend.test.case.node"
    files = {name.replace("_", ""): name for name in _modules(package)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in VECTOR_OPS:
            file = MODULE_OF_OPERATOR.get(operator) or files[operator.lower()]
            importlib.import_module(f"{package}.{file}")
    known = VECTOR_OPS.keys() | {"Constant"}
    cases = importlib.import_module(package)._NodeTestCases
    return [case for case in cases if _operators(case) <= known]


def _modules(package: str) -> Sequence[str]:
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.iter_modules(path)]


def _operators(case: Case) -> set[str]:
    return {node.op_type for node in case.model.graph.node}


def _reason(case: Case) -> str | None:
    """Return why a test is excluded, or None."""
    for pattern, reason in EXCLUDED.items():
        if fnmatch.fnmatchcase(case.name, pattern):
            return reason
    return None


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
    """Return all tensors of a test's graph."""
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


def _check(case: Case) -> None:
    for inputs, outputs in case.data_sets:
        tensors = _run(case, inputs)
        for value, output in zip(case.model.graph.output, outputs, strict=True):
            if value.name not in tensors and _operators(case) == {"LayerNormalization"}:
                continue  # the means and deviations, which only training reads
            expected, actual = _tensor(output), tensors[value.name]
            assert isinstance(actual, np.ndarray)
            assert actual.flags.c_contiguous
            assert actual.dtype == expected.dtype
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=case.rtol, atol=case.atol)


CASES = _cases()
INCLUDED = [case for case in CASES if _reason(case) is None]


@pytest.mark.parametrize("case", INCLUDED, ids=lambda case: case.name)
def test_node(case: Case) -> None:
    _check(case)


@pytest.mark.parametrize("pattern", EXCLUDED)
def test_exclusions_are_needed(pattern: str) -> None:
    excluded = [case for case in CASES if fnmatch.fnmatchcase(case.name, pattern)]
    assert excluded
    for case in excluded:
        with pytest.raises(Exception):  # noqa: B017
            _check(case)


def test_every_operator_has_a_test() -> None:
    tested = set(itertools.chain.from_iterable(map(_operators, INCLUDED)))
    assert tested >= VECTOR_OPS.keys()
