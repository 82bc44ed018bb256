"""Which inputs, attributes and outputs of whole operators the passes read.

ONNX Runtime's operators, and ONNX's own that a pass takes apart, have parts that change what they
compute. A part that no pass reads is an error, unless its value is known to change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdsl.dialects.builtin import NoneType
from xdsl.ir import Attribute

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import fail
from speqc.runtime.ir_values import python_value


@dataclass(frozen=True)
class Parts:
    """Names of what is read, or refused where it is read, of one operator.

    `idle` are attributes that are not read, with the values that change nothing; without values,
    all. `outputs` are those that may be used.
    """

    inputs: str
    attributes: str = ""
    outputs: str = ""
    idle: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


ATTENTION_OUTPUTS = "output present_key present_value"

PARTS: Mapping[str, Parts] = {
    "onnx.Attention": Parts(
        "Q K V attn_mask past_key past_value nonpad_kv_seqlen",
        "is_causal q_num_heads kv_num_heads scale softcap",
        "Y present_key present_value",
        # The softmax is computed in FP32, which is at least as precise as these.
        {"qk_matmul_output_mode": (), "softmax_precision": (1, 10)},
    ),
    "onnx.RMSNormalization": Parts("X scale", "axis epsilon", "Y", {"stash_type": (1,)}),
    "onnx.RotaryEmbedding": Parts(
        "X cos_cache sin_cache position_ids", "interleaved num_heads rotary_embedding_dim", "Y"
    ),
    "onnx.SimplifiedLayerNormalization": Parts(
        "X scale", "axis epsilon", "Y inv_std_var", {"stash_type": (1,)}
    ),
    "onnx.microsoft.GroupQueryAttention": Parts(
        "query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache "
        "position_ids head_sink",
        "num_heads kv_num_heads do_rotary rotary_interleaved scale softcap local_window_size "
        "smooth_softmax",
        ATTENTION_OUTPUTS,
        {
            "qk_output": (),
            "kv_cache_bit_width": (0,),
            "k_quant_type": ("NONE",),
            "v_quant_type": ("NONE",),
        },
    ),
    "onnx.microsoft.MultiHeadAttention": Parts(
        "query key value attention_bias past_key past_value",
        "num_heads scale unidirectional mask_filter_value",
        ATTENTION_OUTPUTS,
    ),
    "onnx.microsoft.RotaryEmbedding": Parts(
        "input position_ids cos_cache sin_cache",
        "interleaved num_heads rotary_embedding_dim",
        "output",
        {"is_packed_batching": (0,), "scale": (1.0,)},
    ),
    "onnx.microsoft.SkipLayerNormalization": Parts(
        "input skip gamma beta bias", "epsilon", "output input_skip_bias_sum"
    ),
    "onnx.microsoft.SkipSimplifiedLayerNormalization": Parts(
        "input skip gamma bias", "epsilon", "output input_skip_bias_sum"
    ),
    "onnx.microsoft.BiasGelu": Parts("A B", "", "C"),
    "onnx.microsoft.FastGelu": Parts("X bias", "", "Y"),
    "onnx.microsoft.FusedMatMul": Parts("A B", "alpha transA transB transBatchA transBatchB", "Y"),
}
"""What is read of each operator. A contrib operator that is not in here is an error."""

CONTRIB = "onnx.microsoft."


def check_parts(op: OnnxOp) -> None:
    """Raise SpeqcError that names `op` where it has a part that nothing reads."""
    parts = PARTS.get(op.name)
    if parts is None:
        if op.name.startswith(CONTRIB):
            raise fail(op, "no pass knows this operator")
        return
    schema = op.schema()
    for name, operand in zip(schema.inputs, op.operands, strict=False):
        if name not in parts.inputs.split() and not isinstance(operand.type, NoneType):
            raise fail(op, f"the input {name} is not supported")
    for name, value in op.properties.items():
        if name not in parts.attributes.split() and not _is_idle(parts, name, value):
            raise fail(op, f"the attribute {name} = {python_value(value)} is not supported")
    for name, result in zip(schema.outputs, op.results, strict=False):
        if name not in parts.outputs.split() and result.uses:
            raise fail(op, f"the output {name} is not supported")


def _is_idle(parts: Parts, name: str, value: Attribute) -> bool:
    idle = parts.idle.get(name)
    return idle is not None and (not idle or python_value(value) in idle)
