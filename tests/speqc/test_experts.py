import json
from collections.abc import Callable
from pathlib import Path

import expert_models
import numpy as np
import onnx
import pytest
from expert_models import CHOSEN, EXPERTS, HIDDEN, WIDTH
from onnx_models import VOCABULARY, decoder

from speqc import pipeline
from speqc.artifact import Artifact, load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.dialects.pe import LoadWeightOp
from speqc.runtime.machine import Machine
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.routing import Router
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, VOCABULARY, 17)]

FORMS = {
    "mask": expert_models.mask,
    "where": expert_models.where,
    "scatter": expert_models.scatter,
    "threshold": expert_models.threshold,
    "stack": expert_models.stack,
}

Compile = Callable[[str], Path]


def compiled(folder: Path, form: Callable, context: int = 64) -> Path:
    model, out = folder / "model.onnx", folder / "model.speq"
    onnx.save(decoder(last=form), model)
    compile_model(model, out, CompileOptions(load_target("speq-64x64"), context=context))
    return out


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: compiled(tmp_path_factory.mktemp(name), form) for name, form in FORMS.items()}


def machine(path: Path) -> Machine:
    artifact = load_artifact(path)
    return Machine(artifact.program, WeightFile(artifact.weights))


def dense(monkeypatch: pytest.MonkeyPatch, folder: Path, form: Callable) -> Artifact:
    """The same model, all its experts computed for all rows."""
    stages = {
        level: tuple(name for name in names if name != "raise-experts")
        for level, names in pipeline.STAGES.items()
    }
    monkeypatch.setattr(pipeline, "STAGES", stages)
    return load_artifact(compiled(folder, form))


@pytest.mark.parametrize("form", FORMS)
def test_bits_are_those_of_the_dense_graph(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    ours = machine(artifacts[form])
    whole = dense(monkeypatch, tmp_path, FORMS[form])
    plain = Machine(whole.program, WeightFile(whole.weights))
    for step in ("full", "draft"):
        bits = [m.call(step, TOKENS).view(np.uint16) for m in (ours, plain)]
        assert np.array_equal(*bits)
    assert sum(router.experts for router in ProgramTimer(whole.program).routers("full")) == 0
    full, other = ours.take_calls()
    assert (len(full.chosen), len(other.chosen)) == (EXPERTS, EXPERTS)
    assert min(full.chosen) < len(TOKENS)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_depends_on_no_choice_of_other_rows(artifacts: dict[str, Path], form: str) -> None:
    ours = machine(artifacts[form])
    together = ours.call("full", TOKENS)
    routes = ours.routes
    ours.reset()
    alone = np.concatenate([ours.call("full", [token]) for token in TOKENS])
    assert np.array_equal(together.view(np.uint16), alone.view(np.uint16))
    assert ours.routes == routes == [call.chosen for call in ours.take_calls()]
    # Ties choose by index where k are chosen; where a threshold decides, both of a pair.
    counts = {sum(chosen) for chosen in routes}
    assert counts == {2, 3} if form == "threshold" else counts == {CHOSEN}


@pytest.mark.parametrize("form", FORMS)
def test_only_chosen_experts_are_read(artifacts: dict[str, Path], form: str) -> None:
    timer = ProgramTimer(load_artifact(artifacts[form]).program)
    assert timer.routers("full") == [Router(EXPERTS, CHOSEN)]

    def loaded(chosen: tuple[int, ...]) -> list[str]:
        entries = timer.ops("full", 3, 9, chosen)
        loads = [entry.source for entry in entries if isinstance(entry.source, LoadWeightOp)]
        return [load.weight.string_value() for load in loads if load.predicate is not None]

    everything = loaded((3, 1, 1, 1))
    assert len(everything) == 2 * EXPERTS
    assert loaded((0, 0, 0, 0)) == []
    assert len(loaded((0, 3, 0, 1))) == 4
    # Bytes: the tiles of both matrices, 64 x 64 in FP16, and a scale for each column.
    costs = [timer.step("full", 1, 9, chosen).dram_bytes for chosen in ((1, 1, 1, 1), (0, 1, 1, 0))]
    assert max(HIDDEN, WIDTH) < 64
    assert costs[0] - costs[1] == 2 * 2 * (64 * 64 * 2 + 64 * 2)


def test_a_gate_that_is_never_zero_is_no_choice(tmp_path: Path) -> None:
    program = load_artifact(compiled(tmp_path, expert_models.gate)).program
    assert not any(
        isinstance(op, LoadWeightOp) and op.predicate is not None for op in program.walk()
    )


def test_stacked_weights_are_parts_of_one_tensor(artifacts: dict[str, Path], invoke) -> None:
    result = invoke("inspect", artifacts["stack"], "--json", "-")
    fields = json.loads(result.stdout)
    assert fields["experts"] == [{"experts": EXPERTS, "chosen": CHOSEN}]
    experts = [w for w in fields["weights"] if w["source"] in ("ups", "downs")]
    assert {tuple(w["shape"]) for w in experts} == {(HIDDEN, WIDTH), (WIDTH, HIDDEN)}
    assert len(experts) == 2 * EXPERTS
    assert all(w["exact"] and w["codebook"] == "sets" for w in experts)
    assert "2 of 4 a token in 1 layer" in invoke("inspect", artifacts["stack"]).stdout


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("mask", "speculative"),
        ("stack", "speculative"),
        ("mask", "autoregressive"),
        ("mask", "draft"),
    ],
)
def test_a_recorded_run_is_timed_again(
    artifacts: dict[str, Path], tmp_path: Path, invoke, form: str, mode: str
) -> None:
    file, path = tmp_path / "run.json", artifacts[form]
    check = () if mode == "draft" else ("--check",)
    arguments = ("--token-ids", "5,6,7,8,9", "-n", "12", "--mode", mode, *check)
    ran = invoke("run", path, *arguments, "--json", file)
    assert ran.exit_code == 0, ran.stderr
    run = json.loads(file.read_text())
    result = invoke("simulate", path, "--replay", file, "--json", "-")
    assert result.exit_code == 0, result.stderr
    replayed = json.loads(result.stdout)
    same = run.keys() - {"model", "token_ids", "text", "wall_seconds", "prompt_chunk"}
    same -= {"draft_schedule", "draft_length", "exit_threshold"}
    assert {key: replayed[key] for key in same} == {key: run[key] for key in same}
    assert run["experts"]["choice"].startswith("recorded")
    assert len(run["experts"]["passes"]) >= run["full_passes"]
    assert len(run["experts"].get("plain", ())) == (0 if mode == "draft" else 11)
    if mode == "autoregressive":
        assert run["experts"]["plain"] == run["experts"]["passes"]
        assert run["simulated"] == run["baseline"]["simulated"]
    moved = invoke("simulate", path, "--replay", file, "--target", "speq-64x64-one-lane")
    assert moved.exit_code == 0, moved.stderr


def test_plain_decoding_in_a_speculative_report_is_what_it_would_be(
    artifacts: dict[str, Path], invoke
) -> None:
    arguments = ("--token-ids", "5,6,7,8,9", "-n", "12", "--json", "-")
    fields = [
        json.loads(invoke("run", artifacts["mask"], *arguments, "--mode", mode).stdout)
        for mode in ("speculative", "autoregressive")
    ]
    assert fields[0]["baseline"] == fields[1]["baseline"]
    assert fields[0]["experts"]["plain"] == fields[1]["experts"]["plain"]


def test_without_a_recording_choices_are_assumed(artifacts: dict[str, Path], invoke) -> None:
    arguments = ("simulate", artifacts["mask"], "--prompt-length", "9", "--new-tokens", "6")
    for extra in ((), ("--acceptance", "0.7")):
        assert (
            "2 of 4 a token in 1 layer, assumed independent and uniform"
            in invoke(*arguments, *extra).stdout
        )
    timer = ProgramTimer(load_artifact(artifacts["mask"]).program)
    # 4 (1 - (1/2)^3) = 3.5 experts are chosen by three tokens: 4.
    assert timer.step("full", 3, 0) == timer.step("full", 3, 0, (2, 2, 1, 1))


def test_a_recording_of_another_model_is_refused(
    artifacts: dict[str, Path], tmp_path: Path, invoke
) -> None:
    run = {"mode": "autoregressive", "prompt_tokens": 4, "new_tokens": 3}
    file = tmp_path / "run.json"
    for experts, message in (
        ({"passes": ["0 9", "1"]}, "of another model: '9' is no expert of 4"),
        ({"passes": [1, 2]}, "not a report of 'speqc run --json'"),
    ):
        file.write_text(json.dumps({**run, "experts": experts}))
        result = invoke("simulate", artifacts["mask"], "--replay", file)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
