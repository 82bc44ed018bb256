import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from speqc.artifact import load_artifact
from speqc.cli import main
from speqc.compare import MOST_LISTED, SHORT_ROW, compare, rounding
from speqc.compare_model import Comparison, compare_model, laid_out
from speqc.compile import CompileOptions, compile_model
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target

COMPACT = Path(__file__).parents[1] / "data" / "corpus" / "onnx"
"""Files of real exporters that stand in the repository."""

TOKENS = [5, 6, 7, 100, 200, 150, 17, 90]

HALF = rounding(np.float16)


def half(*values: float) -> np.ndarray:
    return np.array(values, np.float16)


def row(**elements: float) -> np.ndarray:
    """A row that is long enough to be measured alone: zeros but for the named elements."""
    values = np.zeros(SHORT_ROW, np.float16)
    for name, value in elements.items():
        values[int(name[1:])] = value
    return values


def test_equal_bits():
    ours = half(1, np.nan, np.inf, -0.0)
    verdict = compare(ours, ours.copy(), HALF)
    assert (verdict.equal, verdict.matches, verdict.largest_error) == (True, True, 0)


def test_zeros_of_two_signs_are_no_difference_but_not_equal_bits():
    verdict = compare(half(0.0), half(-0.0))
    assert (verdict.equal, verdict.matches) == (False, True)


@pytest.mark.parametrize(
    ("ours", "original"),
    [(np.nan, 1.0), (1.0, np.nan), (np.inf, 65504.0), (np.inf, -np.inf), (np.nan, np.inf)],
)
def test_what_is_not_finite_must_be_the_same(ours, original):
    verdict = compare(half(ours, 1), half(original, 1), HALF, slack=1e6)
    assert verdict.differing == 1
    assert verdict.largest_error == verdict.share == np.inf
    assert verdict.differences[0].index == (0,)


@pytest.mark.parametrize(("error", "differing"), [(0.0077, 0), (0.008, 1)])
def test_an_element_is_measured_by_the_largest_of_its_row(error, differing):
    """8 units of 2**-10: 0.0078 of a row whose largest element is 1."""
    original = np.stack([row(e0=1), row(e0=1000)])
    ours = np.stack([row(e0=1, e3=error), row(e0=1000)])
    assert compare(ours, original, HALF).differing == differing


def test_short_rows_are_measured_together():
    assert compare(half(1000, 1.5)[:, None], half(1000, 1)[:, None], HALF).matches
    assert not compare(half(1, 1.5)[:, None], half(1, 1)[:, None], HALF).matches


def test_slack_is_absolute():
    assert not compare(half(1, 0.1), half(1, 0), HALF).matches
    assert compare(half(1, 0.1), half(1, 0), HALF, slack=0.2).matches


def test_integers_and_truth_values_must_be_equal():
    large = np.array([2**62, 5])
    assert compare(large, large.copy()).equal
    assert compare(large + np.array([1, 0]), large, HALF, slack=9).differing == 1
    assert compare(np.array([True]), np.array([False]), HALF, slack=9).differing == 1


def test_ten_elements_are_listed_the_largest_errors_first():
    ours = np.arange(40, dtype=np.float16)
    verdict = compare(ours, np.zeros_like(ours), HALF)
    assert verdict.differing == 39
    listed = [item.index for item in verdict.differences]
    assert listed == [(place,) for place in range(39, 39 - MOST_LISTED, -1)]


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match="differ"):
        compare(half(1, 2), half(1, 2)[None])


def test_layouts():
    heads = np.arange(24).reshape(1, 2, 3, 4)
    joined = heads.transpose(0, 2, 1, 3).reshape(1, 3, 8)
    for theirs, shape, expected in (
        (heads, (2, 3, 4), heads[0]),
        (joined, (1, 2, 3, 4), heads),
        (heads, (1, 3, 8), joined),
    ):
        found = laid_out(theirs, shape)
        assert found is not None
        np.testing.assert_array_equal(found, expected)
    assert laid_out(heads, (1, 3, 2, 4)) is None
    assert laid_out(joined, (1, 8, 3)) is None
    assert laid_out(heads, (1, 3, 7)) is None


def compared(path: Path, model: Path) -> Comparison:
    artifact = load_artifact(path)
    machine = Machine(artifact.program, WeightFile(artifact.weights))
    return compare_model(artifact, machine, model, TOKENS)


def test_the_embedded_model_agrees_in_batches_too(kjv, model, monkeypatch):
    whole = compared(kjv, model)
    assert not whole.mismatching
    assert len(whole.compared) > 100
    assert {"MatMul", "Add", "Mul", "Concat"} <= {e.counterpart.op_type for e in whole.compared}
    assert whole.drift.agreeing == whole.drift.rows == len(TOKENS)
    monkeypatch.setattr("speqc.compare_model.BATCH_BYTES", 1 << 18)
    assert compared(kjv, model) == whole


@pytest.mark.parametrize(
    "name", ["llama/mobius-cuda", "qwen2/genai-cuda", "mistral/optimum", "opt/torch-nocache"]
)
def test_exporters_models_agree(name, tmp_path):
    """With functions, with fused operators and a residual sum in one, in FP32, without caches."""
    model = COMPACT / name / "model.onnx"
    compile_model(model, tmp_path / "out.speq", CompileOptions(load_target("speq-64x64")))
    comparison = compared(tmp_path / "out.speq", model)
    assert not comparison.mismatching
    assert len(comparison.compared) > 25


@pytest.fixture
def damaged(kjv, tmp_path):
    """A copy of the embedded model's artifact that may be damaged; `seal` makes it load again."""
    path = tmp_path / "damaged.speq"
    shutil.copytree(kjv, path)
    return path


def seal(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        entry["bytes"] = len(content)
        entry["digest"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    (path / "manifest.json").write_text(json.dumps(manifest))


def flip_signs(file: Path, tensor: str) -> None:
    """Flip the signs of 256 values of a plane of drafts."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    first = 8 + length + start
    content[first : first + 128] = bytes(value ^ 0x88 for value in content[first : first + 128])
    file.write_bytes(content)


def run_compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def test_a_damaged_weight_is_found_and_nothing_behind_it(damaged, model):
    flip_signs(damaged / "weights.safetensors", "linear_9.draft")
    seal(damaged)
    arguments = (damaged, "--token-ids", "5,6,7,8", "--compare", model)
    result = run_compare(*arguments)
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        "check failed: 1 of 121 values differ from the original's; the first divergent node is "
        "'node_linear_9' (MatMul)"
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mismatch: node 'node_linear_9' (MatMul), value 'linear_9' 1x4x")
    assert sum(" instead of " in line for line in lines) == MOST_LISTED
    assert lines[-1] == "first divergent node: 'node_linear_9' (MatMul)"
    fields = json.loads(run_compare(*arguments, "--json", "-").stdout)
    assert fields["mismatching"] == 1
    assert fields["first_divergent"]["node"] == "node_linear_9"
    assert len(fields["first_divergent"]["differences"]) == MOST_LISTED


@pytest.mark.parametrize(
    ("pattern", "old", "new", "op_type"),
    [
        ('pe.vector "rms_norm"', "epsilon = 1.000000e-06", "epsilon = 1.000000e+00", "Mul"),
        ("pe.attention @kv1", "score_type", "window = 2 : i64, score_type", "MatMul"),
    ],
)
def test_a_damaged_operation_is_found(damaged, model, pattern, old, new, op_type):
    """The first operation of @full that has the pattern is changed."""
    file = damaged / "program.mlir"
    lines = file.read_text("utf-8").splitlines()
    place = next(place for place, line in enumerate(lines) if pattern in line)
    assert old in lines[place]
    lines[place] = lines[place].replace(old, new)
    node = lines[place].rpartition('loc("')[2].rstrip('")')
    file.write_text("\n".join(lines) + "\n", "utf-8")
    seal(damaged)
    comparison = compared(damaged, model)
    assert [entry.counterpart.node for entry in comparison.mismatching] == [node]
    assert comparison.mismatching[0].counterpart.op_type == op_type


def test_all_values_are_listed_on_request(kjv, model):
    result = run_compare(kjv, "--token-ids", "5,6", "--compare", model, "--verbose")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["node", "operator"]
    assert any(line.startswith("compared 121 values of 2 tokens") for line in lines)
    assert sum("float16" in line for line in lines) > 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compare", "missing.onnx"), "missing.onnx: there is no such file"),
        (("--verbose",), "--verbose needs --compare"),
        (("--compare", "{model}", "--mode", "draft"), "leave out --mode"),
        (("--compare", "{model}", "-n", "3"), "leave out --new-tokens"),
        (("--compare", "{other}"), "is not the model that the artifact was compiled from"),
    ],
)
def test_bad_input_is_one_line(kjv, model, arguments, message):
    other = COMPACT / "opt/torch-nocache/model.onnx"
    given = [argument.format(model=model, other=other) for argument in arguments]
    result = run_compare(kjv, "--token-ids", "5,6", *given)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_onnxruntime_is_asked_for(kjv, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run_compare(kjv, "--token-ids", "5,6", "--compare", model)
    assert result.exit_code == 2
    assert result.stderr == "error: onnxruntime is not installed: pip install onnxruntime\n"
