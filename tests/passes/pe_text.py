"""A small model at the `speq` level, and its way down to a program."""

from collections.abc import Callable

from xdsl.dialects.builtin import ModuleOp

from speqc.runtime.module_attributes import target_attribute
from speqc.runtime.target import Target

RunPasses = Callable[..., ModuleOp]

TO_PE = (
    "form-draft-verify",
    "lower-to-pe",
    "elide-mode-switches",
    "schedule-loads",
    "allocate-activations",
)
"""The pipeline from the `speq` level to a program, without its last check."""


def model(target: Target | None = None) -> str:
    """One layer: attention with two query heads to a cache head, and a product with a kept weight.

    64 channels, 272 tokens; the head, tied to the embedding, and @up are split, @down is not.
    """
    return f"""
    builtin.module attributes {{
      onnx.opset = 20 : i64, speq.context = 128 : i64,
      pe.target = {target_attribute(target or Target())}
    }} {{
      speq.weight @head from "head" : tensor<64x272xf16>
        {{digest = "sha256:00", codebook = "sets", group_size = 64 : i64}}
      speq.weight @up from "up" : tensor<64x512xf16>
        {{digest = "sha256:01", codebook = "paper", group_size = 128 : i64}}
      speq.weight @down from "down" : tensor<512x64xf16>
        {{digest = "sha256:02", kept = "it has Inf or NaN"}}
      speq.cache @kv
        {{heads = 2 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}}
      func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {{
        %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
        %weight = onnx.initializer "norm", "sha256:03" : tensor<64xf16>
        %normed = speq.rms_norm %x, %weight {{epsilon = 1.0e-05 : f32}}
          : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
        %four = onnx.Constant dense<[1, -1, 4, 16]> : tensor<4xi64>
        %heads = onnx.Reshape %normed, %four
          : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
        %query = onnx.Transpose %heads {{perm = array<i64: 0, 2, 1, 3>}}
          : (tensor<1x?x4x16xf16>) -> tensor<1x4x?x16xf16>
        %zero = onnx.Constant dense<0> : tensor<1xi64>
        %two = onnx.Constant dense<2> : tensor<1xi64>
        %axis = onnx.Constant dense<1> : tensor<1xi64>
        %key = onnx.Slice %query, %zero, %two, %axis
          : (tensor<1x4x?x16xf16>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>)
          -> tensor<1x2x?x16xf16>
        %mixed = speq.attention @kv, %query, %key, %key {{score_type = f16, probability_type = f16}}
          : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
          -> tensor<1x4x?x16xf16>
        speq.cache_append @kv, %key, %key : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
        %back = onnx.Transpose %mixed {{perm = array<i64: 0, 2, 1, 3>}}
          : (tensor<1x4x?x16xf16>) -> tensor<1x?x4x16xf16>
        %three = onnx.Constant dense<[1, -1, 64]> : tensor<3xi64>
        %flat = onnx.Reshape %back, %three
          : (tensor<1x?x4x16xf16>, tensor<3xi64>) -> tensor<1x?x64xf16>
        %v0 = speq.view @up : !speq.view<64x512, full>
        %h = speq.matmul %flat, %v0
          : (tensor<1x?x64xf16>, !speq.view<64x512, full>) -> tensor<1x?x512xf16>
        %v1 = speq.view @down : !speq.view<512x64, full>
        %d = speq.matmul %h, %v1
          : (tensor<1x?x512xf16>, !speq.view<512x64, full>) -> tensor<1x?x64xf16>
        %r = onnx.Add %x, %d : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
        %v2 = speq.view @head : !speq.view<64x272, full>
        %logits = speq.matmul %r, %v2
          : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
        func.return %logits : tensor<1x?x272xf16>
      }}
    }}"""
