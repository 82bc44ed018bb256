"""`--draft-length auto`: what it chooses, what it expects, and what it refuses."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from speqc.artifact import load_artifact
from speqc.auto_length import (
    Measured,
    fastest,
    length_for_acceptance,
    length_for_run,
    read_evaluation,
    shortened,
)
from speqc.policies import Policy
from speqc.replay import Replay
from speqc.report import round_calls, token_calls
from speqc.runtime.decode import Round
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer

Invoke = Callable[..., Result]

PAST = 64
PROMPT = "And the LORD spake unto Moses"


@pytest.fixture(scope="module")
def timer(kjv: Path) -> ProgramTimer:
    return ProgramTimer(load_artifact(kjv).program, PAST)


@pytest.fixture(scope="module")
def measured(kjv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `speqc eval` says of the embedded model, on another target than the artifact's."""
    from speqc.cli import main

    out = tmp_path_factory.mktemp("eval") / "eval.json"
    arguments = ["eval", str(kjv), "--prompts", "text", "--limit", "3", "-n", "20"]
    arguments += ["--thresholds", "0.1,0.3,0.6", "--max-draft-length", "8", "--json", str(out)]
    main([*arguments, "--target", "speq-64x64-one-lane"], standalone_mode=False)
    return out


def of_rounds(rounds: list[Round]) -> Measured:
    return Measured(
        Policy(1, 0.0),
        len(rounds),
        sum(entry.drafted for entry in rounds),
        sum(entry.accepted for entry in rounds),
    )


@pytest.mark.parametrize(
    "rounds",
    [
        [Round(4, 3, False)] * 5,
        [Round(3, 0, False), Round(4, 4, False)],
        [Round(0, 0, False)] * 3,
        [Round(7, 7, False), Round(8, 2, True), Round(7, 1, False)],
    ],
)
def test_expected_speedup_is_that_of_the_rounds(timer: ProgramTimer, rounds: list[Round]) -> None:
    # Drafts differ by one token at most: the mean of their verifications is on a line.
    tokens = sum(entry.accepted + 1 for entry in rounds)
    plain = timer.total(token_calls(PAST, tokens + 1)).seconds
    found = of_rounds(rounds).speedup(timer, PAST)
    assert found == pytest.approx(plain / timer.total(round_calls(PAST, rounds)).seconds)


def test_the_fastest_setting_wins(timer: ProgramTimer) -> None:
    never, always = Measured(Policy(8, 0.0), 10, 80, 0), Measured(Policy(2, 0.5), 10, 20, 20)
    policy, speedup = fastest([never, always], timer, PAST)
    assert policy == Policy(2, 0.5)
    assert speedup == always.speedup(timer, PAST) > 1 > never.speedup(timer, PAST)


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.9, 0.97])
def test_length_for_an_acceptance_is_the_best_of_all(
    timer: ProgramTimer, acceptance: float
) -> None:
    def rate(length: int) -> float:
        tokens = (1 - acceptance ** (length + 1)) / (1 - acceptance)
        return tokens / timer.total(round_calls(PAST, [Round(length, 0, False)])).seconds

    found = length_for_acceptance(timer, PAST, acceptance, 40)
    assert found == max(range(1, 41), key=rate)
    assert length_for_acceptance(timer, PAST, acceptance, 1) == 1
    assert length_for_acceptance(timer, PAST, acceptance, 0) == 1


def replay(rounds: list[Round], tokens: int) -> Replay:
    experts = {"prompt": ["0"], "passes": ["1"], "plain": ["2"]}
    return Replay("speculative", PAST, tokens, rounds, None, experts)


def test_rounds_are_cut_and_begun_anew() -> None:
    run = replay([Round(4, 4, False), Round(3, 1, True), Round(4, 3, False)], 12)
    cut = shortened(run, 2)
    assert cut.rounds == [
        *(Round(2, 2, False), Round(2, 1, False), Round(2, 2, False)),
        Round(2, 2, False),
    ]
    assert sum(entry.accepted + 1 for entry in cut.rounds) == 11
    assert set(cut.experts) == {"prompt", "plain"}


def test_the_longest_cut_is_the_run_itself() -> None:
    rounds = [Round(4, 4, False), Round(3, 1, True), Round(4, 3, False), Round(0, 0, False)]
    assert shortened(replay(rounds, 13), 4).rounds == rounds


def test_length_for_a_run(timer: ProgramTimer, tmp_path: Path) -> None:
    # Two tokens of each draft are right: to draft more is waste, fewer brings less.
    assert length_for_run(timer, PAST, replay([Round(8, 2, False)] * 9, 28), tmp_path) == 2
    assert length_for_run(timer, PAST, replay([Round(8, 8, False)] * 9, 82), tmp_path) == 8
    with pytest.raises(SpeqcError, match="drafted no token"):
        length_for_run(timer, PAST, replay([Round(0, 0, False)], 2), tmp_path)


def test_run_takes_the_setting_that_is_fastest_here(
    kjv: Path, invoke: Invoke, measured: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "run.json", tmp_path / "eval.json"
    # What was best on the target that was measured does not count.
    content = json.loads(measured.read_text("utf-8"))
    content["best"] = min(content["settings"], key=lambda entry: entry["speedup"]["value"])
    report.write_text(json.dumps(content), encoding="utf-8")
    arguments = ["run", kjv, "--prompt", PROMPT, "-n", 24, "--measured", report]
    arguments += ["--draft-length", "auto", "--json", out]
    result = invoke(*arguments, "--check")
    assert result.exit_code == 0, result.stderr
    fields = json.loads(out.read_text("utf-8"))
    length, threshold = fields["draft_length"], fields["exit_threshold"]
    assert (
        f"note: auto: length {length}, threshold {threshold:g}; expected speedup "
        f"{fields['expected_decode_speedup']:.2f}x after the prompt" in result.stderr
    )
    past = fields["prompt_tokens"] + 12
    timer = ProgramTimer(load_artifact(kjv).program)
    settings = read_evaluation(measured).settings
    speedups = {entry.policy: entry.speedup(timer, past) for entry in settings}
    assert speedups[Policy(length, threshold)] == max(speedups.values())
    assert fields["expected_decode_speedup"] == max(speedups.values())
    best = content["best"]
    assert (best["draft_length"], best["exit_threshold"]) != (length, threshold)
    narrowed = invoke(*arguments, "--exit-threshold", "0.6")
    assert narrowed.exit_code == 0, narrowed.stderr
    assert "threshold 0.6; expected" in narrowed.stderr


def test_expectation_is_near_what_eval_measured(kjv: Path, invoke: Invoke, measured: Path) -> None:
    report = json.loads(measured.read_text("utf-8"))
    found = read_evaluation(measured)
    assert found.prompts == 3
    from speqc.retarget import retarget
    from speqc.target_files import load_target

    program = retarget(load_artifact(kjv).program, load_target(report["target"]))
    timer = ProgramTimer(program)
    for setting, entry in zip(report["settings"], found.settings, strict=True):
        expected = entry.speedup(timer, 25)
        assert expected == pytest.approx(setting["decode_speedup"]["value"], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft-length", "auto"], "--draft-length auto: needs measurements: 'speqc eval"),
        (["--measured", "x.json"], "--measured needs --draft-length auto"),
        (["--draft-length", "auto", "--mode", "draft"], "nothing is drafted in --mode draft"),
        (
            ["--draft-length", "auto", "--draft-schedule", "cost", "--measured", "x.json"],
            "--draft-length auto excludes --draft-schedule cost",
        ),
        (["--draft-length", "auto", "--measured", "no.json"], "no.json: there is no such file"),
        (["--draft-length", "0"], "0 is not in the range x>=1"),
        (["--draft-length", "best"], "'best' is not a valid integer"),
    ],
)
def test_options_that_do_not_go_together(
    kjv: Path, invoke: Invoke, arguments: list[str], message: str
) -> None:
    result = invoke("run", kjv, "--token-ids", "5", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@contextmanager
def changed(path: Path, tmp_path: Path, change: Callable[[Any], object]) -> Iterator[Path]:
    report = json.loads(path.read_text("utf-8"))
    change(report)
    other = tmp_path / "changed.json"
    other.write_text(json.dumps(report), "utf-8")
    yield other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("settings"), "not a report of 'speqc eval --json': no field 'settings'"),
        (lambda r: r["settings"][0].update(drafted=-1), "expected a count, got -1"),
        (lambda r: r["settings"][0].update(accepted=10**6), "no setting"),
        (lambda r: r.update(settings=[]), "nothing was drafted"),
        (lambda r: r.update(settings=3), "not a report of 'speqc eval --json'"),
        (lambda r: r["model"].update(source={"a": "b"}), "was recorded with another model"),
    ],
)
def test_other_files_are_refused(
    kjv: Path,
    invoke: Invoke,
    measured: Path,
    tmp_path: Path,
    change: Callable[[Any], object],
    message: str,
) -> None:
    with changed(measured, tmp_path, change) as path:
        result = invoke(
            *("run", kjv, "--token-ids", "5", "--draft-length", "auto", "--measured", path)
        )
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_threshold_that_was_not_measured_is_refused(
    kjv: Path, invoke: Invoke, measured: Path
) -> None:
    asked = ("--draft-length", "auto", "--measured", measured, "--exit-threshold", "0.25")
    result = invoke("run", kjv, "--token-ids", "5", *asked)
    assert result.exit_code == 2
    assert "has no settings of threshold 0.25, only of 0.1, 0.3, 0.6" in result.stderr


def test_simulate_with_an_acceptance(kjv: Path, invoke: Invoke) -> None:
    arguments = ("simulate", kjv, "--prompt-length", 32, "--new-tokens", 80, "--acceptance", 0.9)
    result = invoke(*arguments, "--draft-length", "auto", "--json", "-")
    assert result.exit_code == 0, result.stderr
    fields = json.loads(result.stdout)
    length = fields["draft_length"]
    assert result.stderr == (
        f"note: auto: draft length {length}; expected speedup {fields['decode_speedup']:.2f}x "
        "after the prompt\n"
    )
    given = invoke(*arguments, "--draft-length", length, "--json", "-")
    assert json.loads(given.stdout) == fields
    assert invoke(*arguments[:-2], "--draft-length", "auto").exit_code == 2


def test_simulate_with_a_recorded_run(kjv: Path, invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    ran = invoke(
        *("run", kjv, "--prompt", PROMPT, "-n", 40, "--draft-length", 12, "--exit-threshold", 0),
        *("--json", out),
    )
    assert ran.exit_code == 0, ran.stderr
    result = invoke("simulate", kjv, "--replay", out, "--draft-length", "auto", "--json", "-")
    assert result.exit_code == 0, result.stderr
    fields = json.loads(result.stdout)
    assert max(entry["drafted"] for entry in fields["rounds"]) == fields["draft_length"] <= 12
    assert fields["new_tokens"] == 40
    assert f"{fields['decode_speedup']:.2f}x after the prompt" in result.stderr
    assert invoke("simulate", kjv, "--replay", out, "--draft-length", 3).exit_code == 2
