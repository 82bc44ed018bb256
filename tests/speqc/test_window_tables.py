"""Windows in a table of a mask, as older exporters keep one: found exactly up to its size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import decoder, save

from speqc.compile import CompileOptions, lower
from speqc.dialects.speq import AttentionOp
from speqc.model_folder import ModelFolder
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_context, proved_positions
from speqc.target_files import load_target

SIZE = 96
"""Rows of the table, between two lengths that are tried first."""

TARGET = load_target("speq-64x64")


def with_table(window: int, caches: bool) -> onnx.ModelProto:
    """A decoder that cuts its mask from a square table; positions behind the table do not exist."""
    model = decoder(caches=caches)
    distance = np.subtract.outer(np.arange(SIZE), np.arange(SIZE))
    table = (distance >= 0) & (distance < window)
    model.graph.initializer.append(numpy_helper.from_array(table, "band"))
    total, first = ("total", "past") if caches else ("length", "begin")
    if not caches:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "begin"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "origin"))
    nodes = [
        helper.make_node("Concat", [first, "origin"], ["starts"], name="starts", axis=0),
        helper.make_node("Concat", [total, total], ["ends"], name="ends", axis=0),
        helper.make_node("Slice", ["band", "starts", "ends"], ["allowed"], name="cut"),
    ]
    place = next(i for i, node in enumerate(model.graph.node) if "allowed" in node.output)
    del model.graph.node[place]
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    return model


def raised(model: onnx.ModelProto, folder: Path, context: int | None = None):
    options = CompileOptions(TARGET, context=context, weights=False)
    return lower(save(model, folder), options, ModelFolder(), "speq")


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("window", [1, 2, 33, 63, 64, 65, 94, 95])
def test_the_window_of_a_table(window: int, caches: bool, tmp_path: Path) -> None:
    module = raised(with_table(window, caches), tmp_path).module
    windows = {
        op.window.value.data for op in module.walk() if isinstance(op, AttentionOp) and op.window
    }
    assert windows == {window}
    assert proved_positions(module) == SIZE


@pytest.mark.parametrize("caches", [True, False])
def test_a_window_as_long_as_its_table_is_none(caches: bool, tmp_path: Path) -> None:
    imported = raised(with_table(SIZE, caches), tmp_path)
    attentions = [op for op in imported.module.walk() if isinstance(op, AttentionOp)]
    assert attentions and all(op.window is None for op in attentions)
    assert module_context(imported.module) == SIZE
    assert any("the context of 2,048 is cut to 96 positions" in note for note in imported.notes)


def test_a_context_beyond_the_table_is_refused(tmp_path: Path) -> None:
    model = with_table(5, True)
    assert module_context(raised(model, tmp_path, SIZE).module) == SIZE
    with pytest.raises(SpeqcError, match="a context of 97 is more than 96 positions, up to which"):
        raised(model, tmp_path, SIZE + 1)
