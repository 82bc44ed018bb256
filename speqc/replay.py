"""Recorded runs: what `speqc run --json` wrote, as far as time depends on it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speqc.dialects.speq import DRAFT, FULL
from speqc.recorded_model import FIELD
from speqc.report import prompt_calls, round_calls, token_calls
from speqc.runtime.calls import Call
from speqc.runtime.decode import MODES, Round
from speqc.runtime.errors import SpeqcError


@dataclass(frozen=True)
class Replay:
    """A recorded run: how many tokens, and for speculative decoding its rounds."""

    mode: str
    prompt_length: int
    new_tokens: int
    rounds: Sequence[Round]
    prompt_chunk: int | None
    experts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Texts of `routing.to_text`: of the passes of the prompt, of those after it, and of the tokens
    in plain decoding; each may be absent."""
    model: object = None
    """What the recording says of the model (see `recorded_model`)."""

    def calls(self, chunk: int) -> list[Call]:
        """The passes of the run, with a prompt in chunks of `chunk` tokens."""
        prompt = prompt_calls(self.prompt_length, chunk)
        if self.mode == "speculative":
            return prompt + round_calls(self.prompt_length, self.rounds)
        step = DRAFT if self.mode == "draft" else FULL
        plain = token_calls(self.prompt_length, self.new_tokens)
        return prompt + [call._replace(function=step) for call in plain]


def read_replay(path: Path, prompt_length: int | None = None) -> Replay:
    """The run of a report that `speqc run --json` wrote; `prompt_length` replaces its own.

    Raises SpeqcError where the file is no such report.
    """
    try:
        return _replay(json.loads(path.read_text("utf-8")), prompt_length)
    except KeyError as error:
        raise SpeqcError(f"{path}: not a report of 'speqc run --json': no field {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SpeqcError(f"{path}: not a report of 'speqc run --json': {error}") from error


def _replay(report: dict[str, Any], prompt_length: int | None) -> Replay:
    run = Replay(
        report["mode"],
        prompt_length or _count(report["prompt_tokens"]),
        _count(report["new_tokens"]),
        [_round(entry) for entry in report.get("rounds", ())],
        _chunk(report.get("prompt_chunk")),
        _experts(report.get("experts", {}), moved=prompt_length is not None),
        report.get(FIELD),
    )
    if run.mode not in MODES:
        raise ValueError(f"unknown mode {run.mode!r}")
    if run.mode == "speculative" and not _give(run.rounds, run.new_tokens):
        raise ValueError(f"the rounds do not give {run.new_tokens} tokens")
    return run


def _give(rounds: Sequence[Round], tokens: int) -> bool:
    """Whether rounds give so many tokens, the prompt the first, and the last round maybe more."""
    given = [entry.accepted + 1 for entry in rounds]
    return sum(given[:-1]) < tokens - 1 <= sum(given) if given else tokens == 1


def _experts(fields: dict[str, Any], *, moved: bool) -> dict[str, list[str]]:
    """What is recorded of the choice of experts; of a prompt of another length, nothing."""
    found = {}
    for name in ("passes", "plain") if moved else ("prompt", "passes", "plain"):
        texts = fields.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"experts: expected a list of texts in {name}")
        found[name] = texts
    return found


def _chunk(value: object) -> int | None:
    if value is None:
        return None
    chunk = _count(value)
    if chunk == 0:
        raise ValueError("a prompt chunk has at least 1 token")
    return chunk


def _round(entry: Any) -> Round:
    drafted, accepted = _count(entry["drafted"]), _count(entry["accepted"])
    if accepted > drafted:
        raise ValueError(f"{accepted} tokens accepted of {drafted}")
    return Round(drafted, accepted, bool(entry["early_exit"]))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a count, got {value!r}")
    return value
