"""Whether a cache holds keys or values: by what reads it, by its name only where nothing does."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_models import HEAD_SIZE, KV_HEADS, decoder, save

from speqc.onnx_import import import_model
from speqc.onnx_state import find_kv_pairs
from speqc.runtime.errors import SpeqcError


def with_unread(*names: tuple[str, str]) -> onnx.ModelProto:
    """A decoder with caches besides its own that are appended to and that nothing reads."""
    model = decoder()
    for past, present in names:
        node = helper.make_node("Concat", [past, "heads_key_0"], [present], name=present, axis=2)
        model.graph.node.append(node)
        for values, name, length in (
            (model.graph.input, past, "past"),
            (model.graph.output, present, "past + sequence"),
        ):
            shape = ["batch", KV_HEADS, length, HEAD_SIZE]
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape))
    return model


def kinds(model: onnx.ModelProto) -> dict[str | None, str | None]:
    graph = ir.serde.deserialize_model(model)
    return {graph.graph.inputs[p.past_input].name: p.kind for p in find_kv_pairs(graph)}


@pytest.mark.parametrize("swapped", [False, True])
def test_readers_decide_against_names(swapped: bool) -> None:
    model = decoder()
    names = {"state_0": "past.value", "state_1": "past.key"} if swapped else {}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    first, second = names.get("state_0", "state_0"), names.get("state_1", "state_1")
    assert kinds(model) == {first: "key", second: "value"}


@pytest.mark.parametrize(
    ("past", "present", "kind"),
    [
        ("past_key_values.7.key", "present.7.key", "key"),
        ("past_key_values.7.value", "present.7.value", "value"),
        ("cache_k_3", "new_k_3", "key"),
        ("kv/v_3", "kv/new_3", "value"),
    ],
)
def test_names_decide_where_nothing_reads(past: str, present: str, kind: str) -> None:
    assert kinds(with_unread((past, present)))[past] == kind


@pytest.mark.parametrize("past", ["state_8", "past_key_values.8", "k_and_v"])
def test_where_nothing_decides_the_file_is_refused(past: str, tmp_path: Path) -> None:
    path = save(with_unread((past, f"{past}_new")), tmp_path)
    message = f"cache '{past}' holds keys or values, but neither a product"
    with pytest.raises(SpeqcError, match=message) as error:
        import_model(path)
    assert "\n" not in str(error.value)
