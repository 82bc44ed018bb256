"""Models whose attention is none that a cache can serve: each step recomputes its prefix."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import VOCABULARY, Graph, decoder
from xdsl.dialects.func import FuncOp

from speqc.artifact import Artifact, load_artifact
from speqc.check import compare
from speqc.compile import CompileOptions, compile_model
from speqc.dialects.pe import LoadWeightOp
from speqc.dialects.speq import CacheOp, HistoryOp, View
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.errors import SpeqcError
from speqc.runtime.machine import Machine
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, VOCABULARY, 21)]
PROMPT, NEW = TOKENS[:9], 12

Invoke = Callable
Form = Callable[[str], list[onnx.NodeProto]]


def squared(scores: str) -> list[onnx.NodeProto]:
    """The squares of the shares that a softmax gives."""
    return [
        helper.make_node("Softmax", [scores], ["plain"], name="plain", axis=-1),
        helper.make_node("Mul", ["plain", "plain"], ["shares_0"], name="squares"),
    ]


def difference(scores: str) -> list[onnx.NodeProto]:
    """The shares less half of those of scores half as large."""
    return [
        helper.make_node("Softmax", [scores], ["plain"], name="plain", axis=-1),
        helper.make_node("Mul", [scores, "half"], ["flat_scores"], name="flat_scores"),
        helper.make_node("Softmax", ["flat_scores"], ["flatter"], name="flatter", axis=-1),
        helper.make_node("Mul", ["flatter", "half"], ["less"], name="less"),
        helper.make_node("Sub", ["plain", "less"], ["shares_0"], name="difference"),
    ]


def sigmoid(scores: str) -> list[onnx.NodeProto]:
    """Shares that know nothing of each other."""
    return [helper.make_node("Sigmoid", [scores], ["shares_0"], name="shares")]


FORMS = {form.__name__: form for form in (squared, difference, sigmoid)}
CASES = [(squared, True), *((form, False) for form in FORMS.values())]


def unusual(
    form: Form, *, caches: bool, last: Callable[[Graph, str], str] | None = None
) -> onnx.ModelProto:
    """A decoder whose first attention takes its shares from `form`."""
    model = decoder(layers=2, caches=caches, last=last)
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if node.output[0] == "shares_0")
    nodes[place : place + 1] = form(nodes[place].input[0])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float16), "half"))
    return model


def compiled(model: onnx.ModelProto, folder: Path, **options) -> Artifact:
    onnx.save(model, folder / "model.onnx")
    out = folder / "model.speq"
    options = {"context": 64, **options}
    compile_model(folder / "model.onnx", out, CompileOptions(load_target("speq-64x64"), **options))
    return load_artifact(out)


def replaced(model: onnx.ModelProto, output: str, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The model with other nodes in the place of the one that makes `output`."""
    old = list(model.graph.node)
    place = next(i for i, node in enumerate(old) if node.output[0] == output)
    old[place : place + 1] = nodes
    del model.graph.node[:]
    model.graph.node.extend(old)
    return model


def filled(model: onnx.ModelProto, filler: float, larger: float = 1.0) -> onnx.ModelProto:
    """The model with another number for what its mask hides, and larger scores."""
    for tensor in model.graph.initializer:
        if tensor.name == "filler":
            tensor.CopyFrom(numpy_helper.from_array(np.array(filler, np.float16), "filler"))
        elif tensor.name in ("w_query_0", "w_key_0"):
            array = numpy_helper.to_array(tensor) * np.float16(larger)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case[0].__name__}-caches-{case[1]}"
)
def artifact(request, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    form, caches = request.param
    folder = tmp_path_factory.mktemp("unusual")
    return compiled(unusual(form, caches=caches), folder)


def machine_of(artifact: Artifact) -> Machine:
    assert artifact.weights_file is not None
    return Machine(artifact.program, WeightFile(artifact.weights_file))


def test_the_program_keeps_tokens_and_no_cache(artifact: Artifact):
    state = [op for op in artifact.program.ops if isinstance(op, HistoryOp | CacheOp)]
    assert [type(op) for op in state] == [HistoryOp]


def test_rows_depend_on_no_later_token(artifact: Artifact):
    machine = machine_of(artifact)
    whole = machine.call("full", TOKENS)
    for length in range(1, len(TOKENS)):
        machine.reset()
        assert machine.call("full", TOKENS[:length]).tobytes() == whole[:length].tobytes()
        behind = machine.call("full", TOKENS[length:])
        assert behind.tobytes() == whole[length:].tobytes()


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize(("threshold", "chunk"), [(0.0, None), (0.0, 1), (0.3, 4), (1.0, 2)])
def test_drafting_changes_no_bit(artifact: Artifact, length: int, threshold: float, chunk):
    machine = machine_of(artifact)
    plain = decode(machine, "autoregressive", PROMPT, DecodeOptions(NEW), keep_logits=True)
    options = DecodeOptions(NEW, length, threshold, prompt_chunk=chunk)
    drafted = decode(machine, "speculative", PROMPT, options, keep_logits=True)
    compare(drafted, plain)
    if threshold == 0:
        assert max(entry.drafted for entry in drafted.rounds) == length


def test_a_prompt_goes_through_at_once_unless_it_is_cut(artifact: Artifact):
    machine = machine_of(artifact)
    run = decode(machine, "autoregressive", PROMPT, DecodeOptions(1))
    assert [call.rows for call in run.calls] == [len(PROMPT)]
    run = decode(machine, "autoregressive", PROMPT, DecodeOptions(1, prompt_chunk=4))
    assert [call.rows for call in run.calls] == [4, 4, 1]


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_onnxruntime(form: str, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    artifact = compiled(unusual(FORMS[form], caches=False), tmp_path)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"tokens": np.array([TOKENS]), "mask": np.ones((1, len(TOKENS)), np.int64)}
    (expected,) = session.run(["scores"], feeds)
    found = machine_of(artifact).call("full", TOKENS).astype(np.float32)
    assert np.abs(found - expected[0]).max() <= 0.01 * np.abs(expected).max()


def test_a_pass_costs_what_all_its_rows_cost(artifact: Artifact):
    timer = ProgramTimer(artifact.program)
    for function in ("full", "draft"):
        cost, whole = timer.cost(function, 3, 20), timer.cost(function, 23, 0)
        assert (cost.cycles, cost.dram_bytes) == (whole.cycles, whole.dram_bytes)
        step = timer.step(function, 3, 20)
        assert (step.timing.cycles, step.dram_bytes) == (cost.cycles, cost.dram_bytes)
        assert timer.cost(function, 1, 40).cycles > timer.cost(function, 1, 20).cycles


def test_a_user_is_told_once_and_finds_it_again(invoke: Invoke, tmp_path: Path):
    onnx.save(unusual(squared, caches=True), tmp_path / "model.onnx")
    out = str(tmp_path / "model.speq")
    result = invoke("compile", str(tmp_path / "model.onnx"), "-o", out, "--context", "64")
    notes = [line for line in result.stderr.splitlines() if "recomputes" in line]
    assert len(notes) == 1
    assert "onnx.Softmax 'plain'" in notes[0]
    manifest = json.loads((tmp_path / "model.speq" / "manifest.json").read_text())
    assert manifest["recomputes_prefix"] in notes[0]
    assert manifest["recomputes_prefix"] in invoke("inspect", out).stdout


def test_a_run_and_a_simulation_follow_real_rows(invoke: Invoke, tmp_path: Path):
    compiled(unusual(sigmoid, caches=False), tmp_path)
    out, ids = str(tmp_path / "model.speq"), ",".join(map(str, PROMPT))
    result = invoke("run", out, "--token-ids", ids, "-n", "6", "--check", "--json", "-")
    assert result.exit_code == 0
    result = invoke(
        "simulate", out, "--prompt-length", "9", "--new-tokens", "6", "--acceptance", "0.8",
        "--json", "-",
    )  # fmt: skip
    assert json.loads(result.stdout)["simulated"]["cycles"] > 0


def test_what_sees_later_tokens_is_refused(tmp_path: Path):
    model = unusual(squared, caches=False)
    for tensor in model.graph.initializer:
        if tensor.name == "filler":
            tensor.CopyFrom(numpy_helper.from_array(np.array(-1, np.float16), "filler"))
    with pytest.raises(SpeqcError, match=r"nor can each step recompute.*later tokens") as caught:
        compiled(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.speq").exists()


def test_what_follows_the_number_of_tokens_is_refused(tmp_path: Path):
    def mean(scores: str) -> list[onnx.NodeProto]:
        count = helper.make_node("Cast", ["count"], ["many"], name="many", to=10)
        part = helper.make_node("Div", ["shares_", "many"], ["shares_0"], name="part")
        share = helper.make_node("Sigmoid", [scores], ["shares_"], name="shares")
        return [share, count, part]

    with pytest.raises(SpeqcError, match="computes with the number of tokens"):
        compiled(unusual(mean, caches=False), tmp_path)


def both_ways_from(model: onnx.ModelProto, first: int) -> onnx.ModelProto:
    """The model whose tokens from position `first` on see each other, later ones too."""
    (node,) = (node for node in model.graph.node if node.output[0] == "allowed")
    keys, queries = node.input
    model.graph.initializer.append(numpy_helper.from_array(np.array(first), "first"))
    return replaced(
        model,
        "allowed",
        helper.make_node("LessOrEqual", [keys, queries], ["earlier"]),
        helper.make_node("GreaterOrEqual", [keys, "first"], ["far_keys"]),
        helper.make_node("GreaterOrEqual", [queries, "first"], ["far_queries"]),
        helper.make_node("And", ["far_keys", "far_queries"], ["far"]),
        helper.make_node("Or", ["earlier", "far"], ["allowed"]),
    )


@pytest.mark.parametrize("form", [squared, sigmoid])
def test_a_mask_that_lets_later_tokens_through_at_length_cuts_the_context(form: Form, tmp_path):
    model = both_ways_from(unusual(form, caches=False), 40)
    artifact = compiled(model, tmp_path, context=None)
    # Of 41 tokens only the last one stands at position 40 or behind it.
    assert artifact.context == 41
    machine = machine_of(artifact)
    tokens = (TOKENS * 2)[:41]
    whole = machine.call("full", tokens)
    machine.reset()
    assert machine.call("full", tokens[:40]).tobytes() == whole[:40].tobytes()
    with pytest.raises(SpeqcError, match="is more than 41 positions"):
        compiled(model, tmp_path, context=64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filler", [-20, -100, -1000])
def test_a_mask_that_hides_small_scores_only_is_refused(form: str, filler: float, tmp_path: Path):
    with pytest.raises(SpeqcError, match=r"nor can each step recompute.*later tokens"):
        compiled(filled(unusual(FORMS[form], caches=False), filler, larger=8), tmp_path)


@pytest.mark.parametrize("threshold", [4, 100, 60_000])
def test_weights_that_no_mask_makes_zero_are_refused(threshold: float, tmp_path: Path):
    model = unusual(sigmoid, caches=False)
    scores = next(node for node in model.graph.node if node.output[0] == "masked_0").input[0]
    number = numpy_helper.from_array(np.array(threshold, np.float16), "threshold")
    model.graph.initializer.append(number)
    model = replaced(
        model,
        "shares_0",
        helper.make_node("Sub", [scores, "threshold"], ["less"]),
        helper.make_node("Relu", ["less"], ["shares_0"]),
    )
    with pytest.raises(SpeqcError, match=r"nor can each step recompute.*later tokens"):
        compiled(model, tmp_path)


@pytest.mark.parametrize("by", ["tokens", "rows"])
@pytest.mark.parametrize("operator", ["Gather", "GatherElements", "GatherND"])
def test_rows_picked_by_what_tokens_say_are_refused(by: str, operator: str, tmp_path: Path):
    def pick(g: Graph, hidden: str) -> str:
        rows = g.node("Squeeze", [hidden, g.integers("batch_axis", [0])], "rows")
        if by == "tokens":
            places = g.node("Squeeze", ["tokens", "batch_axis"], "places")
        else:
            total = g.node("ReduceSum", [rows, g.integers("last_axis", [-1])], "sums", keepdims=0)
            places = g.node("Cast", [g.node("Abs", [total], "sizes")], "places", to=7)
        if operator != "Gather":
            places = g.node("Unsqueeze", [places, g.integers("behind", [1])], "column_of_places")
        if operator == "GatherElements":
            sizes = g.node("Shape", [rows], "sizes_of_rows")
            places = g.node("Expand", [places, sizes], "wide_places")
        picked = g.node(operator, [rows, places], "picked")
        back = g.node("Unsqueeze", [picked, "batch_axis"], "picked_rows")
        return g.node("Add", [hidden, back], "with_picked")

    with pytest.raises(SpeqcError, match=r"nor can each step recompute.*picks rows of tokens"):
        compiled(unusual(squared, caches=False, last=pick), tmp_path)


def test_a_mask_that_numbers_of_tokens_lift_is_refused(tmp_path: Path):
    model = unusual(squared, caches=False)
    (node,) = (node for node in model.graph.node if node.output[0] == "allowed")
    keys, queries = node.input
    model = replaced(
        model,
        "allowed",
        helper.make_node("LessOrEqual", [keys, queries], ["earlier"]),
        helper.make_node("Unsqueeze", ["tokens", "at2"], ["limits"]),
        helper.make_node("Less", [keys, "limits"], ["within"]),
        helper.make_node("Or", ["earlier", "within"], ["allowed"]),
    )
    with pytest.raises(SpeqcError, match="later tokens"):
        compiled(model, tmp_path)


@pytest.mark.parametrize("caches", [True, False])
def test_a_pattern_for_no_weight_is_no_reason_to_recompute(caches: bool, tmp_path: Path):
    model = decoder(layers=2, caches=caches)
    for views in ("layers.0.up=8", "nothing=8"):
        with pytest.raises(
            SpeqcError, match=r"matches no weight; there are layers\.0\.q"
        ) as caught:
            compiled(model, tmp_path, draft_views=views)
        assert "recompute" not in str(caught.value)
    with pytest.raises(SpeqcError, match="'nothing' matches no weight") as caught:
        compiled(unusual(squared, caches=caches), tmp_path, draft_views="nothing=8")
    assert "recompute" not in str(caught.value)


def test_weights_have_no_place_in_a_layer(tmp_path: Path):
    model = unusual(squared, caches=False)
    with pytest.raises(SpeqcError, match=r"'layers\.\*' matches no weight; there are .*w_query_0"):
        compiled(model, tmp_path, draft_views="layers.*=8")
    artifact = compiled(model, tmp_path, draft_views="w_out_0=8,head=12")
    (draft,) = (op for op in artifact.program.ops if isinstance(op, FuncOp) and _is_draft(op))
    loads = [op for op in draft.body.block.ops if isinstance(op, LoadWeightOp)]
    views = {op.weight.string_value(): op.stream.type.content.view for op in loads}
    assert views.pop("w_out_0") is View.WIDE8
    assert views.pop("head") is View.WIDE12
    assert set(views.values()) == {View.DRAFT}


def _is_draft(op: FuncOp) -> bool:
    return op.sym_name.data == "draft"


def test_a_model_that_recomputes_is_not_asked_to_write(tmp_path: Path, monkeypatch):
    """Said before its weights are encoded; with a text, `Positions` and calibrations run."""
    monkeypatch.setattr("speqc.compile.write_artifact", None)
    with pytest.raises(SpeqcError, match="auto: a model that recomputes its prefix writes too"):
        compiled(unusual(squared, caches=False), tmp_path, draft_views="auto")
