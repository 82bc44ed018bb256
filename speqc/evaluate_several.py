"""`speqc eval A.speq B.speq ..`: several drafts of one model, compared over the same prompts."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from speqc.artifact import Artifact, load_artifact
from speqc.draft_bits import draft_bits_per_weight, draft_views
from speqc.evaluate import (
    EvalOptions,
    Outputs,
    limited,
    measure,
    prompt_tokens,
    run_timer,
    show,
)
from speqc.evaluation import Evaluation
from speqc.prompt_sets import PromptLine, read_prompts
from speqc.recorded_model import FIELD
from speqc.report import Fields, write_json
from speqc.run import Session
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_target
from speqc.tables import print_table
from speqc.text_files import write_text

DIFFERENCES = ("agreement", "overlap", "kl", "mean_acceptance_length", "speedup")
"""Figures whose differences the table shows."""


def evaluate_several(
    paths: Sequence[Path], source: str, options: EvalOptions, outputs: Outputs
) -> None:
    """Measure artifacts over the same prompts, and report them beside each other.

    Raises SpeqcError as `evaluate.evaluate`, and where artifacts are not of one model, not for one
    target, or give other tokens for a prompt. All this is found before anything is measured.
    """
    outputs.check()
    options.settings()
    prompts = limited(read_prompts(source), options.limit)
    artifacts = [load_artifact(path) for path in paths]
    check_one_model(artifacts)
    if options.target is None:
        check_one_target(artifacts)
    check_same_tokens(artifacts, prompts, options)
    start = time.perf_counter()
    # One after another: a machine keeps all weights that it has decoded.
    measured = [measure(artifact, source, prompts, options) for artifact in artifacts]
    fields = {
        "target": measured[0][0]["target"],
        "prompts": len(prompts),
        "comparison": comparison(artifacts, measured),
        "artifacts": [entry for entry, _ in measured],
        "wall_seconds": time.perf_counter() - start,
    }
    _write(fields, outputs)


def check_one_model(artifacts: Sequence[Artifact]) -> None:
    """Raise SpeqcError unless artifacts are compiled from the same model."""
    first = artifacts[0]
    for other in artifacts[1:]:
        if _digests(other) != _digests(first):
            raise SpeqcError(
                f"{other.path}: is of another model than {first.path}: drafts of one model are "
                "compared, measure others by themselves"
            )


def _digests(artifact: Artifact) -> list[str]:
    """Those of the model's files, whatever they are called."""
    return sorted(artifact.manifest["source"].values())


def check_one_target(artifacts: Sequence[Artifact]) -> None:
    """Raise SpeqcError unless artifacts are compiled for the same target."""
    first, *others = [(artifact.path, module_target(artifact.program)) for artifact in artifacts]
    for path, target in others:
        if target != first[1]:
            raise SpeqcError(
                f"{path}: is compiled for {target.name}, and {first[0]} for another target, "
                f"{first[1].name}: give --target to time them on one"
            )


def check_same_tokens(
    artifacts: Sequence[Artifact], prompts: Sequence[PromptLine], options: EvalOptions
) -> None:
    """Raise SpeqcError unless each artifact can run all prompts, as the same tokens."""
    first: list[list[int]] = []
    for artifact in artifacts:
        # Sessions made for this alone: none has decoded any weights.
        session = Session(artifact)
        run_timer(artifact, options.target)
        tokens = [prompt_tokens(session, line, options) for line in prompts]
        first = first or tokens
        differing = [
            line.where
            for line, own, others in zip(prompts, tokens, first, strict=True)
            if own != others
        ]
        if differing:
            raise SpeqcError(
                f"{artifact.path}: its tokenizer or chat template makes other tokens of "
                f"{differing[0]} than that of {artifacts[0].path}: compile them with the same files"
            )


def comparison(
    artifacts: Sequence[Artifact], measured: Sequence[tuple[Fields, Evaluation]]
) -> list[Fields]:
    """For each artifact its figures, and by how much they exceed those of the first one."""
    rows, first = [], measured[0][1].figures()
    for artifact, (entry, evaluation) in zip(artifacts, measured, strict=True):
        bootstrap, figures = evaluation.bootstrap, evaluation.figures()
        program = artifact.program
        differences = {
            name: bootstrap.difference(of, first[name])
            for name, of in figures.items()
            if name in first
        }
        rows.append(
            {
                "artifact": str(artifact.path),
                "draft": entry[FIELD]["draft"],
                "draft_bits_per_weight": draft_bits_per_weight(program, draft_views(program)),
                "draft_length": entry["best"]["draft_length"],
                "exit_threshold": entry["best"]["exit_threshold"],
                **{name: bootstrap.ratio(*of) for name, of in figures.items()},
                "differences": differences,
            }
        )
    return rows


def comparison_csv(rows: Sequence[Fields]) -> str:
    """A line for each artifact; behind a figure its standard error, and the same of differences."""
    lines = [_flat(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Fields) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("draft", "differences"):
            continue
        if not isinstance(value, dict):
            line[name] = value
            continue
        less = row["differences"][name]
        line |= {name: value["value"], f"{name}_stderr": value["stderr"]}
        line |= {f"{name}_difference": less["value"], f"{name}_difference_stderr": less["stderr"]}
    return line


def _write(fields: Fields, outputs: Outputs) -> None:
    if outputs.json is not None:
        write_json(fields, outputs.json)
    if outputs.csv is not None:
        text = comparison_csv(fields["comparison"])
        if outputs.csv == "-":
            click.echo(text, nl=False)
        else:
            write_text(text, outputs.csv)
    print_comparison(fields, stderr=outputs.takes_stdout)


def print_comparison(fields: Fields, *, stderr: bool) -> None:
    """Show the figures of each artifact, and what each has more than the first."""
    rows = fields["comparison"]
    names = _names([Path(row["artifact"]) for row in rows])
    positions = fields["artifacts"][0]["positions"]
    click.echo(
        f"{counted(fields['prompts'], 'prompt')}, {counted(positions, 'position')} drafted from, "
        f"on {fields['target']}; ± one standard error over prompts",
        err=stderr,
    )
    print_table(*_figure_table(names, rows), stderr=stderr)
    click.echo(err=stderr)
    print_table(*_difference_table(names, rows), stderr=stderr)


def _names(paths: Sequence[Path]) -> list[str]:
    """The artifacts' names, with their folders where two have the same."""
    stems = [path.resolve().stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _figure_table(
    names: Sequence[str], rows: Sequence[Fields]
) -> tuple[list[str], list[list[str]]]:
    columns = ["artifact", "draft bits", "agreement", "overlap", "KL", "acceptance length"]
    columns += ["speedup", "held out", "us a token", "with"]
    return columns, [
        [
            name,
            f"{row['draft_bits_per_weight']:.4g}",
            *(show(row[figure], 3) for figure in ("agreement", "overlap", "kl")),
            show(row["mean_acceptance_length"]),
            show(row["speedup"]),
            show(row["held_out_speedup"]) if "held_out_speedup" in row else "-",
            show(_in_microseconds(row["seconds_per_token"])),
            f"length {row['draft_length']}, threshold {row['exit_threshold']:g}",
        ]
        for name, row in zip(names, rows, strict=True)
    ]


def _in_microseconds(figure: Fields) -> Fields:
    return {name: None if value is None else value * 1e6 for name, value in figure.items()}


def _difference_table(
    names: Sequence[str], rows: Sequence[Fields]
) -> tuple[list[str], list[list[str]]]:
    columns = [f"less {names[0]}", "agreement", "overlap", "KL", "acceptance length", "speedup"]
    return columns, [
        [name, *(show(row["differences"][figure], 3) for figure in DIFFERENCES)]
        for name, row in zip(names[1:], rows[1:], strict=True)
    ]
