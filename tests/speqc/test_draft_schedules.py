"""Lengths that follow the rounds: the same tokens and logits, rounds that can be timed again."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from xdsl.dialects.builtin import StringAttr

from speqc.artifact import load_artifact
from speqc.check import compare
from speqc.dialects.speq import SCHEDULES
from speqc.passes.verify_decode import check_programs
from speqc.policies import RunTimer, scheduled_rounds
from speqc.recording import RecordOptions, record
from speqc.run import Prompt, Session
from speqc.runtime.decode import Decoded, DecodeOptions, decode, drafting, find_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.schedules import LONGEST, Drafting

Invoke = Callable[..., Result]

PROMPTS = ["And the LORD spake unto Moses", "In the beginning God created the heaven"]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def session(kjv: Path) -> Session:
    return Session(load_artifact(kjv))


@pytest.fixture(scope="module")
def prompts(session: Session) -> list[list[int]]:
    return [session.tokens(Prompt(text)) for text in PROMPTS]


def speculative(session: Session, prompt: list[int], options: DecodeOptions) -> Decoded:
    return decode(
        session.machine, "speculative", prompt, options, keep_logits=True, timer=session.timer
    )


@contextmanager
def program_with(session: Session, schedule: str) -> Iterator[None]:
    """The artifact's program with another schedule of its own."""
    program = find_program(session.artifact.program, "speculative")
    program.properties["draft_schedule"] = StringAttr(schedule)
    try:
        check_programs(session.artifact.program)
        yield
    finally:
        del program.properties["draft_schedule"]


def test_tokens_and_logits_are_those_of_plain_decoding(
    session: Session, prompts: list[list[int]]
) -> None:
    for prompt in prompts:
        options = DecodeOptions(NEW_TOKENS)
        plain = decode(session.machine, "autoregressive", prompt, options, keep_logits=True)
        for schedule in SCHEDULES:
            for length, threshold in ((None, None), (2, 0.0)):
                asked = DecodeOptions(NEW_TOKENS, length, threshold, draft_schedule=schedule)
                compare(speculative(session, prompt, asked), plain)


def test_a_recording_gives_the_rounds_of_a_run(session: Session, prompts: list[list[int]]) -> None:
    recordings = record(session.machine, prompts, RecordOptions(NEW_TOKENS, NEW_TOKENS, 0.0))
    different = set()
    for schedule in SCHEDULES:
        for prompt, entry in zip(prompts, recordings, strict=True):
            run = speculative(
                session, prompt, DecodeOptions(NEW_TOKENS, 3, 0.1, draft_schedule=schedule)
            )
            rule = Drafting(schedule, 3, 0.1).start(RunTimer(session.timer, 64).cost)
            assert run.rounds == scheduled_rounds(entry, rule)
            different.add(tuple(run.rounds))
    assert len(different) > len(prompts)


def test_a_program_has_a_schedule_of_its_own(session: Session, prompts: list[list[int]]) -> None:
    program = find_program(session.artifact.program, "speculative")
    asked = DecodeOptions(NEW_TOKENS, draft_schedule="cost")
    own, eager = DecodeOptions(NEW_TOKENS), DecodeOptions(NEW_TOKENS, 8, 0.0)
    assert drafting(program, own) == Drafting("constant", 8, 0.3)
    # What is asked of the run alone is not bound by what the program has for another rule.
    assert drafting(program, asked) == Drafting("cost", LONGEST, 0.0)
    by_option = speculative(session, prompts[0], eager).rounds
    with program_with(session, "cost"):
        assert drafting(program, own) == Drafting("cost", 8, 0.3)
        assert drafting(program, DecodeOptions(9, 4, draft_schedule="heuristic")) == Drafting(
            "heuristic", 4, 0.3
        )
        by_program = speculative(session, prompts[0], eager).rounds
        constant = DecodeOptions(NEW_TOKENS, 8, 0.0, draft_schedule="constant")
        assert speculative(session, prompts[0], constant).rounds == by_option
    asked = DecodeOptions(NEW_TOKENS, 8, 0.0, draft_schedule="cost")
    assert by_program == speculative(session, prompts[0], asked).rounds
    assert by_program != by_option


def test_a_timer_is_made_where_none_is_given(session: Session, prompts: list[list[int]]) -> None:
    options = DecodeOptions(NEW_TOKENS, draft_schedule="cost")
    found = decode(session.machine, "speculative", prompts[0], options)
    assert found.rounds == speculative(session, prompts[0], options).rounds


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(SpeqcError, match="must be one of constant, heuristic, cost, got best"):
        DecodeOptions(1, draft_schedule="best")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_command(kjv: Path, invoke: Invoke, tmp_path: Path, schedule: str) -> None:
    out = tmp_path / "run.json"
    arguments = ["--prompt", PROMPTS[0], "-n", NEW_TOKENS, "--draft-schedule", schedule]
    result = invoke("run", kjv, *arguments, "--check", "--json", out)
    assert result.exit_code == 0, result.stderr
    assert "checked: 24 greedy tokens and all their logits" in result.stderr
    fields = json.loads(out.read_text("utf-8"))
    expected = ("cost", LONGEST, 0.0) if schedule == "cost" else (schedule, 8, 0.3)
    names = ("draft_schedule", "draft_length", "exit_threshold")
    assert tuple(fields[name] for name in names) == expected
    replayed = json.loads(invoke("simulate", kjv, "--replay", out, "--json", "-").stdout)
    assert replayed["rounds"] == fields["rounds"]
    assert replayed["simulated"] == fields["simulated"]


def test_eval_measures_schedules(kjv: Path, invoke: Invoke, session: Session) -> None:
    result = invoke(
        *("eval", kjv, "--prompts", "text", "--limit", 1, "-n", 16, "--max-draft-length", 6),
        *("--thresholds", "0.2,0.4", "--no-stop", "--json", "-"),
    )
    assert result.exit_code == 0, result.stderr
    assert "heuristic: length 6, threshold 0.3" in result.stderr
    found = json.loads(result.stdout)
    (text,) = found["texts"]
    tokens = session.tokens(Prompt(text["prompt"]))
    for name, setting in found["schedules"].items():
        run = speculative(
            session,
            tokens,
            DecodeOptions(
                16, setting["draft_length"], setting["exit_threshold"], draft_schedule=name
            ),
        )
        if all(entry.drafted <= 6 for entry in run.rounds):
            assert setting["drafted"] == sum(entry.drafted for entry in run.rounds)
            assert setting["accepted"] == sum(entry.accepted for entry in run.rounds)
            assert setting["full_passes"] == len(run.rounds)
    assert set(found["schedules"]) == {"heuristic", "cost"}
