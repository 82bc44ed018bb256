"""What is said before the work begins, and about which file, pass or model."""

import json
import re
from pathlib import Path

import numba
import pytest

from speqc.compile import CompileOptions, compile_model
from speqc.kernel_clock import compilation_seconds, watch_compilation
from speqc.opt import expected_levels
from speqc.pipeline import PASSES
from speqc.recorded_model import check_recorded, model_fields
from speqc.runtime.errors import SpeqcError
from speqc.target_files import load_target


@pytest.fixture(scope="module")
def recording(kjv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from click.testing import CliRunner

    from speqc.cli import main

    path = tmp_path_factory.mktemp("recording") / "run.json"
    arguments = ("run", kjv, "--prompt", "And it", "-n", 6, "--json", path)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return path


def changed(recording: Path, folder: Path, **model: object) -> Path:
    """A copy that says something else of its model."""
    report = json.loads(recording.read_text())
    report["model"] = report["model"] | model
    path = folder / "changed.json"
    path.write_text(json.dumps(report))
    return path


def refused(result, *fragments: str) -> None:
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert all(fragment in line for fragment in fragments), line


@pytest.mark.parametrize("command", [("simulate", "--replay"), ("report", "--run")])
def test_a_recording_of_another_model_is_refused(invoke, kjv, recording, tmp_path, command):
    name, option = command
    output = ("-o", tmp_path / "page.html") if name == "report" else ()
    other = changed(recording, tmp_path, source={"else.onnx": "sha256:00"})
    refused(invoke(name, kjv, option, other, *output), str(other), "another model", "else.onnx")
    result = invoke(name, kjv, option, recording, *output)
    assert result.exit_code == 0, result.stderr
    assert "recorded" not in result.stderr


def test_a_recording_is_for_any_target_and_any_compilation(invoke, kjv, model, recording, tmp_path):
    again = tmp_path / "again.speq"
    one_lane = load_target("speq-64x64-one-lane")
    compile_model(model, again, CompileOptions(one_lane, weights=False))
    for more in ((kjv, "--target", "speq-64x64-one-lane"), (again,)):
        result = invoke("simulate", *more, "--replay", recording)
        assert result.exit_code == 0, result.stderr
        assert "was recorded" not in result.stderr


def test_another_draft_is_worth_a_note(invoke, kjv, recording, tmp_path):
    draft = json.loads(recording.read_text())["model"]["draft"] | {"group_size": 128}
    result = invoke("simulate", kjv, "--replay", changed(recording, tmp_path, draft=draft))
    assert result.exit_code == 0
    assert "recorded with another draft (group_size 128, not 64)" in result.stderr


def test_a_recording_that_does_not_say(capsys):
    manifest = {"source": {"m.onnx": "sha256:0"}, "options": {"codebook": "sets"}}
    check_recorded(Path("r"), None, Path("a"), manifest)
    assert "does not say which model" in capsys.readouterr().err
    check_recorded(Path("r"), model_fields(manifest), Path("a"), manifest)
    assert capsys.readouterr().err == ""
    with pytest.raises(SpeqcError, match="field 'model' is damaged"):
        check_recorded(Path("r"), "m.onnx", Path("a"), manifest)


@pytest.mark.parametrize("option", ["--json", "--trace"])
def test_where_nothing_can_be_written_is_said_first(invoke, tmp_path, option):
    """Before the artifact is opened, which is an empty folder here; no other file is named."""
    file = tmp_path / "file"
    file.touch()
    for path, fragment in (
        (file / "x.json", "is a file, not a folder"),
        (Path("/proc/x.json"), "to write to /proc" if Path("/proc").is_dir() else "not exist"),
        (tmp_path / ("x" * 300), "name too long"),
        (tmp_path / "no" / "x.json", "does not exist"),
    ):
        result = invoke("run", tmp_path, "--prompt", "a", option, path)
        refused(result, f"error: {option}: {path}: ")
        assert fragment.lower() in result.stderr.lower().replace("written", "to write")
        assert ".part" not in result.stderr


def test_where_an_artifact_can_not_be_written_is_said_first(invoke, tmp_path, model):
    file = tmp_path / "file"
    file.touch()
    refused(invoke("compile", model, "-o", file / "x.speq"), f"{file / 'x.speq'}: ", "is a file")
    refused(
        invoke("compile", model, "-o", tmp_path / "x", "--dump-ir", file), "--dump-ir", "is a file"
    )


def test_a_name_is_looked_at_before_the_lengths(invoke):
    refused(invoke("simulate", "llama-2-8b"), "no such shape", "llama-2-7b", "did you mean llama-")
    refused(invoke("simulate", "llama-2-7b"), "give --prompt-length and --new-tokens")


@pytest.mark.parametrize("command", ["run", "simulate", "report"])
def test_a_model_is_to_be_compiled_first(invoke, tmp_path, command):
    model = tmp_path / "m.onnx"
    model.touch()
    more = ("--prompt", "a") if command == "run" else ()
    refused(invoke(command, model, *more), f"compile it first: speqc compile {model}")


def test_questions_end_in_one_mark(invoke):
    result = invoke("run", "x", "--prompt", "a", "--new-token", "3")
    assert re.search(r"Did you mean [^.]*\?\)? See 'main run --help'\.$", result.stderr)


def test_an_empty_prompt_of_the_demo_is_refused_before_it_compiles(invoke, monkeypatch):
    monkeypatch.setattr("speqc.demo.compile_model", None)
    refused(invoke("demo", "--prompt", ""), "--prompt: the text is empty")


def test_compiling_kernels_is_said_once_and_counted(capsys):
    def double(x):
        return 2 * x

    watch_compilation()
    before = compilation_seconds()
    assert numba.njit(double)(3) == 6
    assert compilation_seconds() > before
    assert numba.njit(double)(3.0) == 6
    assert capsys.readouterr().err.count("note: compiling kernels") <= 1


def test_opt_prints_locations_as_dumps_do(invoke, kjv, capsys):
    program = kjv / "program.mlir"
    same = invoke("opt", program, "-p", "elide-mode-switches")
    assert same.exit_code == 0, same.stderr
    assert same.stdout == program.read_text()
    assert ' loc("' in same.stdout
    assert " loc(" not in invoke("opt", program, "--no-locations").stdout


def test_opt_says_which_level_a_pass_is_for(invoke, kjv):
    result = invoke("opt", kjv / "program.mlir", "-p", "raise-rms-norm,cse,verify-pe")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("note: raise-rms-norm is for IR of the level onnx, and this is pe")


def test_the_pipeline_finds_the_levels_that_it_needs():
    assert all(expected_levels(name) for name in PASSES)
    assert expected_levels("lower-to-pe") == expected_levels("split-weights") == ("speq",)
    assert expected_levels("cse") == ()


def test_opt_names_our_passes_and_near_ones(invoke):
    help = " ".join(invoke("opt", "--help").stdout.split()).replace("- ", "-")
    assert "Passes of speqc (the others are xDSL's): verify-onnx" in help
    _, _, listed = "".join(help.split()).partition("Availablepassesare:")
    assert listed.startswith(",".join(PASSES))
    for name, meant in (
        ("elide-mode-switch", "elide-mode-switches"),
        ("canonicalise", "canonicalize"),
    ):
        refused(invoke("opt", "-p", name, "x.mlir"), name, f"did you mean {meant}?")


def test_a_report_has_the_prompt_chunk_of_the_run(invoke, kjv, recording, tmp_path):
    from test_html_report import data

    path = tmp_path / "page.html"
    assert invoke("report", kjv, "--run", recording, "-o", path).exit_code == 0
    step = data(path.read_text("utf-8"), "summary")["steps"][-1]
    assert (step["rows"], step["past"]) == (json.loads(recording.read_text())["prompt_tokens"], 0)
