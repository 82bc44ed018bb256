import json

import numpy as np
import pytest

from speqc.check import compare
from speqc.run import parse_token_ids
from speqc.runtime.decode import Decoded
from speqc.runtime.errors import CheckFailed, SpeqcError

RUN_FIELDS = {
    "mode",
    "token_ids",
    "text",
    "acceptance_rate",
    "mean_acceptance_length",
    "acceptance_per_position",
    "drafted",
    "accepted",
    "full_passes",
    "simulated",
    "baseline",
    "speedup",
    "wall_seconds",
}
SIMULATED_FIELDS = {"cycles", "seconds", "tokens_per_second", "dram_bytes", "energy_joules"}


@pytest.fixture(scope="module")
def copy(kjv, tmp_path_factory):
    """An artifact that has no tokenizer and no digest for one."""
    path = tmp_path_factory.mktemp("copy") / "plain.speq"
    path.mkdir()
    for name in ("program.mlir", "weights.safetensors"):
        (path / name).hardlink_to(kjv / name)
    manifest = json.loads((kjv / "manifest.json").read_text())
    del manifest["files"]["tokenizer.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def report(result) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_standard_output_carries_the_text_alone(invoke, kjv):
    result = invoke("run", kjv, "--prompt", "And God said", "-n", "12")
    fields = report(invoke("run", kjv, "--prompt", "And God said", "-n", "12", "--json", "-"))
    assert result.exit_code == 0
    assert result.stdout == fields["text"] + "\n"
    assert f"speedup: {fields['speedup']:.2f}x" in result.stderr


def test_without_a_tokenizer_token_ids_go_in_and_out(invoke, kjv, copy):
    text = report(invoke("run", kjv, "--token-ids", "5,6,7", "-n", "9", "--json", "-"))
    plain = report(invoke("run", copy, "--token-ids", "5,6,7", "-n", "9", "--json", "-"))
    assert plain["token_ids"] == text["token_ids"]
    assert "text" not in plain
    shown = invoke("run", copy, "--token-ids", "5,6,7", "-n", "9")
    assert shown.stdout == ",".join(map(str, plain["token_ids"])) + "\n"


def test_the_report_has_all_fields_and_they_agree(invoke, kjv, tmp_path):
    file = tmp_path / "run.json"
    result = invoke("run", kjv, "--prompt", "And God said", "-n", "30", "--json", file, "--check")
    assert result.exit_code == 0, result.stderr
    assert "checked: 30 greedy tokens" in result.stderr
    fields = json.loads(file.read_text())
    assert fields.keys() >= RUN_FIELDS
    assert fields["simulated"].keys() >= SIMULATED_FIELDS
    assert fields["baseline"]["simulated"].keys() >= SIMULATED_FIELDS
    rounds = fields["rounds"]
    assert fields["drafted"] == sum(entry["drafted"] for entry in rounds)
    assert fields["accepted"] == sum(entry["accepted"] for entry in rounds)
    assert fields["full_passes"] == len(rounds)
    # The prompt gives the first token, each round its accepted ones and one more.
    assert len(fields["token_ids"]) == 30 == 1 + len(rounds) + fields["accepted"]
    ours, plain = fields["simulated"], fields["baseline"]["simulated"]
    assert fields["speedup"] == pytest.approx(plain["cycles"] / ours["cycles"])
    assert ours["prompt_seconds"] == plain["prompt_seconds"]


def test_autoregressive_mode_is_its_own_baseline(invoke, kjv):
    arguments = ("run", kjv, "--token-ids", "5", "-n", "6", "--mode", "autoregressive")
    fields = report(invoke(*arguments, "--json", "-"))
    assert fields["simulated"] == fields["baseline"]["simulated"]
    assert fields["full_passes"] == 5
    assert "drafted" not in fields


def test_draft_mode_runs_no_full_pass_after_the_prompt(invoke, kjv):
    arguments = ("run", kjv, "--token-ids", "5", "-n", "6", "--mode", "draft", "--json", "-")
    fields = report(invoke(*arguments))
    assert fields["full_passes"] == 0
    assert fields["speedup"] > 1


def test_sampling_repeats_with_its_seed(invoke, kjv):
    arguments = ("run", kjv, "--token-ids", "5", "-n", "12", "--temperature", "1", "--json", "-")
    first, again, other = (
        report(invoke(*arguments, "--seed", seed))["token_ids"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_end_of_text_stops_unless_told_otherwise(invoke, kjv, tmp_path):
    """The second token that the model emits is made its end-of-text token."""
    arguments = ("--token-ids", "5", "-n", "6", "--mode", "autoregressive", "--json", "-")
    tokens = report(invoke("run", kjv, *arguments))["token_ids"]
    path = tmp_path / "stops.speq"
    path.mkdir()
    for name in ("program.mlir", "weights.safetensors", "tokenizer.json"):
        (path / name).hardlink_to(kjv / name)
    manifest = json.loads((kjv / "manifest.json").read_text())
    manifest["text"]["eos_token_ids"] = [tokens[1]]
    (path / "manifest.json").write_text(json.dumps(manifest))
    stop = tokens.index(tokens[1]) + 1
    assert report(invoke("run", path, *arguments))["token_ids"] == tokens[:stop]
    assert report(invoke("run", path, *arguments, "--no-stop"))["token_ids"] == tokens


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--token-ids", "1,x"), "--token-ids: expected numbers"),
        (("--token-ids", "5,99999"), "token id 99999 (place 1 of the prompt) is out of range"),
        (("--token-ids", "-1"), "out of range"),
        (
            ("--token-ids", "5", "-n", "5000"),
            "of 1 token and 5,000 new ones do not fit the context of 1,024",
        ),
        (("--token-ids", ",".join(["5"] * 2000)), "a prompt of 2,000 tokens"),
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", "Hello", "--chat"), "has no chat template"),
        (("--token-ids", "5", "--check", "--mode", "draft"), "--check: the draft mode"),
        (("--token-ids", "5", "--check", "--temperature", "1"), "--check: sampled tokens"),
    ],
)
def test_bad_prompts_are_one_line(invoke, kjv, arguments, fragment):
    result = invoke("run", kjv, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line


def test_text_without_a_tokenizer_is_one_line(invoke, copy):
    result = invoke("run", copy, "--prompt", "Hello")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "has no tokenizer: give --token-ids" in line


def test_a_failed_check_exits_1_and_names_the_difference(invoke, kjv, monkeypatch):
    import speqc.run

    real = speqc.run.decode

    def wrong(machine, mode, *arguments, **options):
        decoded = real(machine, mode, *arguments, **options)
        if mode == "autoregressive":
            decoded.logits[3] = np.nextafter(decoded.logits[3], np.float16(np.inf))
        return decoded

    monkeypatch.setattr("speqc.run.decode", wrong)
    result = invoke("run", kjv, "--token-ids", "5,6", "-n", "8", "--check")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        "check failed: new token 3: 2048 logits differ"
    )


ROWS = [np.array([0.0, 1.0], np.float16), np.array([2.0, np.nan], np.float16)]


def test_compare_takes_equal_bits_for_equal():
    compare(Decoded([1, 0], logits=ROWS), Decoded([1, 0], logits=[row.copy() for row in ROWS]))


@pytest.mark.parametrize(
    ("tokens", "logits", "message"),
    [
        ([1, 1], ROWS, "new token 1 is 1, autoregressive decoding's 0"),
        ([1], ROWS[:1], "1 new token, autoregressive decoding gives 2"),
        ([1, 0], [-ROWS[0], ROWS[1]], "new token 0: 2 logits differ, first that of token id 0"),
    ],
)
def test_compare_names_the_first_difference(tokens, logits, message):
    with pytest.raises(CheckFailed, match=message):
        compare(Decoded(tokens, logits=logits), Decoded([1, 0], logits=ROWS))


def test_token_ids():
    assert parse_token_ids("1, 2,3") == [1, 2, 3]
    with pytest.raises(SpeqcError, match="--token-ids"):
        parse_token_ids("")


@pytest.mark.parametrize("mode", ["autoregressive", "draft"])
@pytest.mark.parametrize(
    "option", ["--draft-length=4", "--exit-threshold=0", "--draft-schedule=cost", "--measured=x"]
)
def test_options_of_drafting_need_it(invoke, kjv, mode, option):
    result = invoke("run", kjv, "--prompt", "a", "--mode", mode, option)
    assert result.exit_code == 2
    name = option.partition("=")[0]
    assert f"{name}: nothing is drafted in --mode {mode}." in result.stderr
