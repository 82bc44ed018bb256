import json
from itertools import product

import pytest

from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.expected_rounds import (
    acceptance_distribution,
    mean_counts,
    round_chances,
)
from speqc.phases import expected_passes, passes_of, phase_fields, run_sums
from speqc.replay import read_replay
from speqc.report import acceptance_fields, prompt_calls, round_calls, token_calls
from speqc.runtime.calls import Call
from speqc.runtime.decode import Round
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.target_files import load_target


@pytest.fixture(scope="module")
def timer(kjv):
    return ProgramTimer(load_artifact(kjv).program)


def fields_of(result) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def outcomes(tokens: int, draft_length: int, acceptance: float):
    """Every course that the rounds can take, with its probability, by brute force."""
    for accepts in product(range(draft_length + 1), repeat=tokens):
        rounds, emitted, probability = [], 1, 1.0
        for accepted in accepts:
            drafted = min(draft_length, tokens - emitted - 1)
            if emitted == tokens or accepted > drafted:
                break
            probability *= acceptance_distribution(acceptance, drafted)[accepted]
            rounds.append(Round(drafted, accepted, False))
            emitted += accepted + 1
        if emitted == tokens and len(rounds) == len(accepts[: len(rounds)]):
            yield tuple(rounds), probability


@pytest.mark.parametrize(("tokens", "draft_length"), [(2, 1), (5, 2), (5, 4)])
def test_expectation_is_the_mean_over_all_courses(timer, tokens, draft_length):
    acceptance, prompt = 0.7, 20
    chances = round_chances(tokens, acceptance, draft_length)
    passes = expected_passes(prompt, chances)
    counts = mean_counts(chances, acceptance)
    found = run_sums(phase_fields(timer, passes).values())
    expected = dict.fromkeys(("cycles", "dram_bytes", "energy_joules", "stall", "ideal"), 0.0)
    means = [0.0] * 3
    courses = dict(outcomes(tokens, draft_length, acceptance))
    assert sum(courses.values()) == pytest.approx(1)
    for rounds, probability in courses.items():
        calls = round_calls(prompt, rounds)
        course = run_sums(phase_fields(timer, passes_of(calls, 0, verifies=True)).values())
        assert course["cycles"] == timer.total(calls).cycles
        for key in expected:
            expected[key] += probability * course[key]
        means[0] += probability * len(rounds)
        means[1] += probability * sum(entry.drafted for entry in rounds)
        means[2] += probability * sum(entry.accepted for entry in rounds)
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert list(counts) == pytest.approx(means)


def test_plain_decoding_is_timed_without_acceptance(invoke, kjv, timer):
    arguments = ("simulate", kjv, "--prompt-length", "70", "--new-tokens", "5", "--json", "-")
    fields = fields_of(invoke(*arguments))
    calls = [Call("full", 64, 0), Call("full", 6, 64)]
    calls += [Call("full", 1, past) for past in (70, 71, 72, 73)]
    assert fields["simulated"]["cycles"] == timer.total(calls).cycles
    assert fields["speedup"] == 1
    table = invoke(*arguments[:-2])
    assert "simulated time: " in table.stdout
    assert table.stderr == ""


@pytest.mark.parametrize(("acceptance", "accepted"), [(1, 3), (0, 0)])
def test_certain_acceptance_is_a_known_course(invoke, kjv, timer, acceptance, accepted):
    arguments = ("simulate", kjv, "--prompt-length", "9", "--new-tokens", "13", "--json", "-")
    fields = fields_of(invoke(*arguments, "--acceptance", acceptance, "--draft-length", "3"))
    rounds, emitted = [], 1
    while emitted < 13:
        drafted = min(3, 13 - emitted - 1)
        rounds.append(Round(drafted, min(accepted, drafted), False))
        emitted += rounds[-1].accepted + 1
    calls = prompt_calls(9, 64) + round_calls(9, rounds)
    assert fields["simulated"]["cycles"] == timer.total(calls).cycles
    assert fields["full_passes"] == len(rounds)
    assert fields["acceptance_rate"] == acceptance


def test_a_replay_takes_the_time_of_the_run(invoke, kjv, tmp_path):
    file = tmp_path / "run.json"
    for mode in ("speculative", "autoregressive", "draft"):
        arguments = ("--token-ids", "5,6,7", "-n", "20", "--mode", mode, "--prompt-chunk", "2")
        assert invoke("run", kjv, *arguments, "--json", file).exit_code == 0
        run = json.loads(file.read_text())
        replay = fields_of(invoke("simulate", kjv, "--replay", file, "--json", "-"))
        same = run.keys() - {"model", "token_ids", "text", "wall_seconds", "prompt_chunk"}
        same -= {"draft_schedule", "draft_length", "exit_threshold"}
        assert {key: replay[key] for key in same} == {key: run[key] for key in same}


def test_a_replay_can_move_in_the_context_but_not_change_its_length(invoke, kjv, tmp_path):
    file = tmp_path / "run.json"
    run = {"mode": "autoregressive", "prompt_tokens": 4, "new_tokens": 6}
    file.write_text(json.dumps(run))
    near = fields_of(invoke("simulate", kjv, "--replay", file, "--json", "-"))
    far = invoke("simulate", kjv, "--replay", file, "--prompt-length", "900", "--json", "-")
    decode = [
        f["simulated"]["seconds"] - f["simulated"]["prompt_seconds"] for f in (near, fields_of(far))
    ]
    assert decode[1] > decode[0]
    result = invoke("simulate", kjv, "--replay", file, "--new-tokens", "7")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has 6 new tokens, not 7" in result.stderr


def test_a_run_of_one_token_has_no_rounds(invoke, kjv, tmp_path):
    file = tmp_path / "run.json"
    assert invoke("run", kjv, "--token-ids", "5,6", "-n", "1", "--json", file).exit_code == 0
    assert fields_of(invoke("simulate", kjv, "--replay", file, "--json", "-"))["new_tokens"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        '{"mode": "speculative"}',
        '{"mode": "speculative", "prompt_tokens": "4", "new_tokens": 6}',
        '{"mode": "speculative", "prompt_tokens": 4, "new_tokens": 6, "rounds": [{"drafted": 1}]}',
        '{"mode": "speculative", "prompt_tokens": 4, "new_tokens": 6, "rounds":'
        ' [{"drafted": 1, "accepted": 2, "early_exit": false}]}',
        '{"mode": "speculative", "prompt_tokens": 4, "new_tokens": 2}',
        '{"mode": "draft", "prompt_tokens": true, "new_tokens": 6}',
        '{"mode": "draft", "prompt_tokens": 4, "new_tokens": 6, "prompt_chunk": 0}',
        '{"mode": "draft", "prompt_tokens": 4, "new_tokens": 6, "prompt_chunk": -1}',
        '{"mode": "draft", "prompt_tokens": 4, "new_tokens": 6, "prompt_chunk": true}',
        '{"mode": "draft", "prompt_tokens": 4, "new_tokens": 6, "prompt_chunk": "64"}',
        '{"mode": "fast", "prompt_tokens": 4, "new_tokens": 6}',
        '{"mode": "speculative", "prompt_tokens": 4, "new_tokens": 6, "rounds":'
        ' [{"drafted": 9, "accepted": 1, "early_exit": false}]}',
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(SpeqcError, match=r"run\.json: not a report of 'speqc run --json'"):
        read_replay(file)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--prompt-length", "1000", "--new-tokens", "25"), "context of 1,024"),
        (("--prompt-length", "4", "--new-tokens", "5", "--target", "x"), "unknown target 'x'"),
        (("--prompt-length", "4", "--new-tokens", "5", "--target", "x.toml"), "x.toml"),
        (("--replay", "no-such-file.json"), "no-such-file.json"),
    ],
)
def test_bad_simulations_are_one_line(invoke, kjv, arguments, fragment):
    result = invoke("simulate", kjv, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line


def test_another_target_takes_the_time_of_a_program_compiled_for_it(invoke, kjv, model, tmp_path):
    path = tmp_path / "one-lane.speq"
    compile_model(model, path, CompileOptions(load_target("speq-64x64-one-lane")))
    arguments = ("--prompt-length", "70", "--new-tokens", "9", "--acceptance", "0.8", "--json", "-")
    moved = fields_of(invoke("simulate", kjv, *arguments, "--target", "speq-64x64-one-lane"))
    native = fields_of(invoke("simulate", path, *arguments))
    assert moved["target"] == native["target"] == "speq-64x64-one-lane"
    assert moved["baseline"] == native["baseline"]
    # Only the order in which drafting loads its weights may differ.
    assert moved["simulated"]["dram_bytes"] == native["simulated"]["dram_bytes"]
    assert moved["simulated"]["cycles"] == pytest.approx(native["simulated"]["cycles"], rel=0.02)


def test_passes_of_a_run():
    assert prompt_calls(5, 2) == [Call("full", 2, 0), Call("full", 2, 2), Call("full", 1, 4)]
    assert token_calls(5, 3) == [Call("full", 1, 5), Call("full", 1, 6)]
    rounds = [Round(2, 1, False), Round(1, 1, True)]
    assert round_calls(5, rounds) == [
        Call("draft", 1, 5),
        Call("draft", 1, 6),
        Call("full", 3, 5),
        Call("draft", 1, 7),
        Call("full", 2, 7),
    ]


def test_acceptance_per_position_counts_rounds_that_drafted_so_far():
    rounds = [Round(3, 1, False), Round(1, 1, True), Round(2, 2, True), Round(0, 0, False)]
    fields = acceptance_fields(rounds)
    assert fields["acceptance_per_position"] == [1, 1 / 2, 0]
    assert (fields["drafted"], fields["accepted"], fields["early_exits"]) == (6, 4, 2)
    assert fields["acceptance_rate"] == pytest.approx(4 / 6)
    assert fields["mean_acceptance_length"] == 2
    assert acceptance_fields([]) == {}
