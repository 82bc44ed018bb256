"""`speqc eval`: measure draft and decoding over many prompts, from one recording of each."""

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from speqc.artifact import Artifact, load_artifact
from speqc.diagnostics import progress
from speqc.dialects.speq import COST, HEURISTIC
from speqc.evaluation import Evaluation
from speqc.policies import Policy, RunTimer, policies
from speqc.prompt_sets import PromptLine, read_prompts
from speqc.recorded_model import FIELD, model_fields
from speqc.recording import Recorded, RecordOptions, record
from speqc.report import Fields, check_json_destination, write_json
from speqc.retarget import retarget
from speqc.run import Prompt, Session
from speqc.runtime.counted import counted
from speqc.runtime.decode import DecodeOptions, check_prompt, drafting, find_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.schedules import Drafting
from speqc.simulate import program_chunk
from speqc.tables import print_table
from speqc.target_files import load_target
from speqc.text_files import check_destination, write_text

SHOWN = 8
"""Settings that the table lists: the fastest."""


@dataclass(frozen=True)
class EvalOptions:
    """What is measured; see `speqc eval --help`.

    `limit` prompts of each set are taken. The settings are all pairs of `draft_lengths`, of those
    up to `max_draft_length`, and `thresholds`.
    """

    new_tokens: int
    max_draft_length: int
    draft_lengths: Sequence[int] | None
    thresholds: Sequence[float]
    limit: int | None = None
    chat: bool = False
    stop: bool = True
    target: str | None = None
    seed: int = 0

    def settings(self) -> list[Policy]:
        """The settings; raises SpeqcError where a length is not recorded."""
        lengths = self.draft_lengths or range(1, self.max_draft_length + 1)
        if max(lengths) > self.max_draft_length:
            raise SpeqcError(
                f"--draft-lengths: {max(lengths)} tokens are more than are recorded: give "
                f"--max-draft-length {max(lengths)}"
            )
        return policies(lengths, self.thresholds)


@dataclass(frozen=True)
class Outputs:
    """Where results go beside the table: files, and for JSON and CSV "-" is standard output."""

    json: str | None = None
    csv: str | None = None
    plot: str | None = None

    def check(self) -> None:
        """Raise SpeqcError where something could not be written, before there is anything."""
        check_json_destination(self.json)
        if self.csv != "-":
            check_destination(self.csv, "--csv")
        check_destination(self.plot, "--plot")
        if self.json == "-" and self.csv == "-":
            raise SpeqcError("--json and --csv can't both go to standard output")
        if self.plot is not None:
            from speqc.evaluation_plot import check_plotting

            check_plotting()

    @property
    def takes_stdout(self) -> bool:
        """Whether a file's text, and not the table, goes to standard output."""
        return "-" in (self.json, self.csv)


def evaluate(path: Path, source: str, options: EvalOptions, outputs: Outputs) -> None:
    """Measure an artifact over the prompts of a set or file (see `prompt_sets`), and report.

    Raises SpeqcError where artifact, prompts, target or options are bad.
    """
    outputs.check()
    options.settings()
    prompts = limited(read_prompts(source), options.limit)
    fields, evaluation = measure(load_artifact(path), source, prompts, options)
    _write(fields, evaluation, outputs)


def measure(
    artifact: Artifact, source: str, prompts: Sequence[PromptLine], options: EvalOptions
) -> tuple[Fields, Evaluation]:
    """Record and time an artifact over prompts: the fields of the report, and what they are from.

    Raises SpeqcError as `evaluate`.
    """
    settings = options.settings()
    session = Session(artifact)
    timer = run_timer(artifact, options.target)
    tokens = [prompt_tokens(session, line, options) for line in prompts]
    start = time.perf_counter()
    recordings = _record(session, tokens, options)
    with progress("timing settings", len(settings)) as advance:
        sets = [line.set for line in prompts]
        rules = schedules(artifact, options)
        evaluation = Evaluation(recordings, sets, settings, timer, options.seed, advance, rules)
    fields = {
        "artifact": str(artifact.path),
        FIELD: model_fields(artifact.manifest),
        "target": timer.timer.target.name,
        "options": _option_fields(source, options),
        "prompts": len(prompts),
        **evaluation.fields(),
        "texts": _text_fields(prompts, recordings),
        "wall_seconds": time.perf_counter() - start,
    }
    return fields, evaluation


def schedules(artifact: Artifact, options: EvalOptions) -> list[Drafting]:
    """The rules that change lengths from round to round, as far as drafts are recorded.

    The heuristic one begins with the program's length and has its threshold; the one by cost has
    the bounds of the recording alone.
    """
    program = find_program(artifact.program, "speculative")
    own = drafting(program, DecodeOptions(options.new_tokens))
    longest, lowest = options.max_draft_length, min(options.thresholds)
    return [
        Drafting(HEURISTIC, min(own.length, longest), max(own.threshold, lowest)),
        Drafting(COST, longest, lowest),
    ]


def limited(prompts: Sequence[PromptLine], limit: int | None) -> list[PromptLine]:
    """The first `limit` prompts of each set."""
    taken: dict[str, int] = {}
    found = []
    for line in prompts:
        taken[line.set] = taken.get(line.set, 0) + 1
        if limit is None or taken[line.set] <= limit:
            found.append(line)
    return found


def run_timer(artifact: Artifact, target: str | None) -> RunTimer:
    """Times the artifact's runs, on another target if one is named."""
    program = artifact.program
    if target is not None:
        program = retarget(program, load_target(target))
    return RunTimer(ProgramTimer(program), program_chunk(program))


def prompt_tokens(session: Session, line: PromptLine, options: EvalOptions) -> list[int]:
    """The tokens of a prompt; raises SpeqcError, which names its line, where it can't be run."""
    chat = options.chat or (line.chat and session.artifact.chat_template is not None)
    tokens = session.tokens(Prompt(line.text, chat=chat))
    try:
        check_prompt(session.machine, tokens, options.new_tokens)
    except SpeqcError as error:
        raise SpeqcError(f"{line.where}: {error}") from None
    return tokens


def _record(
    session: Session, prompts: Sequence[Sequence[int]], options: EvalOptions
) -> list[Recorded]:
    stops = session.artifact.eos_token_ids if options.stop else frozenset()
    wanted = RecordOptions(
        options.new_tokens, options.max_draft_length, min(options.thresholds), stops
    )
    with progress("recording", 2 * options.new_tokens * len(prompts)) as advance:
        return record(session.machine, prompts, wanted, advance)


def _option_fields(source: str, options: EvalOptions) -> Fields:
    return {
        "prompts": source,
        "limit": options.limit,
        "chat": options.chat,
        "stop": options.stop,
        "new_tokens": options.new_tokens,
        "max_draft_length": options.max_draft_length,
        "thresholds": sorted(set(options.thresholds)),
        "seed": options.seed,
    }


def _text_fields(prompts: Sequence[PromptLine], recordings: Sequence[Recorded]) -> list[Fields]:
    return [
        {
            "prompt": line.text,
            "set": line.set,
            "prompt_tokens": entry.prompt_length,
            "new_tokens": entry.emitted,
            "token_ids": entry.tokens[: entry.emitted],
        }
        for line, entry in zip(prompts, recordings, strict=True)
    ]


def _write(fields: Fields, evaluation: Evaluation, outputs: Outputs) -> None:
    if outputs.json is not None:
        write_json(fields, outputs.json)
    if outputs.csv is not None:
        text = settings_csv(fields["settings"])
        if outputs.csv == "-":
            click.echo(text, nl=False)
        else:
            write_text(text, outputs.csv)
    if outputs.plot is not None:
        from speqc.evaluation_plot import write_plot

        write_plot(fields, Path(outputs.plot))
    print_evaluation(fields, stderr=outputs.takes_stdout)


def settings_csv(settings: Sequence[Fields]) -> str:
    """A line for each setting; a figure's standard error stands in a column `..._stderr`."""
    rows = [_flat(setting) for setting in settings]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(setting: Fields) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in setting.items():
        if isinstance(value, dict):
            row |= {name: value["value"], f"{name}_stderr": value["stderr"]}
        else:
            row[name] = value
    return row


def print_evaluation(fields: Fields, *, stderr: bool) -> None:
    """Show the figures: tables of the sets, the positions and the fastest settings."""
    shown = _Shown(stderr)
    shown.line(
        f"{counted(fields['prompts'], 'prompt')}, {counted(fields['positions'], 'position')} "
        f"drafted from, on {fields['target']}; ± one standard error over prompts"
    )
    shown.table(*_set_table(fields))
    shown.table(*_position_table(fields["acceptance_per_position"]))
    shown.table(*_setting_table(fields["settings"]))
    shown.table(*_schedule_table(fields["schedules"]))
    best, held_out = fields["best"], fields["held_out"]
    shown.line(f"best setting: {_name(best)}: {show(best['speedup'])}x the speed of plain decoding")
    if (beyond := _beyond(fields)) is not None:
        shown.line(beyond)
    if held_out is not None:
        names = " and ".join(_name(half) for half in held_out["halves"])
        shown.line(
            f"held out (each half of the prompts with the other's best: {names}): "
            f"{show(held_out['speedup'])}x"
        )


def _beyond(fields: Fields) -> str | None:
    """Advice where the best setting stands at the edge of those measured."""
    best, options = fields["best"], fields["options"]
    # A single drafted token is never cut off.
    if best["draft_length"] > 1 and best["exit_threshold"] == min(options["thresholds"]) > 0:
        return "it has the lowest threshold measured: a lower one may be better (--thresholds)"
    if best["draft_length"] == options["max_draft_length"]:
        return "it has the longest drafts measured: longer ones may be better (--max-draft-length)"
    return None


class _Shown:
    """Standard output or error."""

    def __init__(self, stderr: bool):
        self.stderr = stderr

    def line(self, text: str) -> None:
        click.echo(text, err=self.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        print_table(columns, rows, stderr=self.stderr)
        if not (sys.stderr if self.stderr else sys.stdout).isatty():
            self.line("")


def _name(setting: Fields) -> str:
    return str(Policy(setting["draft_length"], setting["exit_threshold"]))


def show(figure: Fields, digits: int = 2) -> str:
    """A figure with its standard error."""
    if figure["value"] is None:
        return "-"
    text = f"{figure['value']:.{digits}f}"
    return text if figure["stderr"] is None else f"{text} ± {figure['stderr']:.{digits}f}"


def _set_table(fields: Fields) -> tuple[list[str], list[list[str]]]:
    columns = ["set", "prompts", "agreement", "overlap", "KL", "acceptance length", "speedup"]
    best = fields["best"]
    whole = {**fields, "mean_acceptance_length": best["mean_acceptance_length"]}
    whole["speedup"] = best["speedup"]
    named = list(fields["sets"].items())
    rows = [("all", whole)] if len(named) == 1 else [("all", whole), *named]
    return columns, [
        [
            name,
            str(row["prompts"]),
            *(show(row[figure], 3) for figure in ("agreement", "overlap", "kl")),
            show(row["mean_acceptance_length"]),
            show(row["speedup"]),
        ]
        for name, row in rows
    ]


def _position_table(positions: Sequence[Fields]) -> tuple[list[str], list[list[str]]]:
    columns = ["drafted position", "reached", "accepted"]
    return columns, [
        [str(place), str(figure["reached"]), show(figure, 3)]
        for place, figure in enumerate(positions, 1)
    ]


def _setting_table(settings: Sequence[Fields]) -> tuple[list[str], list[list[str]]]:
    # Of settings under which the same happens, the first stands for all.
    different = {(s["drafted"], s["accepted"], s["full_passes"]): s for s in reversed(settings)}
    fastest = sorted(different.values(), key=lambda s: -(s["speedup"]["value"] or 0))[:SHOWN]
    return _speed_table("fastest settings", [(_name(setting), setting) for setting in fastest])


def _schedule_table(schedules: Mapping[str, Fields]) -> tuple[list[str], list[list[str]]]:
    named = [(f"{name}: {_name(setting)}", setting) for name, setting in schedules.items()]
    return _speed_table("schedules", named)


def _speed_table(
    title: str, named: Sequence[tuple[str, Fields]]
) -> tuple[list[str], list[list[str]]]:
    return [title, "acceptance rate", "acceptance length", "speedup"], [
        [
            name,
            show(setting["acceptance_rate"]),
            show(setting["mean_acceptance_length"]),
            show(setting["speedup"]),
        ]
        for name, setting in named
    ]
