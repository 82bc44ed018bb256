"""Parts of whole operators are read, refused, or known to change nothing."""

import pytest
from conftest import RunPasses
from test_attention_operators import GROUPED, ONNX, PACKED, attention_of, raise_attention

from speqc.dialects.onnx_schema import CONTRIB_OPERATORS, operator_schemas
from speqc.passes.operator_parts import PARTS
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import proved_positions


@pytest.mark.parametrize("name", PARTS)
def test_the_table_names_what_there_is(name: str) -> None:
    parts, schema = PARTS[name], operator_schemas()[name]
    assert set(parts.inputs.split()) <= set(schema.inputs)
    assert set(parts.outputs.split()) <= set(schema.outputs)
    assert {*parts.attributes.split(), *parts.idle} <= set(schema.attributes)
    assert not set(parts.attributes.split()) & set(parts.idle)


def test_the_table_has_every_contrib_operator() -> None:
    assert {schema.op_name for schema in CONTRIB_OPERATORS} <= set(PARTS)


def changed(form: tuple[str, str], attribute: str) -> tuple[str, str]:
    return form[0].replace("num_heads", f"{attribute}, num_heads", 1), form[1]


IDLE = (
    "qk_output = 1 : i64",
    "kv_cache_bit_width = 0 : i64",
    'k_quant_type = "NONE"',
    "smooth_softmax = 0 : i64",
)


@pytest.mark.parametrize("attribute", IDLE)
def test_idle_attributes(attribute: str, run_passes: RunPasses) -> None:
    attention_of(raise_attention(run_passes, *changed(GROUPED, attribute)))


REFUSED = {
    "the attribute kv_cache_bit_width = 8": changed(GROUPED, "kv_cache_bit_width = 8 : i64"),
    "the attribute k_quant_type = PER_TENSOR": changed(GROUPED, 'k_quant_type = "PER_TENSOR"'),
    "the attribute softmax_precision = 11": (
        ONNX[0].replace("is_causal", "softmax_precision = 11 : i64, is_causal"),
        ONNX[1],
    ),
    "the input k_scale": (
        GROUPED[0].replace("%total {", "%total, " + "%none, " * 5 + "%slopes {"),
        GROUPED[1] + ", none" * 5 + ", tensor<4x1x1xf32>",
    ),
    "the input attention_bias": (
        GROUPED[0].replace("%total {", "%total, " + "%none, " * 3 + "%alibi {"),
        GROUPED[1] + ", none" * 3 + ", tensor<4x1x?xf32>",
    ),
    "do_rotary without cos_cache and sin_cache": changed(GROUPED, "do_rotary = 1 : i64"),
    "64 channels can't be cut into 3 heads": (
        GROUPED[0].replace("{num_heads = 4", "{num_heads = 3"),
        GROUPED[1],
    ),
    "can't be cut into 0 heads": (
        GROUPED[0].replace("{num_heads = 4", "{num_heads = 0"),
        GROUPED[1],
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_parts_that_nothing_reads(message: str, run_passes: RunPasses) -> None:
    with pytest.raises(
        SpeqcError, match=f"'attention': {message}" if "0 heads" not in message else message
    ):
        raise_attention(run_passes, *REFUSED[message])


PLACED = (
    PACKED[0].replace("%cos, %sin", "%cos, %sin, %places"),
    PACKED[1] + ", tensor<1x?xi64>",
)
"""With positions of the new tokens, as its rotary embedding takes them."""

PLACES = """\
    %rows1 = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
    %rows0 = onnx.Squeeze %rows1 : (tensor<1xi64>) -> tensor<i64>
    %before = onnx.Sub %size, %rows0 : (tensor<i64>, tensor<i64>) -> tensor<i64>
    %counted = onnx.Range %before, %size, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    %first = onnx.Constant dense<0> : tensor<1xi64>
    %places = onnx.Unsqueeze %counted, %first : (tensor<?xi64>, tensor<1xi64>) -> tensor<1x?xi64>
"""  # noqa: E501 (lines of IR)


def placed(run_passes: RunPasses, places: str):
    from test_attention_operators import ATTENTION

    text = ATTENTION.replace("    %y, %present_key", f"{places}    %y, %present_key", 1)
    text = text.replace("OPERATION", PLACED[0]).replace("TYPES", PLACED[1])
    return run_passes(text, "raise-attention")


def test_position_ids_that_the_operator_would_use_itself(run_passes: RunPasses) -> None:
    module = placed(run_passes, PLACES)
    assert attention_of(module).window is None
    # Its tables of angles have 32 rows.
    assert proved_positions(module) == 32


@pytest.mark.parametrize("start", ["%one", "%rows0"])
def test_other_position_ids(start: str, run_passes: RunPasses) -> None:
    """Positions moved by one, and by as many as there are new tokens."""
    places = PLACES.replace("Range %before, %size", "Range %from, %to").replace(
        "    %counted",
        f"    %from = onnx.Add %before, {start} : (tensor<i64>, tensor<i64>) -> tensor<i64>\n"
        f"    %to = onnx.Add %size, {start} : (tensor<i64>, tensor<i64>) -> tensor<i64>\n"
        "    %counted",
    )
    with pytest.raises(SpeqcError, match="'attention': position_ids are not the positions of"):
        placed(run_passes, places)
