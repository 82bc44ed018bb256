import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speqc.cli import main
from speqc.diagnostics import one_line
from speqc.report import write_json
from speqc.runtime.errors import CheckFailed, SpeqcError

COMMANDS = (
    "bench",
    "compile",
    "demo",
    "eval",
    "inspect",
    "opt",
    "report",
    "run",
    "simulate",
    "targets",
)


def expect_error(result, *fragments: str, code: int = 2) -> None:
    """One line on standard error that says what is wrong, nothing on standard output."""
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    for fragment in fragments:
        assert fragment in line


def test_help_lists_every_command(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    assert tuple(sorted(main.commands)) == COMMANDS
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
        assert invoke(command, "--help").exit_code == 0


def test_help_imports_nothing_heavy():
    """The answer is to come in less than half a second: no library that takes long is loaded."""
    code = (
        "import sys, speqc.cli;"
        "heavy = {'numpy', 'numba', 'xdsl', 'onnx', 'onnx_ir', 'rich', 'tokenizers', 'jinja2'};"
        "print(*heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "opt"])
def test_unknown_options_are_refused(invoke, command):
    result = invoke(command, "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr
    assert result.stdout == ""


def test_unknown_commands_are_refused(invoke):
    assert invoke("no-such-command").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("run", "x.speq"), "--prompt or --token-ids"),
        (("run", "x.speq", "--prompt", "a", "--token-ids", "1"), "--prompt or --token-ids"),
        (("run", "x.speq", "--token-ids", "1", "--chat"), "--chat needs --prompt"),
        (("run", "x.speq", "--prompt", "a", "-n", "0"), "0 is not in the range"),
        (("run", "x.speq", "--prompt", "a", "--mode", "fast"), "'fast' is not one of"),
        (("run", "x.speq", "--prompt", "a", "--exit-threshold", "1.5"), "1.5 is not in the range"),
        (("run", "x.speq", "--prompt", "a", "--temperature", "inf"), "inf is not a finite number"),
        (("run", "x.speq", "--prompt", "a", "--exit-threshold", "nan"), "nan is not a finite"),
        (("simulate", "x.speq", "--acceptance", "nan"), "nan is not a finite number"),
        (("simulate", "llama-2-7b", "--new-tokens", "5"), "--prompt-length and --new-tokens"),
        (("simulate", "x.speq", "--replay", "r", "--acceptance", "1"), "exclude each other"),
        (("compile", "m.onnx", "--codebook", "best"), "'best' is not one of"),
        (("compile", "m.onnx", "--emit", "pe", "-o", "x"), "--emit prints"),
        (("inspect", "x.speq", "--program", "--json", "-"), "exclude each other"),
    ],
)
def test_wrong_options_are_refused(invoke, arguments, fragment):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert fragment in result.stderr
    assert result.stdout == ""


def test_targets_shows_values_and_sources(invoke):
    result = invoke("targets")
    assert result.exit_code == 0
    assert "speq-64x64 (default)" in result.stdout
    assert "51,200,000,000  LPDDR5, Omni-LUT" in result.stdout


def test_unknown_target_is_one_line(invoke, model, tmp_path):
    expect_error(
        invoke("compile", model, "-o", tmp_path / "x.speq", "--target", "speq-1x1"),
        "error: unknown target 'speq-1x1'",
    )


def test_files_that_are_not_there(invoke, tmp_path):
    missing = tmp_path / "missing"
    expect_error(invoke("run", missing, "--prompt", "a"), str(missing), "no such file or folder")
    expect_error(invoke("inspect", missing), str(missing))
    expect_error(invoke("opt", missing), f"error: {missing}: No such file or directory")
    arguments = ("simulate", missing, "--prompt-length", "1", "--new-tokens", "1")
    expect_error(invoke(*arguments), str(missing))


def test_opt_says_what_is_wrong_and_where_in_one_line(invoke, tmp_path):
    text = tmp_path / "text.mlir"
    text.write_text("\n  nonsense.op")
    expect_error(invoke("opt", text), f"error: {text}:2:", "nonsense.op is not registered")
    text.write_text("speq.cache @kv0 {heads = 0, key_dim = 4, value_dim = 4, element_type = f16}")
    expect_error(invoke("opt", text), f"error: {text}: heads must be positive", 'in: "speq.cache"')
    other = tmp_path / "text"
    other.write_text("")
    expect_error(invoke("opt", other, "-p", "cse"), f"error: {other}: Unrecognized", "--frontend")
    expect_error(invoke("opt", "-p", "cse{", text), "error: -p: ")
    expect_error(invoke("opt", "-p", "split-weights{no-such=1}", text), "error: -p: ", "no_such")


def test_opt_refuses_unknown_options():
    """Its options are xDSL's, read by argparse, which writes past click's test runner."""
    speqc = Path(sys.executable).parent / "speqc"
    done = subprocess.run([speqc, "opt", "--no-such-option"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "speqc opt: error: unrecognized arguments: --no-such-option" in done.stderr


@pytest.mark.parametrize("arguments", ["targets", "demo --help"])
def test_closed_output_is_no_failure(arguments):
    """As with `| head -1`: the reader goes away after the first line, or at once."""
    speqc = Path(sys.executable).parent / "speqc"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([speqc, *arguments.split()], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("command", ["run", "simulate", "inspect"])
def test_where_a_report_goes_is_checked_first(invoke, tmp_path, command):
    """Before the artifact is opened, which is an empty folder here."""
    needed = {"run": ("--prompt", "a"), "simulate": ("--replay", "r"), "inspect": ()}[command]
    for file, fragment in (("no/x.json", "does not exist"), (".", "is a folder")):
        arguments = (command, tmp_path, *needed, "--json", tmp_path / file)
        expect_error(invoke(*arguments), "error: --json: ", fragment)


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.json"
    write_json({"old": 1}, str(file))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"new": float("nan")}, str(file))
    assert json.loads(file.read_text()) == {"old": 1}
    link = tmp_path / "link"
    link.symlink_to(file)
    write_json({"new": 2}, str(link))
    assert link.is_symlink()
    assert json.loads(file.read_text()) == {"new": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "link"}
    write_json({}, os.devnull)
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SpeqcError("a:\n  b"), 2, "error: a: b"),
        (CheckFailed("token 3"), 1, "check failed: token 3"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: x: No such file"),
        (OSError("disk full"), 2, "error: disk full"),
        (MemoryError("3 GiB"), 2, "error: not enough memory: 3 GiB"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_kind_of_failure_is_one_line(invoke, monkeypatch, error, code, line):
    def fail():
        raise error

    monkeypatch.setattr("speqc.show_targets.show_targets", fail)
    result = invoke("targets")
    assert (result.exit_code, result.stderr, result.stdout) == (code, line + "\n", "")


def test_internal_errors_tell_how_to_report_them(invoke, monkeypatch):
    monkeypatch.setattr("speqc.show_targets.show_targets", lambda: {}["key"])
    expect_error(invoke("targets"), "internal error, KeyError: 'key'", "SPEQC_DEBUG=1")
    monkeypatch.setenv("SPEQC_DEBUG", "1")
    assert "Traceback" in invoke("targets").stderr


def test_long_messages_are_cut():
    assert len(one_line(SpeqcError("x" * 10_000))) < 2100


def test_demo_prints_text_and_report(invoke):
    result = invoke("demo", "-n", "8", "--prompt", "And God said")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("And God said")
    for label in ("acceptance rate", "mean acceptance length", "full passes per token"):
        assert f"{label}: " in result.stderr
    for label in ("simulated time", "speedup"):
        assert f"{label}: " in result.stderr


def test_inspect_shows_every_weight_of_an_artifact(invoke, kjv):
    table = invoke("inspect", kjv).stdout
    fields = json.loads(invoke("inspect", kjv, "--json", "-").stdout)
    assert len(fields["weights"]) > 20
    for weight in fields["weights"]:
        assert weight["exact"]
        assert weight["codebook"] == "sets"
        assert 15 < weight["draft_snr_db"] < 30
        assert sum(weight["exponents"]) == weight["shape"][0] * weight["shape"][1]
        row = next(line for line in table.splitlines() if line.startswith(weight["name"] + " "))
        assert f"{weight['draft_snr_db']:.2f} dB" in row
        assert row.split()[-1] == "yes"
    assert "pe.gemm" in table
    assert fields["operations"]["draft"]["pe.gemm"] == len(fields["weights"])


def test_inspect_shows_operators_and_tensors_of_a_model(invoke, model, kjv):
    fields = json.loads(invoke("inspect", model, "--json", "-").stdout)
    assert fields["operations"]["main"]["onnx.MatMul"] > 20
    matrices = [tensor for tensor in fields["weights"] if tensor["exponents"]]
    sources = {
        w["source"] for w in json.loads(invoke("inspect", kjv, "--json", "-").stdout)["weights"]
    }
    assert sources == {tensor["name"] for tensor in matrices}
    assert all(tensor["codebooks"]["sets"] == "yes" for tensor in matrices)
    assert "onnx.MatMul" in invoke("inspect", model).stdout


def test_inspect_lists_the_program(invoke, kjv, model, tmp_path):
    listing = invoke("inspect", kjv, "--program").stdout
    assert listing == (kjv / "program.mlir").read_text()
    expect_error(invoke("inspect", model, "--program"), "only an artifact has a program")
