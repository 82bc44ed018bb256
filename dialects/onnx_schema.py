"""What the `onnx` dialect knows of each operator: how many inputs and outputs, which attributes.

Standard operators come from the registry of the `onnx` package; the operators that ONNX Runtime
adds (domain `com.microsoft`, and `SimplifiedLayerNormalization` in the default domain) from the
table below, written after ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

OLDEST_OPSET = 14
"""The oldest version of the default operator set whose operators the dialect holds."""

ATTRIBUTE_KINDS = frozenset({"int", "float", "string", "tensor", "ints", "floats", "strings"})
"""Kinds of attributes the dialect has; sparse tensors and types are left out."""

UNLIMITED = 2**31 - 1
"""`max_inputs` or `max_outputs` of an operator that takes any number."""


@dataclass(frozen=True)
class OperatorSchema:
    """Number and names of inputs and outputs, and the attributes, of one operator.

    `attributes` maps a name to its kind (`int`, `float`, `string`, `tensor`, `ints`, `floats`,
    `strings`); `required` holds the names that every version of the operator asks for.
    """

    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    optional_inputs: frozenset[int]
    attributes: dict[str, str]
    required: frozenset[str]

    @property
    def op_name(self) -> str:
        """The name of the operation in IR, like `onnx.MatMul` or `onnx.microsoft.FastGelu`."""
        return f"onnx.{qualified_name(self.domain, self.name)}"


def qualified_name(domain: str, operator: str) -> str:
    """`MatMul` for the default domain, `microsoft.FastGelu` for `com.microsoft`."""
    return operator if domain in ("", "ai.onnx") else f"{domain.rsplit('.', 1)[-1]}.{operator}"


def _contrib(
    name: str,
    inputs: str,
    outputs: str = "Y",
    attributes: str = "",
    domain: str = "com.microsoft",
) -> OperatorSchema:
    """A schema from three lists of words: `x?` is optional, `x:int!` a required attribute."""
    input_words, output_words = inputs.split(), outputs.split()
    attribute_words = [word.split(":") for word in attributes.split()]
    return OperatorSchema(
        name=name,
        domain=domain,
        inputs=tuple(word.rstrip("?") for word in input_words),
        outputs=tuple(word.rstrip("?") for word in output_words),
        min_inputs=_required_prefix(input_words),
        max_inputs=len(input_words),
        min_outputs=_required_prefix(output_words),
        max_outputs=len(output_words),
        optional_inputs=frozenset(i for i, word in enumerate(input_words) if word.endswith("?")),
        attributes={key: kind.rstrip("!") for key, kind in attribute_words},
        required=frozenset(key for key, kind in attribute_words if kind.endswith("!")),
    )


def _required_prefix(words: list[str]) -> int:
    """How many words there are up to the last one that is not optional."""
    return max((i + 1 for i, word in enumerate(words) if not word.endswith("?")), default=0)


CONTRIB_OPERATORS: tuple[OperatorSchema, ...] = (
    _contrib(
        "SimplifiedLayerNormalization",
        "X scale",
        "Y inv_std_var?",
        "axis:int epsilon:float stash_type:int",
        domain="",
    ),
    _contrib(
        "GroupQueryAttention",
        "query key? value? past_key? past_value? seqlens_k total_sequence_length cos_cache? "
        "sin_cache? position_ids? attention_bias? head_sink? k_scale? v_scale?",
        "output present_key? present_value? output_qk?",
        "num_heads:int! kv_num_heads:int! do_rotary:int rotary_interleaved:int scale:float "
        "softcap:float local_window_size:int smooth_softmax:int qk_output:int "
        "kv_cache_bit_width:int k_quant_type:string v_quant_type:string",
    ),
    _contrib(
        "MultiHeadAttention",
        "query key? value? bias? key_padding_mask? attention_bias? past_key? past_value? "
        "past_sequence_length? cache_indirection?",
        "output present_key? present_value? qk?",
        "num_heads:int! mask_filter_value:float scale:float unidirectional:int",
    ),
    _contrib(
        "RotaryEmbedding",
        "input position_ids cos_cache sin_cache",
        "output",
        "interleaved:int is_packed_batching:int num_heads:int rotary_embedding_dim:int scale:float",
    ),
    _contrib(
        "SkipSimplifiedLayerNormalization",
        "input skip gamma bias?",
        "output mean? inv_std_var? input_skip_bias_sum?",
        "epsilon:float",
    ),
    _contrib(
        "SkipLayerNormalization",
        "input skip gamma beta? bias?",
        "output mean? inv_std_var? input_skip_bias_sum?",
        "epsilon:float",
    ),
    _contrib("FastGelu", "X bias?"),
    _contrib("BiasGelu", "A B", "C"),
    _contrib(
        "FusedMatMul",
        "A B",
        "Y",
        "alpha:float transA:int transB:int transBatchA:int transBatchB:int",
    ),
)


@cache
def operator_schemas() -> dict[str, OperatorSchema]:
    """Every operator of the dialect, by its name in IR; standard ones without subgraphs."""
    standard = (_merge(versions) for versions in _standard_versions())
    return {schema.op_name: schema for schema in (*standard, *CONTRIB_OPERATORS)}


def _standard_versions() -> Iterator[list]:
    """For each standard operator the schemas that opsets from `OLDEST_OPSET` on select."""
    import onnx.defs

    by_name: dict[str, list] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            by_name.setdefault(schema.name, []).append(schema)
    for versions in by_name.values():
        versions.sort(key=lambda schema: schema.since_version)
        first = max(
            (s.since_version for s in versions if s.since_version <= OLDEST_OPSET), default=0
        )
        current = [s for s in versions if s.since_version >= first and not s.deprecated]
        if current and not any(_has_subgraph(schema) for schema in current):
            yield current


def _merge(versions: list) -> OperatorSchema:
    """One schema that admits every version: loosest counts, the union of the attributes."""
    newest = versions[-1]
    kinds = {
        key: attribute.type.name.lower()
        for schema in versions
        for key, attribute in schema.attributes.items()
        if attribute.type.name.lower() in ATTRIBUTE_KINDS
    }
    required = [
        {key for key, attribute in schema.attributes.items() if attribute.required}
        for schema in versions
    ]
    return OperatorSchema(
        name=newest.name,
        domain="",
        inputs=tuple(parameter.name for parameter in newest.inputs),
        outputs=tuple(parameter.name for parameter in newest.outputs),
        min_inputs=min(schema.min_input for schema in versions),
        max_inputs=max(schema.max_input for schema in versions),
        min_outputs=min(schema.min_output for schema in versions),
        max_outputs=max(schema.max_output for schema in versions),
        optional_inputs=_optional_positions(versions),
        attributes=kinds,
        required=frozenset(set.intersection(*required)),
    )


def _optional_positions(versions: Iterable) -> frozenset[int]:
    """Positions of inputs that some version lets a model leave empty."""
    return frozenset(
        position
        for schema in versions
        for position, parameter in enumerate(schema.inputs)
        if parameter.option.name == "Optional"
    )


def _has_subgraph(schema) -> bool:
    return any(a.type.name in ("GRAPH", "GRAPHS") for a in schema.attributes.values())
