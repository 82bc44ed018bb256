"""`speqc eval A.speq B.speq`: figures are those of each alone, differences are paired."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from onnx_models import decoder, save

from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.evaluate import EvalOptions
from speqc.evaluate_several import check_same_tokens
from speqc.evaluation import Bootstrap
from speqc.prompt_sets import PromptLine
from speqc.runtime.errors import SpeqcError
from speqc.runtime.target import Target

Invoke = Callable[..., Result]

OPTIONS = ["--limit", 3, "--prompts", "text", "-n", 10, "--max-draft-length", 3]
OPTIONS += ["--draft-lengths", "1,3", "--thresholds", "0.4"]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The embedded model with an MXFP4 copy."""
    out = tmp_path_factory.mktemp("several") / "copied.speq"
    compile_model(model, out, CompileOptions(Target(), draft_format="mxfp4"))
    return out


def test_artifacts_are_compared_as_each_is_measured_alone(
    kjv: Path, copied: Path, invoke: Invoke, tmp_path: Path
) -> None:
    out, table = tmp_path / "both.json", tmp_path / "both.csv"
    result = invoke("eval", kjv, copied, *OPTIONS, "--json", out, "--csv", table)
    assert result.exit_code == 0, result.stderr
    assert "less kjv" in result.stdout and "copied" in result.stdout
    both = json.loads(out.read_text("utf-8"))
    alone = json.loads(invoke("eval", copied, *OPTIONS, "--json", "-").stdout)
    found = both["artifacts"][1]
    for fields in (alone, found):
        del fields["wall_seconds"]
    assert found == alone

    first, second = both["comparison"]
    assert (first["draft_bits_per_weight"], second["draft_bits_per_weight"]) == (4.25, 4.25)
    assert second["draft"] == {"draft_format": "mxfp4", "group_size": 32}
    for name in ("agreement", "overlap", "kl"):
        assert second[name] == alone[name]
        less = second["differences"][name]
        assert less["value"] == pytest.approx(second[name]["value"] - first[name]["value"])
        assert first["differences"][name] == {"value": 0, "stderr": 0}
    for name in ("speedup", "mean_acceptance_length"):
        assert second[name] == alone["best"][name]
    assert second["held_out_speedup"] == alone["held_out"]["speedup"]

    rows = list(csv.DictReader(io.StringIO(table.read_text("utf-8"))))
    assert [row["artifact"] for row in rows] == [str(kjv), str(copied)]
    assert float(rows[1]["overlap_difference"]) == second["differences"]["overlap"]["value"]
    again = invoke("eval", kjv, copied, *OPTIONS, "--csv", "-")
    assert again.stdout == table.read_text("utf-8")
    assert "less kjv" in again.stderr


def test_artifacts_of_other_models_are_refused(kjv: Path, invoke: Invoke, tmp_path: Path) -> None:
    other = tmp_path / "other.speq"
    compile_model(save(decoder(1, opset=20), tmp_path), other, CompileOptions(Target()))
    result = invoke("eval", kjv, other)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {other}: is of another model than {kjv}")


def small(place: Path, name: str, *, target: Target | None = None, context: int = 64) -> Path:
    """A decoder of random weights, which has no tokenizer."""
    found = place / f"{name}.onnx"
    save(decoder(1, opset=20), place).rename(found)
    out = place / f"{name}.speq"
    compile_model(found, out, CompileOptions(target or Target(), context=context))
    return out


def test_artifacts_of_other_targets_are_timed_on_one_that_is_named(
    invoke: Invoke, tmp_path: Path
) -> None:
    """The model's file may have another name."""
    target = replace(Target(), name="slow", clock_hz=1_000_000)
    one, other = small(tmp_path, "one"), small(tmp_path, "other", target=target)
    result = invoke("eval", one, other)
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {other}: is compiled for slow, and {one} for another target, speq-64x64: give "
        "--target to time them on one\n"
    )
    named = invoke("eval", one, other, "--target", "speq-32x32")
    assert named.stderr.startswith(f"error: {one}: has no tokenizer")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where anything is measured."""

    def measure(*arguments: object) -> None:
        pytest.fail("an artifact was measured")

    monkeypatch.setattr("speqc.evaluate_several.measure", measure)


@pytest.mark.usefixtures("unmeasured")
def test_prompts_are_tried_on_every_artifact_first(
    kjv: Path, model: Path, invoke: Invoke, tmp_path: Path
) -> None:
    out, prompts = tmp_path / "short.speq", tmp_path / "prompts.jsonl"
    compile_model(model, out, CompileOptions(Target(), context=16, draft_format="mxfp4"))
    prompts.write_text('{"prompt": "In the beginning God created the heaven and the earth."}\n')
    result = invoke("eval", kjv, out, "--prompts", prompts, "-n", 12)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {prompts}, line 1: ")
    assert result.stderr.endswith("do not fit the context of 16\n")

    plain = invoke("eval", kjv, out, "--prompts", prompts, "-n", 2, "--chat")
    assert plain.stderr.startswith(f"error: {kjv}: the model has no chat template")


def test_artifacts_must_read_prompts_as_the_same_tokens(
    kjv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([[1, 2], [3], [1, 2], [4]])
    monkeypatch.setattr("speqc.evaluate_several.prompt_tokens", lambda *_: next(given))
    lines = [PromptLine("a", "s", False, "p:1"), PromptLine("b", "s", False, "p:2")]
    options = EvalOptions(2, 1, None, [0.3])
    with pytest.raises(SpeqcError, match=r"kjv\.speq: its tokenizer .* makes other tokens of p:2 "):
        check_same_tokens([load_artifact(kjv)] * 2, lines, options)


def test_a_plot_is_of_one(kjv: Path, invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("eval", kjv, kjv, "--plot", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "--plot draws one artifact" in result.stderr


def test_differences_are_paired() -> None:
    """What all prompts share falls out of a difference, and not out of the figures."""
    random = np.random.default_rng(0)
    shared = random.uniform(0, 60, 40)
    below = np.full(40, 100.0)
    bootstrap = Bootstrap(40, 0)
    first, second = (shared, below), (shared + 10 + random.uniform(-1, 1, 40), below)
    found = bootstrap.difference(second, first)
    assert found["value"] == pytest.approx(0.1, abs=0.003)
    assert found["stderr"] < 0.002 < bootstrap.ratio(*first)["stderr"]
    assert bootstrap.difference(first, first) == {"value": 0, "stderr": 0}


def test_a_difference_that_there_is_not() -> None:
    one = Bootstrap(1, 0)
    figure = np.array([1.0]), np.array([2.0])
    assert one.difference(figure, figure) == {"value": 0, "stderr": None}
    nothing = np.array([0.0]), np.array([0.0])
    assert one.difference(figure, nothing) == {"value": None, "stderr": None}
