"""Older forms of operators brought to the newest: attributes that became inputs.

Covers opset 7 (where arithmetic got today's broadcasting) and later.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from speqc.runtime.vector_op import Array

Inputs = list[Array | None]
Attributes = dict[str, Any]
Upgrade = Callable[[Inputs, Attributes], None]


def _moving(*names: str) -> Upgrade:
    """Return an upgrade that appends integer attributes `names` to the inputs, None if absent."""

    def upgrade(inputs: Inputs, attributes: Attributes) -> None:
        for name in names:
            value = attributes.pop(name, None)
            inputs.append(None if value is None else np.array(value, np.int64))

    return upgrade


def _limits_of_clip(inputs: Inputs, attributes: Attributes) -> None:
    x = inputs[0]
    assert x is not None
    for name in ("min", "max"):
        value = attributes.pop(name, None)
        inputs.append(None if value is None else np.array(value, x.dtype))


def _softmax_to_the_end(inputs: Inputs, attributes: Attributes) -> None:
    """Until opset 12, softmax ran over `axis` (by default 1) and all dimensions after it."""
    x = inputs[0]
    assert x is not None
    first = attributes.get("axis", 1) % x.ndim
    attributes["axis"] = tuple(range(first, x.ndim))


# Operator -> (first opset of the newest form, upgrade from the form before).
UPGRADES: Mapping[str, tuple[int, Upgrade]] = {
    "Clip": (11, _limits_of_clip),
    "LogSoftmax": (13, _softmax_to_the_end),
    "ReduceMax": (18, _moving("axes")),
    "ReduceMean": (18, _moving("axes")),
    "ReduceMin": (18, _moving("axes")),
    "ReduceProd": (18, _moving("axes")),
    "ReduceSum": (13, _moving("axes")),
    "Slice": (10, _moving("starts", "ends", "axes")),
    "Softmax": (13, _softmax_to_the_end),
    "Split": (13, _moving("split")),
    "Squeeze": (13, _moving("axes")),
    "TopK": (10, _moving("k")),
    "Unsqueeze": (13, _moving("axes")),
}
OLDEST_OPSET = 7
