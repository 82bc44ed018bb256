"""`speqc inspect`: what is in a model file or an artifact, with proof that no weight lost a bit."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path

import click
import numpy as np
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.dialects.func import FuncOp

from speqc.artifact import VIEW_CHOICE, WEIGHTS, Artifact, load_artifact
from speqc.calibration_report import calibration_lines
from speqc.diagnostics import progress, recompute_note
from speqc.dialects.onnx import ConstantOp, InitializerOp
from speqc.dialects.pe import LookupOp, StreamType
from speqc.dialects.speq import FULL, View, WeightOp
from speqc.draft_bits import draft_bits_per_weight, draft_views
from speqc.dump_ir import print_module
from speqc.expert_report import routers_text
from speqc.onnx_import import import_model
from speqc.report import (
    Fields,
    check_json_destination,
    show_bytes,
    write_json,
)
from speqc.runtime.codebook import CODEBOOKS, fit, load_codebook
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import recompute_reason
from speqc.runtime.routing import Router, routers
from speqc.runtime.tensor_references import constants as program_constants
from speqc.runtime.weights import WeightFile
from speqc.tables import print_table
from speqc.view_report import CURVE_COLUMNS, curve_rows, view_choice_lines
from speqc.weight_facts import WeightFacts, weight_facts

BARS = "▁▂▃▄▅▆▇█"
WEIGHT_COLUMNS = (
    "weight",
    "from",
    "K x N",
    "bytes",
    "exponents",
    "draft format",
    "group",
    "shift",
    "draft",
    "draft SNR",
    "exact",
)


def inspect(path: Path, *, program: bool, json_to: str | None) -> None:
    """Print what `path`, an ONNX file or an artifact, holds; with `program` the IR instead.

    Raises SpeqcError where it is neither, or damaged.
    """
    check_json_destination(json_to)
    if path.is_dir():
        artifact = load_artifact(path)
        if program:
            click.echo(print_module(artifact.program), nl=False)
            return
        fields = artifact_fields(artifact)
        show = _print_artifact
    else:
        if program:
            raise SpeqcError(
                f"{path}: only an artifact has a program listing: compile it, or --emit"
            )
        fields = model_fields(path)
        show = _print_model
    if json_to is not None:
        write_json(fields, json_to)
    if json_to != "-":
        show(fields)


def artifact_fields(artifact: Artifact) -> Fields:
    """The report on an artifact."""
    path = artifact.weights_file
    file = None if path is None else WeightFile(path)
    weights = [op for op in artifact.program.ops if isinstance(op, WeightOp)]
    facts: list[WeightFacts] = []
    with progress("decoding weights", len(weights)) as advance:
        for op in weights:
            facts.append(weight_facts(op, file))
            advance(1)
    manifest = artifact.manifest
    views = draft_views(artifact.program)
    return {
        "kind": "artifact",
        "source": manifest["source"],
        "options": manifest["options"],
        "target": manifest["target"],
        "context": artifact.context,
        "proved_positions": artifact.proved_positions,
        "recomputes_prefix": recompute_reason(artifact.program),
        "files": {name: entry["bytes"] for name, entry in manifest["files"].items()},
        "operations": {
            op.sym_name.data: dict(_kinds(op.body.block.ops))
            for op in artifact.program.ops
            if isinstance(op, FuncOp)
        },
        "experts": [
            router._asdict()
            for op in artifact.program.ops
            if isinstance(op, FuncOp) and op.sym_name.data == FULL
            for router in routers(op)
        ],
        "constants": _constants(artifact.program),
        "calibration": manifest.get("calibration"),
        "view_choice": manifest.get(VIEW_CHOICE),
        "draft_bits_per_weight": draft_bits_per_weight(artifact.program, views),
        "weights": [
            {**asdict(fact), "draft_view": _view_name(views.get(fact.name))} for fact in facts
        ],
    }


def _view_name(view: View | None) -> str | None:
    return None if view is None else str(view)


def _kinds(operations: Iterable) -> list[tuple[str, int]]:
    return Counter(op.name for op in operations).most_common()


def _constants(program: ModuleOp) -> Fields:
    sizes: dict[str, int] = {}
    for op in program_constants(program):
        type = op.type if isinstance(op, LookupOp) else op.stream.type
        content = type.content if isinstance(type, StreamType) else type
        assert isinstance(content, TensorType)
        sizes[op.source.data] = prod(content.get_shape())
    return {"tensors": len(sizes), "values": sum(sizes.values())}


def model_fields(path: Path) -> Fields:
    """The report on an ONNX file: its operators after simplification, and its tensors."""
    imported = import_model(path, allow_fp32_to_fp16=True)
    function = next(op for op in imported.module.ops if isinstance(op, FuncOp))
    operators = [
        op for op in function.body.block.ops if not isinstance(op, ConstantOp | InitializerOp)
    ]
    return {
        "kind": "model",
        "notes": imported.notes,
        "operations": {"main": dict(_kinds(operators))},
        "weights": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype),
                "bytes": prod(tensor.shape) * tensor.dtype.itemsize,
                "exponents": None if tensor.exponents is None else list(tensor.exponents),
                "codebooks": _fits(tensor.exponents, tensor.zeros),
            }
            for tensor in imported.tensors.values()
        ],
    }


def _fits(exponents: tuple[int, ...] | None, zeros: int | None) -> dict[str, str] | None:
    """For each code book whether it holds a tensor: "yes", with which shift, or why not."""
    if exponents is None or zeros is None:
        return None
    answers = {}
    for name in CODEBOOKS:
        found = fit(load_codebook(name), np.array(exponents), zeros)
        shift = f" (2^-{found.shift})" if found.shift else ""
        answers[name] = f"yes{shift}" if found.ok else f"no: {found.reason}"
    return answers


def sparkline(exponents: list[int]) -> str:
    """A histogram as its range and a bar for each exponent in it, on a logarithmic scale."""
    used = [field for field, count in enumerate(exponents) if count]
    if not used:
        return ""
    counts = np.array(exponents[used[0] : used[-1] + 1])
    heights = np.log2(counts + 1) / np.log2(counts.max() + 1) * (len(BARS) - 1)
    bars = "".join(
        BARS[round(height)] if count else " " for height, count in zip(heights, counts, strict=True)
    )
    return f"{used[0]}..{used[-1]} {bars}"


def _print_operations(fields: Fields) -> None:
    for function, kinds in fields["operations"].items():
        print_table(
            (f"operations of @{function}", "count"), [(k, str(c)) for k, c in kinds.items()]
        )
        click.echo()


def _print_artifact(fields: Fields) -> None:
    options = ", ".join(f"{name} {value}" for name, value in fields["options"].items())
    click.echo(f"compiled from {', '.join(fields['source'])} ({options})")
    context, proved = f"context {fields['context']}", fields["proved_positions"]
    proof = "" if proved is None else f", proved up to {proved:,} positions"
    click.echo(f"for {fields['target']['name']}, {context}{proof}")
    if fields["recomputes_prefix"] is not None:
        click.echo(recompute_note(fields["recomputes_prefix"]))
    for name, size in fields["files"].items():
        click.echo(f"{name}: {show_bytes(size)}")
    if WEIGHTS not in fields["files"]:
        click.echo("no weights: compiled with --no-weights, to simulate but not to run")
    click.echo()
    _print_operations(fields)
    print_table(WEIGHT_COLUMNS, [_weight_row(fact) for fact in fields["weights"]])
    if fields["draft_bits_per_weight"] is not None:
        click.echo(
            f"a draft step reads {fields['draft_bits_per_weight']:.3g} bits of each weight on "
            "average, scales included"
        )
    for fact in fields["weights"]:
        if fact["kept"]:
            click.echo(f"{fact['name']} is kept as FP16: {fact['kept']}")
    if fields["experts"]:
        routing = [Router(**entry) for entry in fields["experts"]]
        click.echo(f"mixture of experts: {routers_text(routing)}")
    for line in calibration_lines(fields["calibration"]):
        click.echo(line)
    _print_view_choice(fields["view_choice"])
    constants = fields["constants"]
    click.echo(
        f"as they are: {counted(constants['tensors'], 'constant')} "
        f"({counted(constants['values'], 'value')})"
    )


def _print_view_choice(facts: Fields | None) -> None:
    if facts is not None:
        click.echo()
        print_table(CURVE_COLUMNS, curve_rows(facts))
    for line in view_choice_lines(facts):
        click.echo(line)


def _weight_row(fact: Mapping) -> tuple[str, ...]:
    k, n = fact["shape"]
    snr = fact["draft_snr_db"]
    return (
        fact["name"],
        fact["source"],
        f"{k} x {n}",
        show_bytes(fact["bytes"]),
        sparkline(fact["exponents"]) if fact["exponents"] else "",
        _form(fact),
        str(fact["group_size"] or ""),
        "" if fact["shift"] is None else str(fact["shift"]),
        fact["draft_view"] or "",
        "" if snr is None else f"{snr:.2f} dB",
        {True: "yes", False: "NO", None: ""}[fact["exact"]],
    )


def _form(fact: Mapping) -> str:
    """How a weight is stored for drafts: its code book, or the format of its copy."""
    if fact["codebook"] is not None:
        return " ".join(filter(None, (fact["codebook"], fact["levels"])))
    return "fp16" if fact["draft_format"] is None else f"{fact['draft_format']} copy"


def _print_model(fields: Fields) -> None:
    for text in fields["notes"]:
        click.echo(text)
    _print_operations(fields)
    columns = ("tensor", "shape", "type", "bytes", "exponents", *CODEBOOKS)
    print_table(columns, [_tensor_row(tensor) for tensor in fields["weights"]])


def _tensor_row(tensor: Mapping) -> tuple[str, ...]:
    books = tensor["codebooks"] or {}
    return (
        tensor["name"],
        " x ".join(map(str, tensor["shape"])),
        tensor["dtype"],
        show_bytes(tensor["bytes"]),
        sparkline(tensor["exponents"]) if tensor["exponents"] else "",
        *(books.get(name, "") for name in CODEBOOKS),
    )
