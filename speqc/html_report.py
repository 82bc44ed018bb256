"""`speqc report`: one HTML page on a compiled model, complete in itself.

The page holds its style, its scripts and its data: nothing is fetched, and its content security
policy forbids it. Data stand in it as gzip in base64, and are unpacked when their part is first
shown, so that IR of megabytes costs nothing until somebody looks at it.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from speqc import __version__
from speqc.artifact import Artifact, load_artifact
from speqc.diagnostics import note, report
from speqc.dialects.speq import DRAFT, FULL
from speqc.dump_ir import print_module
from speqc.html_ir import PassEntry, program_only, read_dump
from speqc.html_steps import NamedCall, step_data
from speqc.html_weights import weight_data
from speqc.pipeline import LEVELS, STAGES
from speqc.recorded_model import check_recorded
from speqc.replay import Replay, read_replay
from speqc.report import Fields, acceptance_fields
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.decode import find_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.simulate import program_chunk
from speqc.text_files import check_destination, write_text
from speqc.units import show_bytes

SCRIPTS = (
    "page.js",
    "timeline.js",
    "operations.js",
    "roofline.js",
    "ir.js",
    "weights.js",
    "run.js",
)
"""Scripts of the page in the order in which they stand in it; the last line of all starts it."""

DEFAULT_PAST = 128
"""Cached positions of the passes shown where neither a run nor an option says."""

DEFAULT_DRAFT_LENGTH = 8


@dataclass(frozen=True)
class ReportOptions:
    """What a user can choose: a recorded run, a prompt's length, a folder of IR dumps."""

    run: Path | None = None
    prompt_length: int | None = None
    ir: Path | None = None


def write_report(path: Path, out: Path, options: ReportOptions) -> None:
    """Write the page on the artifact at `path` to `out`.

    Raises SpeqcError where artifact, run or dumps are bad, or `out` can't be written.
    """
    check_destination(str(out), "--output")
    artifact = load_artifact(path)
    run = None if options.run is None else read_replay(options.run)
    if options.run is not None and run is not None:
        check_recorded(options.run, run.model, path, artifact.manifest)
    page = build_page(artifact, options, run)
    write_text(page, str(out))
    report(f"wrote {out} ({show_bytes(len(page.encode()))})")


def build_page(artifact: Artifact, options: ReportOptions, run: Replay | None) -> str:
    """The page's HTML. Raises SpeqcError as `write_report`."""
    timer = ProgramTimer(artifact.program)
    calls = _calls(artifact, options, run)
    steps = [step_data(timer, named) for named in calls]
    passes = _passes(artifact, options)
    parts: dict[str, Any] = {f"step-{i}": data for i, (_, data) in enumerate(steps)}
    parts |= {
        f"ir-{entry.number}": {"text": entry.text, "changes": entry.changes}
        for entry in passes
        if entry.text is not None
    }
    parts["weights"] = weight_data(artifact)
    summary: Fields = {
        "target": asdict(timer.target),
        "steps": [step for step, _ in steps],
        "passes": [_pass_fields(entry) for entry in passes],
        "has_pipeline": options.ir is not None,
        "run": None if run is None else _run_fields(run),
    }
    return _render(artifact, summary, parts)


def _calls(artifact: Artifact, options: ReportOptions, run: Replay | None) -> list[NamedCall]:
    """A draft step, the pass that verifies what a round drafted, and a chunk of a prompt."""
    program = artifact.program
    declared = find_program(program, "speculative").draft_length
    length = DEFAULT_DRAFT_LENGTH if declared is None else declared.value.data
    longest = artifact.context - length - 1
    past = options.prompt_length or (DEFAULT_PAST if run is None else run.prompt_length)
    if options.prompt_length is None:
        past = max(0, min(past, longest))
    if past > longest:
        raise SpeqcError(
            f"a prompt of {counted(past, 'token')} and a round of {length + 1} do not fit the "
            f"context of {artifact.context:,}: give a shorter --prompt-length"
        )
    chunk = min(_first_chunk(artifact, options, run), artifact.context)
    return [
        NamedCall("draft", Call(DRAFT, 1, past)),
        NamedCall("verify", Call(FULL, 1 + length, past)),
        NamedCall("prompt", Call(FULL, chunk, 0)),
    ]


def _first_chunk(artifact: Artifact, options: ReportOptions, run: Replay | None) -> int:
    """Rows of the first pass of the prompt: the run's own, or that of the length asked for."""
    chunk = program_chunk(artifact.program)
    if run is not None:
        chunk = min(run.prompt_chunk or chunk, options.prompt_length or run.prompt_length)
    return min(chunk, options.prompt_length or chunk)


def _passes(artifact: Artifact, options: ReportOptions) -> list[PassEntry]:
    program = print_module(artifact.program)
    if options.ir is None:
        note("without --ir DIR, a folder of 'compile --dump-ir', the page has the final IR alone")
        return program_only(program)
    return read_dump(options.ir, program)


def _pass_fields(entry: PassEntry) -> Fields:
    return {
        "number": entry.number,
        "name": entry.name,
        "seconds": entry.seconds,
        "changed": entry.text is not None,
        "stage": _stage(entry),
        "added": entry.added,
        "removed": entry.removed,
        "dialects": entry.dialects,
    }


def _stage(entry: PassEntry) -> str:
    """The level that a pass of the pipeline works towards; "import" and "" for others."""
    if entry.number == 0:
        return "import" if entry.name == "import" else LEVELS[-1]
    end = 0
    for level in LEVELS:
        end += len(STAGES[level])
        if entry.number <= end:
            return level
    return ""


def _run_fields(run: Replay) -> Fields:
    return {
        "mode": run.mode,
        "prompt_tokens": run.prompt_length,
        "new_tokens": run.new_tokens,
        **acceptance_fields(run.rounds),
    }


def _render(artifact: Artifact, summary: Fields, parts: Mapping[str, Any]) -> str:
    template = _file("page.html")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    manifest = artifact.manifest
    return environment.from_string(template).render(
        name=artifact.path.name,
        source=", ".join(manifest["source"]),
        compiled=manifest["options"],
        context=artifact.context,
        size=show_bytes(sum(entry["bytes"] for entry in manifest["files"].values())),
        target=summary["target"],
        target_rows=_target_rows(summary["target"]),
        version=__version__,
        style=_file("style.css"),
        script="\n".join(_file(name) for name in SCRIPTS) + "\nstart();\n",
        summary=pack(summary),
        parts={name: pack(data) for name, data in parts.items()},
    )


def _target_rows(target: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields of a target for a reader."""
    hidden = {"name", "description"}
    return [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in target.items()
        if name not in hidden
    ]


def _file(name: str) -> str:
    return (files("speqc") / "html" / name).read_text("utf-8")


def pack(data: object) -> str:
    """JSON, compressed, in letters that HTML leaves alone; the same data give the same text."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")
