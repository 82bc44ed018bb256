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


def _ratio_of_dropout(inputs: Inputs, attributes: Attributes) -> None:
    attributes.pop("ratio", None)


def _padding(inputs: Inputs, attributes: Attributes) -> None:
    x = inputs[0]
    assert x is not None
    inputs.append(np.array(attributes.pop("pads"), np.int64))
    inputs.append(np.array(attributes.pop("value", 0.0), x.dtype))


def _parameters_of_channels(inputs: Inputs, attributes: Attributes) -> None:
    """Until opset 20, group normalisation had a scale and a bias for each group."""
    x, *parameters = inputs
    assert x is not None
    each = x.shape[1] // attributes["num_groups"]
    inputs[1:] = [None if one is None else one.repeat(each) for one in parameters]


def _softmax_to_the_end(inputs: Inputs, attributes: Attributes) -> None:
    """Until opset 12, softmax ran over `axis` (by default 1) and all dimensions after it."""
    x = inputs[0]
    assert x is not None
    first = attributes.get("axis", 1) % x.ndim
    attributes["axis"] = tuple(range(first, x.ndim))


# Operator -> (first opset of the newest form, upgrade from the form before).
UPGRADES: Mapping[str, tuple[int, Upgrade]] = {
    "Clip": (11, _limits_of_clip),
    "Dropout": (12, _ratio_of_dropout),
    "GroupNormalization": (21, _parameters_of_channels),
    "Hardmax": (13, _softmax_to_the_end),
    "LogSoftmax": (13, _softmax_to_the_end),
    "Pad": (11, _padding),
    "ReduceL1": (18, _moving("axes")),
    "ReduceL2": (18, _moving("axes")),
    "ReduceLogSum": (18, _moving("axes")),
    "ReduceLogSumExp": (18, _moving("axes")),
    "ReduceMax": (18, _moving("axes")),
    "ReduceMean": (18, _moving("axes")),
    "ReduceMin": (18, _moving("axes")),
    "ReduceProd": (18, _moving("axes")),
    "ReduceSum": (13, _moving("axes")),
    "ReduceSumSquare": (18, _moving("axes")),
    "Slice": (10, _moving("starts", "ends", "axes")),
    "Softmax": (13, _softmax_to_the_end),
    "Split": (13, _moving("split")),
    "Squeeze": (13, _moving("axes")),
    "TopK": (10, _moving("k")),
    "Unsqueeze": (13, _moving("axes")),
}
OLDEST_OPSET = 7
