"""What a user is told of draft views that were chosen by measurement."""

from collections.abc import Mapping
from typing import Any

from speqc.runtime.counted import counted

CURVE_COLUMNS = ("wider", "bits", "overlap", "accepted", "length", "speedup")


def view_choice_lines(facts: Mapping[str, Any] | None) -> list[str]:
    """Lines on the facts that a manifest has of a choice; none where there was none."""
    if facts is None:
        return []
    limit = facts["max_draft_bits"]
    goal = "the fastest" if limit is None else f"the nearest within {limit:g} bits of a weight"
    chosen = facts["chosen"]
    return [
        f"draft views, {goal}: {chosen['views'] or 'none wider than 4 bits'} "
        f"(measured at {counted(facts['positions'], 'position')} of {facts['text']})",
        f"  every weight in 4 bits: {_draft_text(facts['narrow'])}",
        f"  chosen: {_draft_text(chosen)}",
    ]


def _draft_text(draft: Mapping[str, Any]) -> str:
    return (
        f"{draft['draft_bits_per_weight']:.3g} bits, first token agrees {draft['agreement']:.3f}, "
        f"overlap {draft['overlap']:.3f}, about {draft['speedup']:.2f} times plain decoding "
        f"with {draft['draft_length']} drafted"
    )


def curve_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The trade-off as a table: each row adds a view to those of the rows above it."""
    return [
        (
            point["adds"] or "(all in 4 bits)",
            f"{point['draft_bits_per_weight']:.2f}",
            f"{point['overlap']:.3f}",
            f"{point['acceptance']:.3f}",
            str(point["draft_length"]),
            f"{point['speedup']:.3f}",
        )
        for point in facts["curve"]
    ]
