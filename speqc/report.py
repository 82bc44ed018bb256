"""What a run or a simulation reports: fields of the JSON report, and tables for a reader.

Names are those that users of vLLM and llama.cpp know. `full_passes` counts passes of the full
model after the prompt's; `full_passes_per_token` relates them to the tokens after the first one,
which the prompt's pass gives. `simulated` covers the whole run, prompt included.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from speqc.diagnostics import progress
from speqc.dialects.speq import DRAFT, FULL
from speqc.expert_report import expert_fields, expert_text
from speqc.phase_report import component_shares, print_phases
from speqc.phases import Passes, passes_of, phase_fields, run_sums
from speqc.runtime.calls import Call
from speqc.runtime.decode import Round
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.routing import Chosen
from speqc.tables import print_table
from speqc.text_files import check_destination, write_text
from speqc.units import show_bytes, show_energy, show_time

Fields = dict[str, Any]
"""A JSON object."""


def prompt_calls(prompt_length: int, chunk: int) -> list[Call]:
    """The passes that a prompt takes, `chunk` tokens at a time."""
    starts = range(0, prompt_length, chunk)
    return [Call(FULL, min(chunk, prompt_length - start), start) for start in starts]


def token_calls(prompt_length: int, tokens: int, routes: Sequence[Chosen] = ()) -> list[Call]:
    """The passes of autoregressive decoding after the prompt, whose last row gives one token.

    `routes` has the experts that each of the tokens chooses, as far as that is known.
    """
    calls = [Call(FULL, 1, prompt_length + place) for place in range(tokens - 1)]
    known = [call._replace(chosen=chosen) for call, chosen in zip(calls, routes, strict=False)]
    return known + calls[len(known) :]


def round_calls(prompt_length: int, rounds: Iterable[Round]) -> list[Call]:
    """The passes of speculative decoding after the prompt."""
    calls: list[Call] = []
    past = prompt_length
    for entry in rounds:
        calls += [Call(DRAFT, 1, past + place) for place in range(entry.drafted)]
        calls.append(Call(FULL, 1 + entry.drafted, past))
        past += 1 + entry.accepted
    return calls


def acceptance_fields(rounds: Sequence[Round]) -> Fields:
    """How drafting went. A position counts in the rounds that drafted so far; empty without any."""
    if not rounds:
        return {}
    drafted = sum(entry.drafted for entry in rounds)
    accepted = sum(entry.accepted for entry in rounds)
    longest = max(entry.drafted for entry in rounds)
    return {
        "drafted": drafted,
        "accepted": accepted,
        "acceptance_rate": accepted / drafted if drafted else 0.0,
        "mean_acceptance_length": accepted / len(rounds) + 1,
        "acceptance_per_position": [_rate(rounds, place) for place in range(longest)],
        "early_exits": sum(entry.early_exit for entry in rounds),
        "rounds": [asdict(entry) for entry in rounds],
    }


def _rate(rounds: Sequence[Round], place: int) -> float:
    reached = [entry for entry in rounds if entry.drafted > place]
    return sum(entry.accepted > place for entry in reached) / len(reached)


def time_calls(timer: ProgramTimer, calls: Sequence[Call]) -> None:
    """Have the timer time passes, which it remembers, and show progress."""
    distinct = dict.fromkeys(calls)
    with progress("timing", len(distinct)) as advance:
        for call in distinct:
            timer.cost(*call)
            advance(1)


def timing_fields(
    timer: ProgramTimer,
    calls: Sequence[Call],
    prompt_length: int,
    tokens: int,
    *,
    verifies: bool = False,
) -> Fields:
    """Simulated cost of a run's passes, its prompt's included.

    `verifies` says that full passes after the prompt verify what was drafted.
    """
    return passes_fields(timer, passes_of(calls, prompt_length, verifies=verifies), tokens)


def passes_fields(timer: ProgramTimer, passes: Passes, tokens: int) -> Fields:
    """Simulated cost of passes by phase, which may be weighted."""
    phases = phase_fields(timer, passes)
    total = run_sums(phases.values())
    seconds = timer.target.seconds(total["cycles"])
    prompt = phases.get("prompt", {"cycles": 0})
    return {
        "cycles": total["cycles"],
        "seconds": seconds,
        "prompt_seconds": timer.target.seconds(prompt["cycles"]),
        "tokens_per_second": tokens / seconds,
        "dram_bytes": total["dram_bytes"],
        "energy_joules": total["energy_joules"],
        "energy_by_component": total["energy_by_component"],
        "by_phase": phases,
    }


def run_fields(
    timer: ProgramTimer,
    prompt_length: int,
    tokens: int,
    calls: Sequence[Call],
    rounds: Sequence[Round],
    routes: Sequence[Chosen] = (),
) -> Fields:
    """What the passes of a run say: acceptance, passes, and time beside plain decoding's.

    `routes` has the experts that the tokens after the prompt choose, as far as that is known.
    """
    prompt = [call for call in calls if call.past < prompt_length]
    full_passes = sum(call.function == FULL for call in calls) - len(prompt)
    plain = token_calls(prompt_length, tokens, routes)
    baseline = [*prompt, *plain]
    time_calls(timer, [*calls, *baseline])
    fields = {
        "prompt_tokens": prompt_length,
        "new_tokens": tokens,
        **acceptance_fields(rounds),
        "full_passes": full_passes,
        "full_passes_per_token": full_passes / (tokens - 1) if tokens > 1 else 0.0,
        **expert_fields(timer, calls[: len(prompt)], calls[len(prompt) :], plain),
        "target": timer.target.name,
        "simulated": timing_fields(timer, calls, prompt_length, tokens, verifies=bool(rounds)),
        "baseline": {"simulated": timing_fields(timer, baseline, prompt_length, tokens)},
    }
    return fields | speedup_fields(fields)


def speedup_fields(fields: Fields) -> Fields:
    """How many times faster than autoregressive decoding: the whole run, and after the prompt."""
    simulated, baseline = fields["simulated"], fields["baseline"]["simulated"]
    ours = simulated["seconds"] - simulated["prompt_seconds"]
    plain = baseline["seconds"] - baseline["prompt_seconds"]
    return {
        "speedup": baseline["seconds"] / simulated["seconds"],
        "decode_speedup": plain / ours if ours else 1.0,
    }


def write_json(fields: Mapping[str, Any], destination: str) -> None:
    """Write a report to a file, or to standard output where `destination` is "-".

    A file is written beside its name and renamed when complete.
    """
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    if destination == "-":
        click.echo(text)
    else:
        write_text(text + "\n", destination)


def check_json_destination(destination: str | None) -> None:
    """Raise SpeqcError where `write_json` could not write, before there is anything to write."""
    if destination != "-":
        check_destination(destination, "--json")


def report_rows(fields: Fields) -> list[tuple[str, str, str]]:
    """A report for a reader: label, value, and the same of autoregressive decoding or ""."""
    rows = []
    if "drafted" in fields:
        share = _share(fields["accepted"], fields["drafted"])
        rows = [
            ("acceptance rate", f"{fields['acceptance_rate']:.1%} ({share})", ""),
            ("mean acceptance length", f"{fields['mean_acceptance_length']:.2f}", "1.00"),
            ("full passes per token", f"{fields['full_passes_per_token']:.3f}", "1.000"),
        ]
        if "early_exits" in fields:
            rows.append(("early exits", str(fields["early_exits"]), ""))
    ours, plain = fields["simulated"], fields["baseline"]["simulated"]
    for label, key, show in (
        ("simulated time", "seconds", show_time),
        ("of which the prompt", "prompt_seconds", show_time),
        ("tokens per second", "tokens_per_second", "{:.2f}".format),
        ("DRAM traffic", "dram_bytes", show_bytes),
        ("energy", "energy_joules", show_energy),
    ):
        rows.append((label, show(ours[key]), show(plain[key])))
    rows.append(("of which", component_shares(ours), component_shares(plain)))
    rows.append(("speedup", f"{fields['speedup']:.2f}x", "1.00x"))
    rows.append(("speedup after the prompt", f"{fields['decode_speedup']:.2f}x", "1.00x"))
    if "experts" in fields:
        rows.append(("experts", expert_text(fields["experts"]), ""))
    if "wall_seconds" in fields:
        rows.append(("decoding on this computer", show_time(fields["wall_seconds"]), ""))
    return rows


def _share(accepted: float, drafted: float) -> str:
    """How many drafted tokens were accepted, or are expected to be."""
    if isinstance(accepted, int):
        return f"{accepted} of {drafted} drafted"
    return f"expected: {accepted:.1f} of {drafted:.1f} drafted"


def print_report(fields: Fields, mode: str, *, stderr: bool) -> None:
    """Show a report: a table on a terminal, else a line for each fact.

    Plain decoding stands alone, any other mode beside it.
    """
    rows = report_rows(fields)
    beside = mode != "autoregressive"
    if not beside:
        rows = [(label, value, "") for label, value, _ in rows if not label.startswith("speedup")]
    if (sys.stderr if stderr else sys.stdout).isatty():
        columns = (f"on {fields['target']}", mode, "autoregressive" if beside else "")
        print_table(columns, rows, stderr=stderr)
    else:
        _print_lines(fields, mode, rows, stderr=stderr)
    print_phases(fields, beside=beside, stderr=stderr)


def _print_lines(
    fields: Fields, mode: str, rows: Iterable[tuple[str, str, str]], *, stderr: bool
) -> None:
    beside = mode != "autoregressive"
    legend = " (autoregressive: in brackets)" if beside else ""
    click.echo(f"{mode} decoding on {fields['target']}{legend}", err=stderr)
    for label, value, plain in rows:
        click.echo(f"{label}: {value}" + (f" ({plain})" if plain else ""), err=stderr)
