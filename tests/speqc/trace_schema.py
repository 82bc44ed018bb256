"""What a trace file must look like, as a JSON schema.

Source: "Trace Event Format" by Nat Duca and Dan Sinclair, the format's specification, which
Perfetto's documentation names as the one it adheres to (https://perfetto.dev/docs/getting-started/
other-formats, "Chrome JSON format"). From it come the object form with `traceEvents`, the fields
common to all events, `dur` of complete events, `s` of instant events, numbers as values of
counters, and the arguments that metadata events need. It leaves more open than this schema does:
here an event has no field that the specification does not name, and no phase that we do not write.
"""

from typing import Any

COMMON: dict[str, Any] = {
    "name": {"type": "string", "minLength": 1},
    "ph": {"type": "string"},
    "ts": {"type": "number", "minimum": 0},
    "pid": {"type": "integer"},
    "tid": {"type": "integer"},
    "args": {"type": "object"},
}


def event(phase: str, more: dict[str, Any], *optional: str) -> dict[str, Any]:
    """The schema of one phase's events: the common fields, and more."""
    properties = COMMON | {"ph": {"const": phase}} | more
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties.keys() - set(optional)),
        "additionalProperties": False,
    }


def metadata(name: str, argument: str, kind: str) -> dict[str, Any]:
    """The schema of a metadata event, whose one argument the format prescribes."""
    arguments = {
        "type": "object",
        "properties": {argument: {"type": kind}},
        "required": [argument],
        "additionalProperties": False,
    }
    return event("M", {"name": {"const": name}, "args": arguments})


CATEGORY = {"cat": {"type": "string", "minLength": 1}}

EVENT = {
    "oneOf": [
        event("X", CATEGORY | {"dur": {"type": "number", "minimum": 0}}),
        event("i", CATEGORY | {"s": {"enum": ["g", "p", "t"]}}),
        event("C", {"args": {"type": "object", "additionalProperties": {"type": "number"}}}),
        metadata("process_name", "name", "string"),
        metadata("thread_name", "name", "string"),
        metadata("process_sort_index", "sort_index", "integer"),
        metadata("thread_sort_index", "sort_index", "integer"),
    ]
}

TRACE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "traceEvents": {"type": "array", "items": EVENT},
        "otherData": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["traceEvents"],
    "additionalProperties": False,
}
