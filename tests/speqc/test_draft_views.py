"""Drafts that read some weights wider: places of weights, what is streamed, and the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnx_models import decoder, save
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.artifact import load_artifact
from speqc.cli import main
from speqc.compile import CompileOptions, compile_model, lower
from speqc.dialects.pe import LoadWeightOp, StreamType
from speqc.dialects.speq import DRAFT, FULL, View, ViewType
from speqc.model_folder import ModelFolder
from speqc.passes.form_draft_verify import find_function
from speqc.passes.weight_places import weight_places
from speqc.retarget import retarget
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.machine import Machine
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.runtime.weights import WeightFile

VIEWS = "layers.*.down=8,layers.0-1.q=16,head=12"


def streamed(function: FuncOp) -> dict[str, View]:
    """The view of each weight that a step streams."""
    found = {}
    for op in function.walk():
        if isinstance(op, LoadWeightOp):
            assert isinstance(op.stream.type, StreamType)
            assert isinstance(op.stream.type.content, ViewType)
            found[op.weight.string_value()] = op.stream.type.content.view
    return found


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    out = tmp_path_factory.mktemp("views") / "mixed.speq"
    compile_model(model, out, CompileOptions(Target(), draft_views=VIEWS, levels="m2"))
    return out


def test_places_follow_the_flow_of_data(model: Path):
    module = lower(model, CompileOptions(Target(), weights=False), ModelFolder(), "speq").module
    places = weight_places(find_function(module, FULL))
    roles = ["q", "k", "v", "o", "up", "up", "down"]
    expected = [f"layers.{layer}.{role}" for layer in range(4) for role in roles]
    assert list(places.values()) == [*expected, "head"]
    assert places == weight_places(find_function(module, DRAFT))


def test_the_draft_streams_the_chosen_views(mixed: Path):
    program = load_artifact(mixed).program
    assert set(streamed(find_function(program, FULL)).values()) == {View.FULL}
    counts = list(streamed(find_function(program, DRAFT)).values())
    assert {view: counts.count(view) for view in View} == {
        View.DRAFT: 22,
        View.WIDE8: 4,
        View.WIDE12: 1,
        View.FULL: 2,
    }
    assert json.loads((mixed / "manifest.json").read_text())["options"]["draft_views"] == VIEWS


def test_decoding_gives_the_same_bits(mixed: Path):
    result = CliRunner().invoke(
        main, ["run", str(mixed), "--token-ids", "5,6,7", "-n", "16", "--check", "--no-stop"]
    )
    assert result.exit_code == 0, result.stderr
    assert "bit for bit" in result.stderr


def test_wider_drafts_are_nearer_and_cost_more(mixed: Path, kjv: Path):
    narrow, wide = (load_artifact(path) for path in (kjv, mixed))
    costs = [ProgramTimer(one.program).cost(DRAFT, 1, 64) for one in (narrow, wide)]
    assert costs[0].dram_bytes < costs[1].dram_bytes
    assert costs[0].cycles < costs[1].cycles


def test_rows_do_not_depend_on_each_other_in_any_view(mixed: Path):
    """A draft pass over several tokens gives each row the bits of a pass of its own."""
    machine = machine_of(mixed)
    tokens = [5, 9, 6, 7, 11]
    together = machine.call(DRAFT, tokens)
    machine.truncate(0)
    one_by_one = [machine.call(DRAFT, [token])[-1] for token in tokens]
    assert all((a == b).all() for a, b in zip(together, one_by_one, strict=True))


def test_drafts_in_full_say_what_the_full_model_says(tmp_path: Path, model: Path):
    out = tmp_path / "full.speq"
    compile_model(model, out, CompileOptions(Target(), draft_views="*=16"))
    machine = machine_of(out)
    drafted = machine.call(DRAFT, [5, 9, 6])
    machine.truncate(0)
    assert (machine.call(FULL, [5, 9, 6]) == drafted).all()
    machine.truncate(0)
    options = DecodeOptions(12, draft_length=4, exit_threshold=0.0)
    rounds = decode(machine, "speculative", [5, 6, 7], options).rounds
    assert all(entry.accepted == entry.drafted for entry in rounds)


def machine_of(path: Path) -> Machine:
    artifact = load_artifact(path)
    return Machine(artifact.program, WeightFile(artifact.weights))


def depths(program: ModuleOp) -> dict[View, set[int]]:
    """Weights along K in a tile of the draft step, by view."""
    found: dict[View, set[int]] = {}
    draft = find_function(program, DRAFT)
    views = streamed(draft)
    for op in draft.walk():
        if isinstance(op, LoadWeightOp):
            found.setdefault(views[op.weight.string_value()], set()).add(op.tiling.tile[0])
    return found


def test_lanes_that_do_not_take_the_levels_stand_still(mixed: Path, kjv: Path):
    """Lanes for two mantissa bits: `m2` has no more, `free` ten, and a view of 8 bits three."""
    target = replace(Target(), draft_mantissa_bits=2)
    free, m2 = (load_artifact(path).program for path in (kjv, mixed))
    assert depths(free) == {View.DRAFT: {256}}
    assert depths(m2) == {View.DRAFT: {256}, View.WIDE8: {128}, View.WIDE12: {64}, View.FULL: {64}}
    poor_free, poor_m2 = retarget(free, target), retarget(m2, target)
    assert depths(poor_free) == {View.DRAFT: {64}}
    assert depths(poor_m2) == {**depths(m2), View.WIDE8: {64}}
    before, after = (ProgramTimer(one).step(DRAFT, 1, 64) for one in (free, poor_free))
    assert after.timing.array_busy_cycles > 2 * before.timing.array_busy_cycles


def test_inspect_tells_levels_and_views(mixed: Path):
    fields = json.loads(CliRunner().invoke(main, ["inspect", str(mixed), "--json", "-"]).stdout)
    found = {fact["name"]: fact for fact in fields["weights"]}
    assert {fact["levels"] for fact in found.values()} == {"m2"}
    assert found["model.lm_head"]["draft_view"] == "wide12"
    assert all(fact["exact"] for fact in found.values())
    # The head has 256 x 2048 values, `down` in four layers 512 x 256, two `q` 256 x 256 each.
    wider = 8 * 256 * 2048 + 4 * 4 * 512 * 256 + 12 * 2 * 256 * 256
    assert fields["draft_bits_per_weight"] == pytest.approx(4.25 + wider / 2_883_584)


def test_an_unknown_weight_is_an_error(model: Path):
    result = CliRunner().invoke(
        main, ["compile", str(model), "--emit", "speq", "--draft-views", "layers.9.down=8"]
    )
    assert result.exit_code == 2
    assert "'layers.9.down' matches no weight; there are layers.0.q, layers.0.k" in result.stderr


def test_what_feeds_an_attention_through_products_alone_stands_in_its_layer(tmp_path: Path):
    model = decoder(layers=2)
    nodes = list(model.graph.node)
    (query,) = (node for node in nodes if node.output[0] == "flat_query_1")
    latent = helper.make_node("MatMul", [query.input[0], "w_latent"], ["latent"], "latent")
    query.input[0] = "latent"
    nodes.insert(nodes.index(query), latent)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    values = np.random.default_rng(3).normal(0, 0.3, (16, 16)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(values, "w_latent"))
    path = save(model, tmp_path)
    options = CompileOptions(Target(), weights=False)
    places = weight_places(find_function(lower(path, options, ModelFolder(), "speq").module, FULL))
    assert list(places.values()) == [
        *(f"layers.0.{role}" for role in "qkvo"),
        *(f"layers.1.{role}" for role in ("q_in", "q", "k", "v", "o")),
        "head",
    ]
