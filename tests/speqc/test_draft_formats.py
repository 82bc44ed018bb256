"""`--draft-format`: drafts that read a separate copy, from command line to last logit bit."""

import base64
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from onnx_models import decoder, save

from speqc.artifact import load_artifact
from speqc.cli import DRAFT_FORMAT, main
from speqc.compile import CompileOptions, compile_model
from speqc.dialects.speq import WeightOp
from speqc.passes.split_weights import DRAFT_FORMATS
from speqc.runtime.copies import encode_copy
from speqc.runtime.copy_formats import COPY_FORMATS, copy_format
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.errors import SpeqcError
from speqc.runtime.machine import Machine
from speqc.runtime.target import Target
from speqc.runtime.weights import WeightFile

BITS = {"int4": 4.3125, "mxfp4": 4.25, "nvfp4": 4.5}
EVERY = pytest.mark.parametrize("name", COPY_FORMATS)
CALIBRATED = pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
PROMPT = np.random.default_rng(3).integers(0, 2000, 40).tolist()

Compiled = Callable[[str, bool], Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Compiled:
    """The embedded model with copies in a format, calibrated or not; compiled once."""
    folder = tmp_path_factory.mktemp("formats")

    def compile_once(name: str, calibrated: bool) -> Path:
        out = folder / f"{name}-{calibrated}.speq"
        if not out.exists():
            options = CompileOptions(
                Target(),
                draft_format=name,
                calibration="self" if calibrated else None,
                calibration_tokens=400,
            )
            compile_model(model, out, options)
        return out

    return compile_once


def machine_of(path: Path) -> Machine:
    artifact = load_artifact(path)
    return Machine(artifact.program, WeightFile(artifact.weights))


@EVERY
@CALIBRATED
def test_decoding_is_lossless(compiled: Compiled, kjv: Path, name: str, calibrated: bool):
    """Tokens and logits are those of plain decoding, which are those of every other artifact."""
    machine = machine_of(compiled(name, calibrated))
    plain = decode(machine, "autoregressive", PROMPT, DecodeOptions(24), keep_logits=True)
    for length, threshold in ((1, 0.0), (6, 0.0), (8, 0.4)):
        options = DecodeOptions(24, length, threshold)
        found = decode(machine, "speculative", PROMPT, options, keep_logits=True)
        assert found.tokens == plain.tokens
        assert [row.tobytes() for row in found.logits] == [row.tobytes() for row in plain.logits]
        accepted = sum(entry.accepted for entry in found.rounds)
        drafted = sum(entry.drafted for entry in found.rounds)
        assert 0 < accepted <= drafted
    other = decode(machine_of(kjv), "autoregressive", PROMPT, DecodeOptions(24), keep_logits=True)
    assert [row.tobytes() for row in other.logits] == [row.tobytes() for row in plain.logits]


@EVERY
def test_drafts_are_accepted_and_rejected(compiled: Compiled, name: str):
    """Drafts that are always right, or always wrong, would make the tests above say nothing."""
    machine = machine_of(compiled(name, False))
    rounds = []
    for seed in range(4):
        prompt = np.random.default_rng(seed).integers(0, 2000, 5).tolist()
        rounds += decode(machine, "speculative", prompt, DecodeOptions(24, 6, 0.0)).rounds
    drafted = sum(entry.drafted for entry in rounds)
    assert drafted / 2 < sum(entry.accepted for entry in rounds) < drafted


@EVERY
def test_calibration_brings_the_draft_nearer(compiled: Compiled, name: str):
    distances = []
    for calibrated in (False, True):
        machine = machine_of(compiled(name, calibrated))
        full = machine.call("full", PROMPT).astype(np.float64)
        machine.reset()
        distances.append(np.square(machine.call("draft", PROMPT) - full).mean())
    assert distances[1] < 0.8 * distances[0]
    manifest = load_artifact(compiled(name, True)).manifest
    for ratio in manifest["calibration"]["output_snr_db"].values():
        assert ratio["after"] > ratio["before"] + 1


@EVERY
def test_inspect_shows_format_bits_error_and_exactness(compiled: Compiled, invoke, name: str):
    path = compiled(name, True)
    facts = json.loads(invoke("inspect", path, "--json", "-").stdout)
    form = copy_format(name)
    assert facts["options"]["draft_format"] == name
    assert "codebook" not in facts["options"]
    assert facts["draft_bits_per_weight"] == BITS[name]
    weights = facts["weights"]
    assert len(weights) == 29
    for weight in weights:
        k, n = weight["shape"]
        assert (weight["draft_format"], weight["codebook"]) == (name, None)
        assert weight["group_size"] == form.group_size and weight["draft_view"] == "draft"
        assert weight["exact"] and 12 < weight["draft_snr_db"] < 25
        # Both the weight and its copy; all sizes of this model are whole groups and blocks.
        assert weight["bytes"] * 8 == k * n * (16 + BITS[name])
    shown = invoke("inspect", path)
    assert shown.exit_code == 0
    assert f"{name} copy" in shown.stdout and "calibrated on self" in shown.stdout
    assert invoke("inspect", path, "--program").stdout.count(f'copy = "{name}"') == 29


@EVERY
def test_the_file_holds_a_tensor_of_the_format(compiled: Compiled, model: Path, name: str):
    """Read with `ml_dtypes` and nothing of ours; the draft's panels say the same."""
    artifact = load_artifact(compiled(name, False))
    file = WeightFile(artifact.weights)
    op = next(op for op in artifact.program.ops if isinstance(op, WeightOp))
    k, n = op.shape
    symbol, shift = op.sym_name.data, 0 if op.shift is None else op.shift.value.data

    def matrix(panels):
        return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)

    plane = matrix(file.read(f"{symbol}.draft"))
    nibbles = np.stack([plane & 15, plane >> 4], axis=-1).reshape(k, -1)[:, :n]
    scales = matrix(file.read(f"{symbol}.scales"))[:, :n]
    levels = nibbles.astype(np.float64)
    if name == "int4":
        packed = matrix(file.read(f"{symbol}.zeros"))
        zeros = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :n]
        levels -= zeros.repeat(64, axis=0)
    else:
        levels = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        dtype = ml_dtypes.float8_e8m0fnu if name == "mxfp4" else ml_dtypes.float8_e4m3fn
        scales = scales.view(dtype)
    size = copy_format(name).group_size
    values = levels * scales.astype(np.float64).repeat(size, axis=0) * 2.0**shift
    machine = Machine(artifact.program, file)
    panels, factors = machine.weights[symbol].draft()
    shown = matrix(panels.view(np.float16))[:, :n].astype(np.float64)
    shown *= matrix(factors)[:, :n].astype(np.float64).repeat(size, axis=0)
    assert np.array_equal(shown, values)
    exact = matrix(file.read(f"{symbol}.fp16"))[:, :n]
    expected = encode_copy(exact, copy_format(name), size, shift)
    assert np.array_equal(expected.nibbles, nibbles)


def test_a_draft_step_reads_the_copy_and_a_full_one_the_weights(compiled: Compiled, kjv: Path):
    """DRAM bytes of a step's products, beside those of the bit-shared model."""
    from speqc.runtime.program_timing import ProgramTimer

    shared = ProgramTimer(load_artifact(kjv).program)
    weights = 2_883_584
    for name, bits in BITS.items():
        timer = ProgramTimer(load_artifact(compiled(name, False)).program)
        draft, full = (
            timer.cost(step, 1, 64).dram_bytes - shared.cost(step, 1, 64).dram_bytes
            for step in ("draft", "full")
        )
        assert draft == pytest.approx(weights * (bits - 4.25) / 8, abs=64 * 29)
        # `sets` reads its scales in the full view too: they pick the table.
        assert full == pytest.approx(weights * -0.25 / 8, rel=0.02)


def test_a_check_of_a_run_passes(compiled: Compiled, invoke):
    result = invoke("run", compiled("nvfp4", True), "--prompt", "And God said", "-n", 20, "--check")
    assert result.exit_code == 0, result.stderr
    assert "bit for bit" in result.stderr


def test_report_and_simulation_take_it(compiled: Compiled, invoke, tmp_path: Path):
    path = compiled("mxfp4", False)
    page = tmp_path / "page.html"
    assert invoke("report", path, "-o", page).exit_code == 0
    found = re.search(r'id="data-weights">([^<]*)<', page.read_text("utf-8"))
    assert found is not None
    shown = json.loads(gzip.decompress(base64.b64decode(found[1])))
    assert {weight["draft_format"] for weight in shown["weights"]} == {"mxfp4"}
    assert shown["book"] is None
    lengths = ("--prompt-length", 20, "--new-tokens", 20, "--acceptance", 0.9)
    for target in ("speq-64x64", "speq-128x128-hbm2"):
        assert invoke("simulate", path, *lengths, "--target", target).exit_code == 0


def test_groups_of_int4_may_have_another_size(tmp_path: Path, model: Path, invoke):
    out = tmp_path / "g32.speq"
    compile_model(model, out, CompileOptions(Target(), draft_format="int4", group_size=32))
    facts = json.loads(invoke("inspect", out, "--json", "-").stdout)
    assert facts["draft_bits_per_weight"] == 4 + 20 / 32
    assert all(weight["exact"] for weight in facts["weights"])


def test_shapes_alone_compile(tmp_path: Path, model: Path, invoke):
    out = tmp_path / "shape.speq"
    options = ("--draft-format", "nvfp4", "--no-weights", "-o", out)
    assert invoke("compile", model, *options).exit_code == 0
    facts = json.loads(invoke("inspect", out, "--json", "-").stdout)
    assert facts["draft_bits_per_weight"] == BITS["nvfp4"]
    assert {weight["exact"] for weight in facts["weights"]} == {None}


@pytest.mark.parametrize("pattern", [0x7C00, 0xFE00])
def test_a_weight_with_infinities_or_nan_stays_plain_and_is_reported(
    tmp_path: Path, invoke, pattern: int
):
    """The others get their copies, and drafts read this one in full."""
    built = decoder(2, opset=20)
    odd = next(tensor for tensor in built.graph.initializer if tensor.name == "w_query_0")
    bits = numpy_helper.to_array(odd).view(np.uint16).copy()
    bits[0, 0] = pattern
    odd.CopyFrom(numpy_helper.from_array(bits.view(np.float16), odd.name))
    path = save(built, tmp_path)
    out = tmp_path / "odd.speq"
    result = invoke("compile", path, "--draft-format", "mxfp4", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "kept as FP16: it has Inf or NaN, which a copy in mxfp4 cannot hold" in result.output
    weights = json.loads(invoke("inspect", out, "--json", "-").stdout)["weights"]
    kept = [weight for weight in weights if weight["kept"] is not None and "Inf" in weight["kept"]]
    assert [weight["draft_view"] for weight in kept] == ["full"]
    assert all(weight["exact"] for weight in weights)
    assert any(weight["draft_format"] == "mxfp4" for weight in weights)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--codebook", "sets"), "splits no weight: leave out --codebook"),
        (("--levels", "m2"), "splits no weight: leave out --levels"),
        (("--draft-views", "head=8"), "splits no weight: leave out --draft-views"),
        (("--no-weights", "--baseline", "w4a16"), "splits no weight: leave out --baseline"),
        (("--group-size", "64"), "mxfp4 has groups of 32: leave the group size out, or give 32"),
    ],
)
def test_options_that_say_nothing_of_a_copy_are_refused(invoke, model: Path, options, line: str):
    result = invoke("compile", model, "--draft-format", "mxfp4", *options)
    assert result.exit_code == 2
    (shown,) = result.stderr.splitlines()
    assert line in shown


def test_the_command_line_knows_the_formats_that_there_are():
    assert tuple(DRAFT_FORMAT.choices) == DRAFT_FORMATS
    assert tuple(COPY_FORMATS) == DRAFT_FORMATS[1:]


def test_options_of_shapes_are_refused_of_artifacts(compiled: Compiled, invoke):
    lengths = ("--prompt-length", 20, "--new-tokens", 20)
    result = invoke("simulate", compiled("int4", False), *lengths, "--draft-format", "int4")
    assert result.exit_code == 2
    assert "is compiled already" in result.stderr
    result = invoke("simulate", "llama-2-7b", *lengths, "--draft-format", "int4", "--levels", "m2")
    assert result.exit_code == 2
    assert "leave out --levels" in result.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"draft_format": "nf4"}, "unknown draft format 'nf4': choose one of bsfp, int4"),
        ({"draft_format": "int4", "codebook": "paper"}, "leave out --codebook"),
        ({"draft_format": "nvfp4", "group_size": 64}, "nvfp4 has groups of 16"),
    ],
)
def test_options_are_checked_without_the_command_line(options, line: str):
    with pytest.raises(SpeqcError, match=line):
        CompileOptions(Target(), **options)


def test_the_same_input_gives_the_same_bytes(
    compiled: Compiled, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = compiled("nvfp4", True)
    # One thread and other pieces of work than the first time.
    monkeypatch.setattr("speqc.runtime.bsfp.processors", lambda: 1)
    monkeypatch.setattr("speqc.weight_writer.STRIP_BLOCKS", 2)
    again = tmp_path / "again.speq"
    options = ["--draft-format", "nvfp4", "--calibration", "self", "--calibration-tokens", "400"]
    result = CliRunner().invoke(main, ["compile", str(model), "-o", str(again), *options])
    assert result.exit_code == 0, result.output
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
