"""Shape files, and the check figures of a shape whose weights nobody has here."""

import json
from math import prod
from pathlib import Path

import pytest
from click.testing import CliRunner
from xdsl.dialects.builtin import ModuleOp

from speqc.cli import main
from speqc.compile import CompileOptions
from speqc.compile_shape import compile_shape
from speqc.dialects.speq import WeightOp
from speqc.retarget import retarget
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_context
from speqc.runtime.program_timing import ProgramTimer
from speqc.shape_files import LIMITS, load_shape, shipped_shapes
from speqc.simulate import Replay, expected_fields
from speqc.target_files import load_target

ACCEPTANCE = 0.976

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

SPEEDUPS = {
    256: (1.56, 1.91, 2.15, 2.31, 2.51, 2.62, 2.70, 2.69, 2.57, 2.42),
    1024: (1.54, 1.86, 2.07, 2.22, 2.39, 2.48, 2.54, 2.52, 2.41, 2.26),
    2048: (1.50, 1.80, 1.99, 2.11, 2.26, 2.33, 2.37, 2.34, 2.22, 2.08),
    4096: (1.45, 1.70, 1.85, 1.95, 2.06, 2.10, 2.11, 2.08, 1.96, 1.83),
}
"""Llama-2-7B over FP16, by the bytes alone, for a context and each of the draft lengths.

With b = 2 W + 2^19 S bytes for a full step of W weights behind S positions, and d for a draft step
(4.125 bits a weight), a round emits (1 - A^(L+1)) / (1 - A) tokens for the bytes L d + b.
"""

VALID = """
layers = 2
hidden = 64
intermediate = 96
heads = 4
kv_heads = 2
head_size = 16
vocabulary = 300
context = 128
tied_embeddings = true
rope_theta = 10000.0
norm_epsilon = 1e-5
source = "this test"
"""


@pytest.fixture(scope="module")
def llama() -> ModuleOp:
    """Llama-2-7B as the check figures have it."""
    options = CompileOptions(load_target("speq-64x64"), "paper", 128)
    return compile_shape(load_shape("llama-2-7b"), options)


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


# Parameters by the published model cards, in billions; a head that is tied counts once.
@pytest.mark.parametrize(
    ("name", "billions", "cache_bytes"),
    [
        ("llama-2-7b", 6.738, 2**19),
        ("vicuna-7b", 6.738, 2**19),
        ("llama-2-13b", 13.016, 40 * 2 * 5120 * 2),
        ("llama-3.1-8b", 8.030, 2**17),
        ("llama-3.2-3b", 3.213, 28 * 2 * 1024 * 2),
        ("llama-3.1-70b", 70.554, 80 * 2 * 1024 * 2),
    ],
)
def test_shipped_shapes_have_the_published_sizes(
    name: str, billions: float, cache_bytes: int
) -> None:
    shape = load_shape(name)
    width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    attention = 2 * shape.hidden * width + 2 * shape.hidden * kv_width
    layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    tables = shape.vocabulary * shape.hidden * (1 if shape.head == "tied" else 2)
    total = shape.layers * layer + shape.hidden + tables
    assert total / 1e9 == pytest.approx(billions, abs=5e-4)
    assert 2 * 2 * kv_width * shape.layers == cache_bytes


def test_all_shipped_shapes_are_tested() -> None:
    assert set(shipped_shapes()) == {
        "llama-2-7b",
        "llama-2-13b",
        "llama-3.1-8b",
        "llama-3.1-70b",
        "llama-3.2-3b",
        "vicuna-7b",
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("heads = 4", "head = 4", "unknown key 'head'; did you mean heads?"),
        ("layers = 2", "layers = 2\nlayers = 3", "not valid TOML"),
        ("layers = 2", "", "layers is missing; expected an integer from 1 to 4096"),
        ("hidden = 64", "hidden = -64", "hidden must be an integer from 1 to 16777216, got -64"),
        ("hidden = 64", "hidden = 64.0", "hidden must be an integer from 1 to 16777216, got 64.0"),
        ("layers = 2", "layers = true", "layers must be an integer from 1 to 4096, got True"),
        ("rope_theta = 10000.0", "rope_theta = nan", "rope_theta must be a number from 1.0"),
        ("tied_embeddings = true", "tied_embeddings = 1", "tied_embeddings must be true or false"),
        ('source = "this test"', 'source = " "', "source must be a non-empty string"),
        ("kv_heads = 2", "kv_heads = 3", "kv_heads must divide heads, got 3 for 4"),
        ("head_size = 16", "head_size = 15", "head_size must be even, got 15"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in VALID
    path = write(tmp_path, VALID.replace(old, new, 1))
    with pytest.raises(SpeqcError) as caught:
        load_shape(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_number_has_its_limits(tmp_path: Path) -> None:
    for key, (_, high) in LIMITS.items():
        lines = [
            f"{key} = {high * 2}" if line.startswith(f"{key} =") else line
            for line in VALID.splitlines()
        ]
        with pytest.raises(SpeqcError, match=f"{key} must be"):
            load_shape(write(tmp_path, "\n".join(lines)))


def test_program_has_the_sizes_of_the_shape(tmp_path: Path) -> None:
    options = CompileOptions(load_target("speq-64x64"))
    shape = load_shape(write(tmp_path, VALID))
    program = compile_shape(shape, options)
    assert module_context(program) == 128
    weights = [op for op in program.ops if isinstance(op, WeightOp)]
    # The head is the embedding: one weight for both.
    assert len(weights) == 2 * 7 + 1
    sizes = sorted(prod(op.shape) for op in weights)
    layer = [64 * 64, 64 * 32, 64 * 32, 64 * 64, 64 * 96, 64 * 96, 96 * 64]
    assert sizes == sorted([*layer, *layer, 300 * 64])
    assert all(op.is_split for op in weights)


def speedup(timer: ProgramTimer, past: int, length: int) -> float:
    """Steady state: tokens of a mean round, one by one over drafted and verified."""
    full = timer.cost("full", 1, past).cycles
    drafts = length * timer.cost("draft", 1, past).cycles
    verify = timer.cost("full", 1 + length, past).cycles
    tokens = sum(ACCEPTANCE**place for place in range(length + 1))
    return full * tokens / (drafts + verify)


def test_check_figures(llama: ModuleOp) -> None:
    timer = ProgramTimer(llama)
    for past, expected in SPEEDUPS.items():
        for length, figure in zip(LENGTHS, expected, strict=True):
            assert speedup(timer, past, length) == pytest.approx(figure, rel=0.05), (past, length)


def test_check_figure_of_one_lane(llama: ModuleOp) -> None:
    timer = ProgramTimer(retarget(llama, load_target("speq-64x64-one-lane")))
    assert speedup(timer, 1024, 8) == pytest.approx(1.14, rel=0.05)


def test_a_long_run_reaches_the_steady_state(llama: ModuleOp) -> None:
    run = Replay("autoregressive", 1024, 1500, (), None)
    fields = expected_fields(llama, run, ACCEPTANCE, 8, fixed_context=True)
    steady = speedup(ProgramTimer(llama), 1024, 8)
    assert fields["decode_speedup"] == pytest.approx(steady, rel=0.01)


def test_simulate_compiles_a_shape(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    lengths = ("--prompt-length", "20", "--new-tokens", "9", "--json", "-")
    result = CliRunner().invoke(main, ["simulate", path, *lengths, "--codebook", "naive"])
    assert result.exit_code == 0, result.stderr
    assert "compiled the shape" in result.stderr
    fields = json.loads(result.stdout)
    options = CompileOptions(load_target("speq-64x64"), "naive")
    timer = ProgramTimer(compile_shape(load_shape(path), options))
    calls = [("full", 20, 0), *(("full", 1, 20 + place) for place in range(8))]
    expected = sum(timer.cost(*call).cycles for call in calls)
    assert fields["simulated"]["cycles"] == expected


def test_fixed_context_keeps_the_cache_at_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    # Without a fixed context, 120 + 40 tokens would not fit the context of 128.
    lengths = ("--prompt-length", "120", "--new-tokens", "40")
    grown = CliRunner().invoke(main, ["simulate", path, *lengths])
    assert grown.exit_code == 2
    assert "do not fit the context of 128" in grown.stderr
    result = CliRunner().invoke(
        main, ["simulate", path, *lengths, "--fixed-context", "--json", "-"]
    )
    fields = json.loads(result.stdout)
    assert fields["fixed_context"] is True
    timer = ProgramTimer(compile_shape(load_shape(path), CompileOptions(load_target("speq-64x64"))))
    decoding = (fields["simulated"]["seconds"] - fields["simulated"]["prompt_seconds"]) * 5e8
    assert decoding == pytest.approx(39 * timer.cost("full", 1, 120).cycles)


def test_an_unknown_name_is_neither_artifact_nor_shape() -> None:
    lengths = ("--prompt-length", "5", "--new-tokens", "5")
    result = CliRunner().invoke(main, ["simulate", "llama-9", *lengths])
    assert result.exit_code == 2
    assert "no such artifact, and no such shape (known: llama-2-13b" in result.stderr


def test_options_of_shapes_are_refused_for_artifacts(kjv: Path) -> None:
    lengths = ("--prompt-length", "5", "--new-tokens", "5")
    result = CliRunner().invoke(main, ["simulate", str(kjv), *lengths, "--codebook", "paper"])
    assert result.exit_code == 2
    assert "are for shapes" in result.stderr and "--codebook" in result.stderr
