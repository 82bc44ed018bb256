"""`speqc compile --no-weights`: shapes alone, of models whose data are not there."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from xdsl.dialects.builtin import ModuleOp

from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.decoder_graph import external_tensor
from speqc.dialects.speq import WeightOp
from speqc.program_reader import read_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.tensor_references import has_bytes
from speqc.target_files import load_target

GENERATOR = Path(__file__).parents[2] / "tools" / "make_large_model.py"
SIZES = ("--layers=2", "--hidden=96", "--intermediate=160", "--heads=4", "--kv-heads=2")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its data."""
    folder = tmp_path_factory.mktemp("generated")
    command = [sys.executable, str(GENERATOR), str(folder), *SIZES, "--vocabulary=300"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def alone(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without them."""
    path = tmp_path_factory.mktemp("alone") / "model.onnx"
    path.write_bytes(generated.read_bytes())
    return path


def options(codebook: str = "sets", *, weights: bool = False) -> CompileOptions:
    return CompileOptions(load_target("speq-64x64"), codebook, weights=weights)


@pytest.fixture(scope="module")
def artifact(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "shapes.speq"
    compile_model(alone, path, options())
    return path


def test_without_the_option_the_data_are_asked_for(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(SpeqcError, match=r"external data file 'model\.onnx\.data' is missing"):
        compile_model(alone, tmp_path / "m.speq", options(weights=True))


def test_artifact_says_that_it_has_no_weights(artifact: Path) -> None:
    assert {file.name for file in artifact.iterdir()} == {"program.mlir", "manifest.json"}
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["weights"] is None
    assert manifest["lossless"] == {"verified": False, "values": 0}
    weights = [op for op in load_artifact(artifact).program.ops if isinstance(op, WeightOp)]
    assert {op.digest.data for op in weights} == {"none"}
    assert all(op.is_split and op.exponents is None for op in weights)


def test_an_artifact_with_weights_names_them(kjv: Path) -> None:
    manifest = json.loads((kjv / "manifest.json").read_text())
    assert manifest["weights"] == "weights.safetensors"


@pytest.mark.parametrize("codebook", ["sets", "paper", "naive"])
def test_times_are_those_of_the_model_with_its_weights(
    generated: Path, alone: Path, tmp_path: Path, codebook: str
) -> None:
    timers = []
    for name, model, weights in (("a", generated, True), ("b", alone, False)):
        compile_model(model, tmp_path / name, options(codebook, weights=weights))
        timers.append(ProgramTimer(load_artifact(tmp_path / name).program))
    for call in (("full", 1, 0), ("full", 9, 300), ("draft", 1, 77), ("full", 64, 64)):
        assert timers[0].cost(*call) == timers[1].cost(*call)


def test_data_that_are_there_are_not_read(generated: Path, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(generated.read_bytes())
    data = tmp_path / "model.onnx.data"
    data.write_bytes(bytes((generated.parent / data.name).stat().st_size))
    compile_model(copy, tmp_path / "m.speq", options())
    for name in ("program.mlir", "manifest.json"):
        assert (tmp_path / "m.speq" / name).read_bytes() == (artifact / name).read_bytes()


def test_commands_on_it(artifact: Path, invoke) -> None:
    lengths = ("--prompt-length", 10, "--new-tokens", 10)
    assert invoke("simulate", artifact, *lengths).exit_code == 0
    shown = invoke("inspect", artifact)
    assert shown.exit_code == 0
    assert "no weights: compiled with --no-weights" in shown.stdout
    assert "NO" not in shown.stdout.split()
    facts = json.loads(invoke("inspect", artifact, "--json", "-").stdout)["weights"]
    assert {fact["exact"] for fact in facts} == {None}
    program = invoke("inspect", artifact, "--program")
    assert 'digest = "none"' in program.stdout
    for mode in (("--mode", "draft"), ("--check",), ()):
        result = invoke("run", artifact, "--token-ids", "1,2", *mode)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.endswith(
            "has no weights (compiled with --no-weights): there is nothing to compute with; "
            "'speqc simulate' times it"
        )


def test_command_line_says_what_is_assumed(alone: Path, tmp_path: Path, invoke) -> None:
    out = tmp_path / "m.speq"
    result = invoke("compile", alone, "--no-weights", "-o", out)
    assert result.exit_code == 0
    assert "every weight of a product is taken to fit the code book" in result.stderr
    assert "every bit is there" not in result.stderr
    again = tmp_path / "n.speq"
    invoke("compile", alone, "--no-weights", "-o", again)
    assert (again / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()


def test_embedded_weights_are_left_out_too(model: Path, tmp_path: Path, invoke) -> None:
    result = invoke("compile", model, "--no-weights", "-o", tmp_path / "m.speq")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "m.speq" / "weights.safetensors").exists()


def test_small_tensors_are_needed(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["x"], "embed"),
        onnx.helper.make_node("Mul", ["x", "factor"], ["y"], "scale"),
        onnx.helper.make_node("MatMul", ["y", "head"], ["logits"], "head"),
    ]
    tensors = [
        external_tensor(name, shape, "gone.data", 0)
        for name, shape in (("table", (80, 16)), ("head", (16, 80)), ("factor", (16,)))
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT16, ["b", "s", 80])],
        tensors,
    )
    path = tmp_path / "small.onnx"
    path.write_bytes(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
        ).SerializeToString()
    )
    with pytest.raises(SpeqcError, match=r"tensor 'factor': external data file 'gone\.data'"):
        compile_model(path, tmp_path / "m.speq", options())


def test_program_and_manifest_must_agree(artifact: Path, kjv: Path, tmp_path: Path) -> None:
    def program(path: Path) -> ModuleOp:
        return read_program(path / "program.mlir")

    assert not has_bytes(program(artifact))
    assert has_bytes(program(kjv))
    mixed = program(artifact)
    weight = next(op for op in mixed.ops if isinstance(op, WeightOp))
    weight.digest = type(weight.digest)("sha256:00")
    with pytest.raises(SpeqcError, match="in a program either all have or none"):
        has_bytes(mixed)
