import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from speqc.artifact import load_artifact
from speqc.evaluation import Bootstrap, Evaluation
from speqc.evaluation_plot import write_plot
from speqc.policies import Policy, RunTimer, policies, rounds_of
from speqc.recording import Chain, Recorded, RecordOptions, compare_rows, record
from speqc.run import Prompt, Session
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.errors import SpeqcError
from speqc.runtime.sampling import Sampler, SamplingOptions

Invoke = Callable[..., Result]

PROMPTS = ["And the LORD spake", "In the beginning God created the heaven", "The king said unto"]
NEW_TOKENS = 20
LONGEST, LOWEST = 6, 0.3
SETTINGS = policies((1, 3, 6), (0.3, 0.6, 1.0))


@pytest.fixture(scope="module")
def session(kjv: Path) -> Session:
    return Session(load_artifact(kjv))


@pytest.fixture(scope="module")
def prompts(session: Session) -> list[list[int]]:
    return [session.tokens(Prompt(text)) for text in PROMPTS]


@pytest.fixture(scope="module")
def recordings(session: Session, prompts: list[list[int]]) -> list[Recorded]:
    return record(session.machine, prompts, RecordOptions(NEW_TOKENS, LONGEST, LOWEST))


def check_replay(
    session: Session,
    prompts: Sequence[list[int]],
    recordings: Sequence[Recorded],
    stops: frozenset[int] = frozenset(),
) -> None:
    """Each setting's replay has the tokens, rounds and time of a real run."""
    timer = RunTimer(session.timer, 64)
    for policy in SETTINGS:
        options = DecodeOptions(
            NEW_TOKENS, policy.draft_length, policy.exit_threshold, stop_tokens=stops
        )
        for prompt, entry in zip(prompts, recordings, strict=True):
            run = decode(session.machine, "speculative", prompt, options)
            rounds = rounds_of(entry, policy)
            assert run.tokens == entry.tokens[: entry.emitted]
            assert run.rounds == rounds
            seconds = timer.prompt(entry) + timer.speculative(entry, rounds)
            assert seconds == pytest.approx(session.timer.total(run.calls).seconds)


def test_replay_is_a_real_run(
    session: Session, prompts: list[list[int]], recordings: list[Recorded]
) -> None:
    check_replay(session, prompts, recordings)
    # The settings differ in what they do, or nothing would be tested.
    assert len({tuple(rounds_of(recordings[0], policy)) for policy in SETTINGS}) >= 5


def test_replay_ends_at_stop_tokens(
    session: Session, prompts: list[list[int]], recordings: list[Recorded]
) -> None:
    stops = frozenset({recordings[0].tokens[7], recordings[1].tokens[0]})
    options = RecordOptions(NEW_TOKENS, LONGEST, LOWEST, stops)
    stopped = record(session.machine, prompts, options)
    assert stopped[0].emitted <= 8
    assert (stopped[1].emitted, stopped[1].chains) == (1, [])
    check_replay(session, prompts, stopped, stops)


def test_plain_time_is_that_of_autoregressive_decoding(
    session: Session, prompts: list[list[int]], recordings: list[Recorded]
) -> None:
    timer = RunTimer(session.timer, 64)
    run = decode(session.machine, "autoregressive", prompts[0], DecodeOptions(NEW_TOKENS))
    plain = timer.prompt(recordings[0]) + timer.plain(recordings[0])
    assert plain == pytest.approx(session.timer.total(run.calls).seconds)
    assert run.tokens == recordings[0].tokens


def test_chains_are_what_the_draft_says_behind_the_full_cache(
    session: Session, prompts: list[list[int]], recordings: list[Recorded]
) -> None:
    machine, entry, sampler = session.machine, recordings[2], Sampler(SamplingOptions())
    for place in (0, 4, NEW_TOKENS - 2):
        text = prompts[2] + entry.tokens[:place]
        machine.reset()
        machine.call("full", text)
        draft = machine.call("draft", [entry.tokens[place]])[-1]
        machine.truncate(len(text))
        full = machine.call("full", [entry.tokens[place]])[-1]
        token, probability = sampler.sample(draft)
        chain = entry.chains[place]
        assert (chain.tokens[0], chain.probabilities[0]) == (token, probability)
        assert (entry.overlap[place], entry.kl[place]) == compare_rows(full, draft)


def test_memory_bounds_what_goes_in_lock_step(
    session: Session,
    prompts: list[list[int]],
    recordings: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("speqc.recording.LOGIT_BYTES", 1)
    monkeypatch.setattr("speqc.recording.DRAFTS", 3)
    steps: list[int] = []
    options = RecordOptions(NEW_TOKENS, LONGEST, LOWEST)
    assert record(session.machine, prompts, options, steps.append) == recordings
    assert sum(steps) == 2 * NEW_TOKENS * len(prompts)


def test_compare_rows() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    overlap, kl = compare_rows(np.log(p).astype(np.float32), 3 + np.log(q).astype(np.float32))
    assert overlap == pytest.approx(0.25 + 0.25 + 0.2)
    assert kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    assert compare_rows(p, p) == (pytest.approx(1), 0)
    masked = np.array([0.0, -np.inf])
    assert compare_rows(masked, np.zeros(2)) == pytest.approx((0.5, np.log(2)))


class Costs:
    """Stands for a timer: a full pass takes 2, a drafted token 1, a prompt 1."""

    def prompt(self, recorded: Recorded) -> float:
        return 1.0

    def plain(self, recorded: Recorded) -> float:
        return 2.0 * (recorded.emitted - 1)

    def speculative(self, recorded: Recorded, rounds: Sequence) -> float:
        return sum(entry.drafted + 2.0 for entry in rounds)


def known(agrees: Sequence[bool], probability: float = 0.9) -> Recorded:
    """Token i is i; the chain behind it has two tokens, the first right where `agrees` says so."""
    count = len(agrees)
    chains = [
        Chain([i + 1 if agree else -1, -1], [probability, 0.1]) for i, agree in enumerate(agrees)
    ]
    tokens = list(range(count + 1))
    return Recorded(3, count + 1, tokens, count + 1, chains, [0.5] * count, [0.25] * count)


def evaluated(recordings: Sequence[Recorded], sets: Sequence[str] | None = None) -> Evaluation:
    names = ["a"] * len(recordings) if sets is None else sets
    return Evaluation(recordings, names, policies((1, 2), (0.2,)), Costs(), 0)  # type: ignore[arg-type]


def test_figures_by_hand() -> None:
    evaluation = evaluated([known([True, True, False, False, True]), known([False] * 5)])
    fields = evaluation.fields()
    assert fields["positions"] == 10
    assert fields["agreement"]["value"] == pytest.approx(3 / 10)
    assert (fields["overlap"]["value"], fields["kl"]["value"]) == (0.5, 0.25)
    first, second = fields["acceptance_per_position"]
    assert (first["value"], first["reached"]) == (pytest.approx(0.3), 10)
    assert (second["value"], second["reached"]) == (0, 10)
    one, two = fields["settings"]
    # Length 1, first prompt: behind token 0 one is drafted and accepted, behind 2 one is rejected,
    # behind 3 one is rejected, behind 4 there is no room. Second: rejected behind 0 to 3, no more.
    assert (one["drafted"], one["accepted"], one["full_passes"]) == (3 + 4, 1, 4 + 5)
    assert one["speedup"]["value"] == pytest.approx((2 + 20) / (2 + 7 + 18))
    assert one["acceptance_rate"]["value"] == pytest.approx(1 / 7)
    assert one["mean_acceptance_length"]["value"] == pytest.approx(10 / 9)
    assert one["full_passes_per_token"]["value"] == pytest.approx(9 / 10)
    assert two["drafted"] > one["drafted"]
    assert fields["best"] == one


def test_halves_hold_each_set_alike() -> None:
    evaluation = evaluated([known([True])] * 7, ["a", "b", "a", "b", "a", "b", "a"])
    first = evaluation.halves()
    assert [first[evaluation.sets == name].sum() for name in "ab"] in ([2, 1], [2, 2])
    assert np.array_equal(first, evaluation.halves())


def test_held_out_settings_come_from_the_other_half() -> None:
    # Where chains agree twice, length 2 is best; where they don't, length 1.
    good, bad = known([True] * 6), known([False] * 6)
    for place, chain in enumerate(good.chains):
        chain.tokens[1] = place + 2
    evaluation = evaluated([good, bad])
    held_out = evaluation.held_out()
    assert held_out is not None
    tried = {bool(half["accepted"]): half["draft_length"] for half in held_out["halves"]}
    assert tried == {True: 1, False: 2}
    assert held_out["speedup"]["value"] < evaluation.fields()["best"]["speedup"]["value"]
    assert evaluated([good]).held_out() is None


def test_standard_error_is_that_of_a_mean() -> None:
    random = np.random.default_rng(0)
    values = random.normal(10, 2, 200)
    figure = Bootstrap(200, 1).ratio(values, np.ones(200))
    assert figure["value"] == pytest.approx(values.mean())
    assert figure["stderr"] == pytest.approx(values.std() / np.sqrt(200), rel=0.1)
    assert Bootstrap(1, 1).ratio(np.ones(1), np.ones(1)) == {"value": 1.0, "stderr": None}
    assert Bootstrap(2, 1).ratio(np.ones(2), np.zeros(2)) == {"value": None, "stderr": None}


def lines(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), "utf-8")
    return path


def test_command(kjv: Path, invoke: Invoke, tmp_path: Path) -> None:
    source = lines(
        tmp_path / "mine.jsonl",
        *({"prompt": text, "id": 7} for text in PROMPTS),
        {"prompt": "And God said", "set": "other", "chat": True},
    )
    out, table = tmp_path / "eval.json", tmp_path / "eval.csv"
    arguments = ["--prompts", source, "-n", 12, "--max-draft-length", 4, "--draft-lengths", "1,4"]
    arguments += ["--thresholds", "0.3,0.5", "--json", out, "--csv", table]
    result = invoke("eval", kjv, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "best setting: length" in result.stdout
    assert "held out" in result.stdout
    fields = json.loads(out.read_text("utf-8"))
    assert (fields["prompts"], fields["positions"]) == (4, 44)
    assert {name: entry["prompts"] for name, entry in fields["sets"].items()} == {
        "mine": 3,
        "other": 1,
    }
    settings = [(s["draft_length"], s["exit_threshold"]) for s in fields["settings"]]
    assert settings == [(1, 0.3), (1, 0.5), (4, 0.3), (4, 0.5)]
    rows = list(csv.DictReader(io.StringIO(table.read_text("utf-8"))))
    assert [float(row["speedup"]) for row in rows] == [
        s["speedup"]["value"] for s in fields["settings"]
    ]
    assert max(float(row["speedup"]) for row in rows) == fields["best"]["speedup"]["value"]
    again = invoke("eval", kjv, *arguments[:-4], "--json", "-", "--target", "speq-64x64-one-lane")
    moved = json.loads(again.stdout)
    assert "best setting" in again.stderr
    assert moved["texts"] == fields["texts"]
    assert moved["agreement"] == fields["agreement"]
    assert moved["best"]["speedup"]["value"] < fields["best"]["speedup"]["value"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n\n{"prompt"', "line 3: not JSON: Expecting ':' delimiter"),
        ('"a"', 'line 1: expected an object such as {"prompt": "..."}'),
        ('{"promt": "a"}', 'line 1: there is no "prompt", or it is empty'),
        ('{"prompt": 5}', 'line 1: "prompt" must be a text, got 5'),
        ('{"prompt": "a", "chat": 1}', 'line 1: "chat" must be true or false, got 1'),
        ("\n", "there is no prompt in it"),
        ('{"prompt": "' + "a b " * 2000 + '"}', "line 1: a prompt of"),
    ],
)
def test_bad_prompts(kjv: Path, invoke: Invoke, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, "utf-8")
    result = invoke("eval", kjv, "--prompts", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nowhere"], "nowhere: there is no such file, and no such set of prompts"),
        (["--draft-lengths", "1,13"], "give --max-draft-length 13"),
        (["--draft-lengths", "1,x"], "'x' is not a valid integer"),
        (["--thresholds", "0.5,2"], "2.0 is not in the range 0<=x<=1"),
        (["--json", "-", "--csv", "-"], "--json and --csv can't both go to standard output"),
        (["--csv", "/nowhere/x.csv"], "--csv: /nowhere/x.csv: the folder /nowhere does not exist"),
    ],
)
def test_bad_options(kjv: Path, invoke: Invoke, arguments: list[str], message: str) -> None:
    result = invoke("eval", kjv, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_plot_without_matplotlib(
    kjv: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("eval", kjv, "--plot", tmp_path / "x.png")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --plot needs matplotlib")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    fields = evaluated([known([True] * 3), known([False] * 3)]).fields()
    fields |= {"prompts": 2, "target": "none", "options": {"thresholds": [0.2]}}
    path = tmp_path / f"x.{ending}"
    write_plot(fields, path)
    assert path.stat().st_size > 1000
    with pytest.raises(SpeqcError, match=r"--plot: .*x\.nothing"):
        write_plot(fields, tmp_path / "x.nothing")


def test_policy_text() -> None:
    assert str(Policy(8, 0.3)) == "length 8, threshold 0.3"
