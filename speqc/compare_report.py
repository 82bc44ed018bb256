"""What `speqc run --compare` prints, and its JSON."""

import math
from collections.abc import Iterator

import click

from speqc.compare import Difference, Verdict
from speqc.compare_model import Compared, Comparison
from speqc.report import Fields, print_table
from speqc.runtime.counted import counted
from speqc.runtime.errors import CheckFailed


def print_comparison(comparison: Comparison, *, verbose: bool) -> None:
    """Write to standard output: mismatching values with elements of each, then the summary.

    With `verbose`, a table of all values comes first.
    """
    if verbose:
        columns = ("node", "operator", "shape", "type", "result", "largest error", "relative")
        print_table(columns, [_row(entry) for entry in comparison.compared])
    for entry in comparison.mismatching:
        for line in _mismatch(entry):
            click.echo(line)
    for line in _summary(comparison):
        click.echo(line)


def fail_on_mismatch(comparison: Comparison) -> None:
    """Raise CheckFailed, naming the first divergent node, where a value differs."""
    if wrong := comparison.mismatching:
        first = wrong[0].counterpart
        raise CheckFailed(
            f"{len(wrong)} of {len(comparison.compared)} values differ from the original's; the "
            f"first divergent node is '{first.node}' ({first.op_type})"
        )


def comparison_fields(comparison: Comparison) -> Fields:
    """The JSON report. Numbers that are not finite are texts: "nan", "inf", "-inf"."""
    wrong = comparison.mismatching
    drift = comparison.drift
    return {
        "model": str(comparison.original),
        "prompt_tokens": comparison.tokens,
        **_counts(comparison),
        "not_compared": dict(comparison.without),
        "first_divergent": None if not wrong else _value_fields(wrong[0]),
        "values": [_value_fields(entry) for entry in comparison.compared],
        "logits": {
            "largest_error": _number(drift.largest_error),
            "largest_logit": _number(drift.largest_logit),
            "rows": drift.rows,
            "agreeing": drift.agreeing,
        },
    }


def _counts(comparison: Comparison) -> dict[str, int]:
    equal = sum(entry.verdict.equal for entry in comparison.compared)
    wrong = len(comparison.mismatching)
    return {
        "compared": len(comparison.compared),
        "equal": equal,
        "within_tolerance": len(comparison.compared) - equal - wrong,
        "mismatching": wrong,
    }


def _value_fields(entry: Compared) -> Fields:
    verdict = entry.verdict
    return {
        "node": entry.counterpart.node,
        "op_type": entry.counterpart.op_type,
        "value": entry.counterpart.value,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "result": _result(verdict),
        "differing": verdict.differing,
        "largest_error": _number(verdict.largest_error),
        "relative_error": _number(verdict.relative_error),
        "share_of_allowed": _number(verdict.share),
        "differences": [
            {
                "index": list(item.index),
                "ours": _number(item.ours),
                "original": _number(item.original),
            }
            for item in verdict.differences
        ],
    }


def _number(value: float | int | bool) -> float | int | bool | str:
    return value if math.isfinite(value) else str(value)


def _result(verdict: Verdict) -> str:
    if not verdict.matches:
        return "mismatch"
    return "equal" if verdict.equal else "within tolerance"


def _shape(entry: Compared) -> str:
    return "x".join(map(str, entry.shape)) or "scalar"


def _row(entry: Compared) -> tuple[str, ...]:
    verdict = entry.verdict
    return (
        entry.counterpart.node,
        entry.counterpart.op_type,
        _shape(entry),
        entry.dtype,
        _result(verdict),
        f"{verdict.largest_error:.3g}",
        f"{verdict.relative_error:.2%}",
    )


def _mismatch(entry: Compared) -> Iterator[str]:
    """A mismatching value: what it is, and elements of it."""
    counterpart, verdict = entry.counterpart, entry.verdict
    yield (
        f"mismatch: node '{counterpart.node}' ({counterpart.op_type}), value "
        f"'{counterpart.value}' {_shape(entry)} {entry.dtype}: {verdict.differing} of "
        f"{verdict.elements} elements differ, largest error {verdict.largest_error:.4g} "
        f"({verdict.relative_error:.2%} of the row's largest; {verdict.share:.3g} times what is "
        "allowed)"
    )
    for item in verdict.differences:
        yield f"  {list(item.index)}: {_shown(item)}"
    if (more := verdict.differing - len(verdict.differences)) > 0:
        yield f"  and {more} more, with smaller errors"


def _shown(item: Difference) -> str:
    if isinstance(item.ours, float):
        return f"{item.ours:.6g} instead of {item.original:.6g}"
    return f"{item.ours} instead of {item.original}"


def _summary(comparison: Comparison) -> Iterator[str]:
    counts, drift = _counts(comparison), comparison.drift
    yield (
        f"compared {counted(counts['compared'], 'value')} of {counted(comparison.tokens, 'token')} "
        f"with {comparison.original}, each computed from the original's own: {counts['equal']} "
        f"equal bit for bit, {counts['within_tolerance']} within tolerance, "
        f"{counts['mismatching']} mismatching"
    )
    matching = [entry for entry in comparison.compared if entry.verdict.matches]
    worst = max(matching, key=lambda entry: entry.verdict.share, default=None)
    if worst is not None and worst.verdict.share:
        yield (
            f"largest error within tolerance: node '{worst.counterpart.node}' "
            f"({worst.counterpart.op_type}), {worst.verdict.relative_error:.2%} of the row's "
            f"largest, {worst.verdict.share:.2f} times what is allowed"
        )
    for reason, count in comparison.without.items():
        yield f"not compared: {counted(count, 'value')} ({reason})"
    share = drift.largest_error / drift.largest_logit if drift.largest_logit else 0.0
    yield (
        f"logits of a free run: largest error {drift.largest_error:.4g}, {share:.2%} of the "
        f"largest logit; {drift.agreeing} of {drift.rows} rows have the same best token"
    )
    for entry in comparison.mismatching[:1]:
        yield f"first divergent node: '{entry.counterpart.node}' ({entry.counterpart.op_type})"
