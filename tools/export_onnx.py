"""Export a Llama-style causal language model of Transformers to FP16 ONNX with a KV cache.

`export_decoder` is the only public function. The file that it writes follows the usual
convention of decoder exports:

    inputs   input_ids [batch, sequence] int64
             attention_mask [batch, total_sequence] int64, 1 = attend
             position_ids [batch, sequence] int64
             past_key_values.N.key, past_key_values.N.value
                 [batch, kv_heads, past_sequence, head_dim] float16
    outputs  logits [batch, sequence, vocabulary] float16
             present.N.key, present.N.value
                 [batch, kv_heads, past_sequence + sequence, head_dim] float16

Needs the `export` extra (torch, transformers).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.configuration_llama import LlamaConfig

SINGLE_FILE_LIMIT = 64 * 2**20
"""Bytes of weights above which they go to `model.onnx.data` beside `model.onnx`."""


class _DecoderWithCache(torch.nn.Module):
    """The model with its KV cache as a flat list of tensors in and out: k0, v0, k1, v1, ..."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = output.past_key_values.layers
        return (output.logits, *(t for layer in layers for t in (layer.keys, layer.values)))


def _example_inputs(config: LlamaConfig) -> tuple:
    """Return arguments of distinct sizes (batch 2, 3 new tokens, 5 past ones) to trace with."""
    batch, sequence, past = 2, 3, 5
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    cache_shape = (batch, kv_heads, past, head_dim)
    caches = [
        torch.zeros(cache_shape, dtype=torch.float16) for _ in range(2 * config.num_hidden_layers)
    ]
    return (
        torch.zeros(batch, sequence, dtype=torch.int64),
        torch.ones(batch, past + sequence, dtype=torch.int64),
        torch.arange(past, past + sequence).repeat(batch, 1),
        caches,
    )


def _strip_metadata(model: ir.Model) -> None:
    """Drop the exporter's stack traces: nine tenths of the file, with paths of this machine."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def export_decoder(
    model: PreTrainedModel,
    config: LlamaConfig,
    out_dir: str | Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    generation: GenerationConfig | None = None,
) -> Path:
    """Write `model` as FP16 ONNX into the folder `out_dir` and return the path of `model.onnx`.

    The model is converted to FP16 in place. Weights above `SINGLE_FILE_LIMIT` bytes stand in
    `model.onnx.data`. With a tokenizer, `tokenizer.json` and `tokenizer_config.json` (with the
    chat template, if it has one) are written too; with a generation config,
    `generation_config.json`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    model = model.half().eval()
    caches = [
        f"past_key_values.{layer}.{kind}"
        for layer in range(config.num_hidden_layers)
        for kind in ("key", "value")
    ]
    with torch.no_grad():
        program = torch.onnx.export(
            _DecoderWithCache(model).eval(),
            _example_inputs(config),
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "attention_mask", "position_ids", *caches],
            output_names=["logits", *(c.replace("past_key_values", "present") for c in caches)],
            dynamic_shapes=(
                {0: "batch", 1: "sequence"},
                {0: "batch", 1: "total_sequence"},
                {0: "batch", 1: "sequence"},
                [{0: "batch", 2: "past_sequence"}] * len(caches),
            ),
        )
    assert program is not None
    _strip_metadata(program.model)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    path = out_dir / "model.onnx"
    program.save(str(path), external_data=weight_bytes > SINGLE_FILE_LIMIT)
    if tokenizer is not None:
        tokenizer.save_pretrained(out_dir, save_jinja_files=False)
    if generation is not None:
        generation.save_pretrained(out_dir)
    return path
