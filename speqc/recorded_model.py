"""Which model a recorded run is of: what a recording says of it, and whether an artifact is that.

Rounds depend on the weights and on how the draft was made of them, never on the target: a run may
be timed on any target, and on an artifact compiled anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speqc.diagnostics import note
from speqc.runtime.errors import SpeqcError

DRAFT_OPTIONS = (
    "draft_format",
    "codebook",
    "levels",
    "group_size",
    "draft_views",
    "calibration",
    "calibration_tokens",
)
"""Options of a compilation that the draft's numbers depend on."""

FIELD = "model"
"""The field of a run's report."""


def model_fields(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a recording says of an artifact: digests of the model's files, and the draft's scheme.

    `manifest` is the artifact's.
    """
    options = manifest["options"]
    return {
        "source": dict(manifest["source"]),
        "draft": {name: options[name] for name in DRAFT_OPTIONS if name in options},
    }


def check_recorded(
    run: Path, recorded: object, artifact: Path, manifest: Mapping[str, Any]
) -> None:
    """Raise SpeqcError where the recording at `run` is of another model than an artifact.

    `recorded` is what `model_fields` said when the run was recorded, or None. Another draft of the
    same model, or a recording that does not say, is worth a note.
    """
    if recorded is None:
        note(f"{run} does not say which model it is of (recorded by an earlier speqc)")
        return
    source, draft = _parts(run, recorded)
    own = model_fields(manifest)
    # Files of external data may be missing where shapes alone were compiled: one shared file tells.
    if source and not set(source.values()) & set(own["source"].values()):
        raise SpeqcError(
            f"{run}: was recorded with another model, {_names(source)}, than {artifact} was "
            f"compiled from, {_names(own['source'])}: give a recording of this model"
        )
    differing = [name for name in DRAFT_OPTIONS if draft.get(name) != own["draft"].get(name)]
    if differing:
        pairs = (f"{name} {draft.get(name)}, not {own['draft'].get(name)}" for name in differing)
        note(
            f"{run}: was recorded with another draft ({'; '.join(pairs)}): its rounds are not "
            f"those that {artifact} would take"
        )


def _parts(run: Path, recorded: object) -> tuple[dict[str, Any], dict[str, Any]]:
    match recorded:
        case {"source": dict(source), "draft": dict(draft)}:
            return source, draft
    raise SpeqcError(f"{run}: not a report of 'speqc run --json': field {FIELD!r} is damaged")


def _names(source: Mapping[str, Any]) -> str:
    return ", ".join(sorted(f"{name} ({str(digest)[:15]}..)" for name, digest in source.items()))
