"""Baselines: their files, and what their programs read, beside arithmetic by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.baseline_files import KEYS, Baseline, load_baseline, shipped_baselines
from speqc.compile import CompileOptions
from speqc.compile_shape import compile_shape, compile_variants
from speqc.decoder_shape import DecoderShape
from speqc.dialects.pe import AttentionOp, GemmOp, VectorOp
from speqc.dialects.speq import WeightOp
from speqc.paper_bench import ORDER
from speqc.runtime.costs import lanes
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.target_files import load_target

SHAPE = DecoderShape(2, 256, 512, heads=4, kv_heads=2, head_size=64, vocabulary=1024, context=512)

LAYER = [(256, 256), (256, 128), (256, 128), (256, 256), (256, 512), (256, 512), (512, 256)]
"""K and N of query, key, value, output, gate, up and down: all multiples of the array's 64."""

PAST = 100

VALID = """
title = "Mine"
weight_bits = 4
head_bits = 16
embedding_bits = 16
activation_bits = 16
cache_bits = 16
group_size = 128
input_ops = []
output_ops = []

[sources]
weight_bits = "assumption"
head_bits = "assumption"
embedding_bits = "assumption"
activation_bits = "assumption"
cache_bits = "assumption"
group_size = "assumption"
input_ops = "assumption"
output_ops = "assumption"
"""


def options(name: str, target: str = "speq-64x64") -> CompileOptions:
    return CompileOptions(load_target(target), baseline=load_baseline(name))


@pytest.fixture(scope="module")
def programs() -> dict[str, ModuleOp]:
    """The small shape with each shipped baseline."""
    variants = [options(name) for name in shipped_baselines()]
    return dict(zip(shipped_baselines(), compile_variants(SHAPE, variants), strict=True))


def weight_bytes(k: int, n: int, bits: int, group: int) -> int:
    """Bytes of a weight and its scales."""
    if bits == 16:
        return 2 * k * n
    return k * n * bits // 8 + 2 * n * -(-k // (group or k))


def step_bytes(baseline: Baseline) -> int:
    """What one token behind `PAST` positions moves to and from DRAM."""
    layers = 2 * sum(
        weight_bytes(k, n, baseline.weight_bits, baseline.group_size) for k, n in LAYER
    )
    head = weight_bytes(256, 1024, baseline.head_bits, baseline.group_size)
    norms, embedding, logits = 5 * 256 * 2, 256 * 2, 1024 * 2
    angles = 2 * 32 * 2
    cached = 2 * 2 * 2 * 64 * 2  # layers, keys and values, heads, head size, bytes
    return layers + head + norms + embedding + logits + angles + cached * (PAST + 1)


@pytest.mark.parametrize("name", shipped_baselines())
def test_bytes_of_a_step_are_those_by_hand(programs: dict[str, ModuleOp], name: str) -> None:
    found = ProgramTimer(programs[name]).cost("full", 1, PAST).dram_bytes
    assert found == step_bytes(load_baseline(name))


def test_fp16_is_the_papers_full_step(programs: dict[str, ModuleOp]) -> None:
    drafted = compile_shape(SHAPE, CompileOptions(load_target("speq-64x64"), "paper", 128))
    plain = ProgramTimer(programs["fp16"]).cost("full", 1, PAST)
    assert ProgramTimer(drafted).cost("full", 1, PAST) == plain


def test_steps_bound_by_dram_take_as_long_as_their_bytes() -> None:
    shape = DecoderShape(1, 4096, 11008, 32, 32, 128, vocabulary=2048, context=512)
    names = ("fp16", "w8a16", "w4a16")
    found = [
        ProgramTimer(program).cost("full", 1, PAST)
        for program in compile_variants(shape, [options(name) for name in names])
    ]
    for cost in found[1:]:
        by_bytes = found[0].dram_bytes / cost.dram_bytes
        assert found[0].cycles / cost.cycles == pytest.approx(by_bytes, rel=0.02)


def test_variants_are_what_is_compiled_alone(programs: dict[str, ModuleOp]) -> None:
    alone = ProgramTimer(compile_shape(SHAPE, options("olive-4")))
    assert ProgramTimer(programs["olive-4"]).cost("full", 5, PAST) == alone.cost("full", 5, PAST)


def test_one_lane_makes_narrow_weights_take_the_array_as_long_as_wide_ones() -> None:
    busy = []
    for name in ("fp16", "w8a16", "w4a16"):
        timer = ProgramTimer(compile_shape(SHAPE, options(name, "speq-64x64-one-lane")))
        busy.append(timer.step("full", 1, 0).timing.array_busy_cycles)
    assert busy[0] == busy[1] == busy[2]


def test_attention_goes_where_a_token_alone_takes_less_time() -> None:
    """2 cache heads of 64 channels, 257 positions: 5 tiles of 64 cycles a head on the array, 640.

    With 128 lanes the vector unit takes 4 * 257 * 64 / 128 = 514 for a row, 4626 for the nine that
    a drafted program verifies.
    """
    target = replace(load_target("speq-64x64"), vector_lanes=128)
    drafted = CompileOptions(target)
    variants = [drafted, *(replace(drafted, baseline=load_baseline(b)) for b in ("fp16", "w8a8"))]
    units = [
        {
            op.unit.data.value
            for step in program.ops
            if isinstance(step, FuncOp) and step.sym_name.data == "full"
            for op in step.walk()
            if isinstance(op, AttentionOp)
        }
        for program in compile_variants(SHAPE, variants)
    ]
    assert units == [{"array"}, {"vector"}, {"vector"}]


@pytest.mark.parametrize(("bits", "expected"), [(4, 4), (8, 2), (16, 1)])
def test_lanes_fill_the_port(bits: int, expected: int) -> None:
    assert lanes(bits, load_target("speq-64x64")) == expected


@pytest.mark.parametrize("name", shipped_baselines())
def test_work_stands_in_the_program(programs: dict[str, ModuleOp], name: str) -> None:
    """Each layer has 4 rows to quantise (for query, key and value; output; gate and up; down)."""
    baseline, program = load_baseline(name), programs[name]
    full = next(op for op in program.walk() if isinstance(op, GemmOp)).parent_op()
    assert full is not None
    kernels = [op.kernel.data for op in full.walk() if isinstance(op, VectorOp)]
    rounded = 2 * 4 if "Round" in baseline.input_ops else 0
    assert kernels.count("Round") == rounded
    assert kernels.count("Clip") == rounded
    products = 2 * 7 * ("Mul" in baseline.output_ops)
    assert kernels.count("Mul") == 2 * 2 + products + rounded  # 2 in each layer are the model's


def test_heads_and_embeddings_stay_plain(programs: dict[str, ModuleOp]) -> None:
    weights = [op for op in programs["tender-8"].ops if isinstance(op, WeightOp)]
    assert sum(op.stored_bits is not None for op in weights) == 2 * 7
    assert len(weights) == 2 * 7 + 2


def test_order_of_tables_has_every_shipped_baseline() -> None:
    assert set(ORDER) == set(shipped_baselines())


@pytest.mark.parametrize("name", shipped_baselines())
def test_every_value_has_a_source(name: str) -> None:
    assert load_baseline(name).sources.keys() == set(KEYS) - {"title"}


def read(folder: Path, text: str) -> Baseline:
    file = folder / "mine.toml"
    file.write_text(text)
    return load_baseline(str(file))


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    baseline = read(tmp_path, VALID)
    assert (baseline.name, baseline.title, baseline.weight_bits) == ("mine", "Mine", 4)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("weight_bits = 4\n", "weight_bits = 1\n", "weight_bits must be an integer from 2 to 16"),
        ("weight_bits = 4\n", "weight_bits = true\n", "got True"),
        ("weight_bits = 4\n", "weigth_bits = 4\n", "weigth_bits"),
        ("weight_bits = 4\n", "", "weight_bits is missing"),
        ("weight_bits = 4\n", "weight_bits = 4\nweight_bits = 8\n", "not valid TOML"),
        ("cache_bits = 16\n", "cache_bits = 8\n", "cache_bits must be 16, the one width there is"),
        ("input_ops = []", 'input_ops = ["Sqrt"]', "input_ops must be a list of Abs"),
        ('title = "Mine"', 'title = ""', "title must be a non-empty string"),
        ('group_size = "assumption"\n', "", "[sources]: group_size is missing; expected where"),
        ('group_size = "assumption"\n', 'group = "x"\n', "group"),
        ("[sources]\n", "[source]\n", "source"),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in VALID
    with pytest.raises(SpeqcError) as error:
        read(tmp_path, VALID.replace(old, new, 1))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_name() -> None:
    with pytest.raises(SpeqcError, match="unknown baseline 'awq'; known baselines: fp16"):
        load_baseline("awq")


def test_compiled_with_a_baseline(invoke, model: Path, tmp_path: Path) -> None:
    emitted: Result = invoke("compile", model, "--no-weights", "--baseline", "w8a8", "--emit", "pe")
    assert emitted.exit_code == 0, emitted.stderr
    assert "stored_bits = 8 : i64" in emitted.stdout
    refused: Result = invoke("compile", model, "--baseline", "w8a8", "-o", tmp_path / "x.speq")
    assert refused.exit_code == 2
    assert "--no-weights" in refused.stderr
    assert not (tmp_path / "x.speq").exists()


def test_listed(invoke) -> None:
    result: Result = invoke("bench", "baselines")
    assert result.exit_code == 0
    for name in shipped_baselines():
        assert f"{name}: {load_baseline(name).title}" in result.stdout
