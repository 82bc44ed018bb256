"""`--draft-views auto`: what is measured, what is chosen, and that the choice can be spelt out."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from speqc import draft_distance
from speqc.artifact import load_artifact
from speqc.calibration_text import CalibrationText
from speqc.cli import main
from speqc.compile import CompileOptions, compile_model, lower
from speqc.dialects.speq import DRAFT, View
from speqc.draft_bits import draft_bits_per_weight, draft_views
from speqc.draft_distance import AHEAD, POSITIONS, PREFIX, Positions
from speqc.model_folder import ModelFolder
from speqc.passes.choose_views import assign_views, parse_views, split_places
from speqc.passes.form_draft_verify import find_function
from speqc.runtime.machine import Machine
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.runtime.weights import WeightFile
from speqc.step_views import with_views
from speqc.view_groups import view_groups, views_text

PROGRAM_FILES = "program.mlir", "weights.safetensors"


@pytest.fixture(scope="module")
def quick():
    """Fewer groups and positions than a user has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speqc.view_groups.PARTS", 1)
        patch.setattr("speqc.draft_distance.TEXTS", 6)
        patch.setattr("speqc.round_model.LONGEST", 6)
        yield


def compiled(model: Path, out: Path, *options: str) -> Path:
    result = CliRunner().invoke(main, ["compile", str(model), "-o", str(out), *options])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory, model: Path, quick: None) -> Path:
    out = tmp_path_factory.mktemp("auto") / "auto.speq"
    return compiled(model, out, "--draft-views", "auto", "--max-draft-bits", "6")


def choice(path: Path) -> dict:
    return json.loads((path / "manifest.json").read_text())["view_choice"]


def test_the_choice_keeps_to_the_bits_and_is_nearer(auto: Path):
    program = load_artifact(auto).program
    bits = draft_bits_per_weight(program, draft_views(program))
    facts = choice(auto)
    assert facts["chosen"]["views"]
    assert bits is not None and 4.25 < bits <= 6
    assert facts["chosen"]["draft_bits_per_weight"] == pytest.approx(bits, rel=1e-5)
    assert facts["chosen"]["kl"] < 0.7 * facts["narrow"]["kl"]


def test_parts_add_up_to_the_whole(auto: Path):
    facts = choice(auto)
    total = sum((1 - group["overlap"]["draft"]) ** 2 for group in facts["groups"])
    assert total == pytest.approx((1 - facts["narrow"]["overlap"]) ** 2, rel=0.25)
    # Each view gains on the last, and the curve falls as it grows.
    overlaps = [point["overlap"] for point in facts["curve"]]
    assert overlaps[0] == pytest.approx(facts["narrow"]["overlap"])
    assert overlaps == sorted(overlaps)
    assert 1 - overlaps[-1] < 0.15 * (1 - overlaps[0])


def test_the_spelt_out_choice_gives_the_same_program(auto: Path, model: Path, tmp_path: Path):
    views = choice(auto)["chosen"]["views"]
    named = compiled(model, tmp_path / "named.speq", "--draft-views", views)
    for name in PROGRAM_FILES:
        assert (named / name).read_bytes() == (auto / name).read_bytes()
    manifest = json.loads((auto / "manifest.json").read_text())
    del manifest["view_choice"]
    assert manifest == json.loads((named / "manifest.json").read_text())


def test_the_same_input_gives_the_same_bytes(
    auto: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("speqc.runtime.bsfp.processors", lambda: 1)
    options = "--draft-views", "auto", "--max-draft-bits", "6"
    again = compiled(model, tmp_path / "again.speq", *options)
    for file in auto.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_the_fastest_is_no_slower_than_narrow_drafts(model: Path, tmp_path: Path, quick: None):
    ids = tmp_path / "ids.npy"
    np.save(ids, np.random.default_rng(1).integers(0, 2048, (4, 40)))
    options = "--draft-views", "auto", "--calibration", str(ids)
    out = compiled(model, tmp_path / "fast.speq", *options, "--dump-ir", str(tmp_path / "ir"))
    facts = choice(out)
    assert facts["max_draft_bits"] is None and facts["text"] == str(ids)
    assert facts["chosen"]["speedup"] >= facts["narrow"]["speedup"]
    assert load_artifact(out).manifest["calibration"] is not None
    steps = json.loads((tmp_path / "ir" / "timings.json").read_text())
    assert [step["pass"] for step in steps].count("lower-to-pe") == 2


def test_inspect_shows_the_trade_off(auto: Path):
    result = CliRunner().invoke(main, ["inspect", str(auto)])
    assert "(all in 4 bits)" in result.stdout
    assert "the nearest within 6 bits" in result.stdout
    shown = CliRunner().invoke(main, ["inspect", str(auto), "--json", "-"])
    assert json.loads(shown.stdout)["view_choice"] == choice(auto)


def test_without_auto_nothing_is_said_of_a_choice(kjv: Path):
    assert "view_choice" not in load_artifact(kjv).manifest


@pytest.fixture(scope="module")
def places(model: Path) -> dict[str, str]:
    options = CompileOptions(Target(), weights=False)
    return split_places(lower(model, options, ModelFolder(), "speq").module)


def test_groups_hold_each_weight_once_and_answer_to_their_pattern(places: dict[str, str]):
    groups = view_groups(places)
    names = [name for group in groups for name in group.weights]
    assert sorted(names) == sorted(places)
    own = {name: (name, place) for name, place in places.items()}
    for group in groups:
        found = assign_views(parse_views(f"{group.pattern}=8"), own)
        assert found == dict.fromkeys(group.weights, View.WIDE8)


def test_the_text_of_views_joins_neighbours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("speqc.view_groups.PARTS", 3)
    layers = {f"w{i}{role}": f"layers.{i}.{role}" for i in range(9) for role in ("q", "down")}
    groups = view_groups({**layers, "w": "head"})
    patterns = [group.pattern for group in groups]
    wide, narrow = View.WIDE8, View.DRAFT
    views = dict(zip(patterns, [wide, wide, narrow, wide, View.WIDE12, wide, wide], strict=True))
    text = "layers.0-5.q=8,layers.0-2.down=8,layers.3-5.down=12,layers.6-8.down=8,head=8"
    assert views_text(groups, views) == text
    assert views_text(groups, {}) == ""
    assert [g.pattern for g in view_groups({"a": "layers.0.q"})] == ["layers.0.q"]


def test_a_step_with_views_is_the_step_of_a_compiled_program(
    kjv: Path, model: Path, tmp_path: Path
):
    text = "head=12,layers.1-2.down=8,layers.0.q=16"
    named = tmp_path / "named.speq"
    compile_model(model, named, CompileOptions(Target(), draft_views=text))
    expected, narrow = load_artifact(named), load_artifact(kjv)
    machine = Machine(narrow.program, WeightFile(narrow.weights))
    step = with_views(
        find_function(narrow.program, DRAFT),
        "other",
        draft_views(expected.program),
        {name: weight.declaration for name, weight in machine.weights.items()},
        Target(),
    )
    machine.add_step(step, machine.weights)
    wanted = Machine(expected.program, WeightFile(expected.weights)).call(DRAFT, [5, 9, 6])
    assert np.array_equal(machine.call("other", [5, 9, 6]), wanted)
    module = narrow.program.clone()
    module.body.block.add_op(step)
    cycles = ProgramTimer(module).cost("other", 1, 64).cycles
    # The order of loads may differ, and nothing else does.
    assert cycles == pytest.approx(
        ProgramTimer(expected.program).cost(DRAFT, 1, 64).cycles, rel=0.01
    )


def test_a_draft_in_full_is_at_no_distance(kjv: Path):
    artifact = load_artifact(kjv)
    machine = Machine(artifact.program, WeightFile(artifact.weights))
    rows = np.random.default_rng(0).integers(0, 2048, (2, PREFIX + POSITIONS + 3)).tolist()
    text = CalibrationText("ids", rows, False, 512, 1000)
    positions = Positions(artifact.program, WeightFile(artifact.weights), text, frozenset())
    assert len(positions) == 2 * POSITIONS
    weights = {name: weight.declaration for name, weight in machine.weights.items()}

    def distance(view: View):
        views = dict.fromkeys(weights, view)
        step = find_function(artifact.program, DRAFT)
        return positions.distance(with_views(step, "x", views, weights, Target()), views)

    exact, near, far = distance(View.FULL), distance(View.WIDE12), distance(View.DRAFT)
    assert (exact.kl, exact.agreement) == (0, 1)
    assert exact.overlap == pytest.approx(1)
    # The same again: measuring leaves the caches as they were.
    assert distance(View.DRAFT) == far
    assert 0 < near.kl < 0.05 * far.kl


def test_positions_lie_behind_text_that_was_not_calibrated_on(kjv: Path):
    """Right behind the prompts a calibrated draft is nearer than elsewhere."""
    artifact = load_artifact(kjv)
    prompts = [[5, 9, 6], [7, 11]]
    text = CalibrationText("self", prompts, True, 256, 1000)
    positions = Positions(artifact.program, WeightFile(artifact.weights), text, frozenset())
    assert len(positions) == draft_distance.TEXTS * POSITIONS
    lengths = [block.branch.length for block in positions._blocks]
    assert np.mean(np.array(lengths) >= AHEAD) > 0.9


@pytest.mark.parametrize("length", [1, 2, 9, 12])
def test_positions_need_no_room_for_more(length: int, kjv: Path):
    artifact = load_artifact(kjv)
    text = CalibrationText("self", [[5, 9, 6], [7]], True, length, 1000)
    positions = Positions(artifact.program, WeightFile(artifact.weights), text, frozenset())
    assert len(positions) == draft_distance.TEXTS * POSITIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-draft-bits", "6"], "--max-draft-bits needs --draft-views auto"),
        (["--draft-views", "auto", "--emit", "pe"], "leave out --emit"),
        (["--draft-views", "auto", "--no-weights"], "leave out --no-weights"),
        (["--draft-views", "auto", "--max-draft-bits", "4"], "drafts read as they are 4.25 bits"),
    ],
)
def test_what_can_not_be_chosen_is_an_error(
    options: list[str], message: str, model: Path, tmp_path: Path
):
    out = [] if "--emit" in options else ["-o", str(tmp_path / "x.speq")]
    result = CliRunner().invoke(main, ["compile", str(model), *out, *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
