"""What a report says of a mixture of experts, and what a recorded run keeps of its choices."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speqc.dialects.speq import FULL
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.routing import Chosen, Router, from_text, to_text

RECORDED, ASSUMED = "recorded", "assumed independent and uniform"
"""Where the experts of a pass come from."""


def expert_fields(
    timer: ProgramTimer, prompt: Sequence[Call], passes: Sequence[Call], plain: Sequence[Call]
) -> dict[str, Any]:
    """The experts of a model, and which of them passes chose; empty for a model without.

    `prompt` and `passes` are those of the run, `plain` those of plain decoding after the prompt.
    Passes of which nothing is known have no entry.
    """
    routing = timer.routers(FULL)
    if not routing:
        return {}
    choice = RECORDED if all(call.chosen for call in (*prompt, *passes)) else ASSUMED
    if choice == RECORDED and not all(call.chosen for call in plain):
        choice = f"{RECORDED}; {ASSUMED} in plain decoding"
    fields: dict[str, Any] = {
        "routers": [{"experts": r.experts, "per_token": r.chosen} for r in routing],
        "choice": choice,
    }
    for name, calls in (("prompt", prompt), ("passes", passes), ("plain", plain)):
        if calls and all(call.chosen for call in calls):
            fields[name] = [to_text(call.chosen) for call in calls]
    return {"experts": fields}


def routers_text(routing: Iterable[Router]) -> str:
    """Experts and layers in words."""
    kinds = Counter(routing)
    return ", ".join(
        f"{chosen} of {experts} a token in "
        + ("each of " if layers > 1 else "")
        + counted(layers, "layer")
        for (experts, chosen), layers in kinds.items()
    )


def expert_text(fields: Mapping[str, Any]) -> str:
    """The line of a report on a mixture of experts."""
    routing = [Router(entry["experts"], entry["per_token"]) for entry in fields["routers"]]
    return f"{routers_text(routing)}, {fields['choice']}"


def with_choices(calls: Sequence[Call], texts: Sequence[str], timer: ProgramTimer) -> list[Call]:
    """Passes with the experts that a recording names; without where it names none for so many.

    Raises SpeqcError where it names experts that the program does not have.
    """
    if len(texts) != len(calls):
        return list(calls)
    return [
        call._replace(chosen=chosen)
        for call, chosen in zip(calls, choices(texts, timer), strict=True)
    ]


def choices(texts: Sequence[str], timer: ProgramTimer) -> list[Chosen]:
    """The experts that a recording names; raises SpeqcError where a program has no such."""
    count = sum(router.experts for router in timer.routers(FULL))
    try:
        return [from_text(text, count) for text in texts]
    except ValueError as error:
        raise SpeqcError(f"the replayed run is of another model: {error}") from None
