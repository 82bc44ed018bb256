"""A small mixture of experts at the `speq` level: three experts, of which a token chooses two."""

from speqc.runtime.module_attributes import target_attribute
from speqc.runtime.target import Target

TO_PE = (
    "raise-experts",
    "form-draft-verify",
    "lower-to-pe",
    "predicate-vectors",
    "elide-mode-switches",
    "schedule-loads",
    "allocate-activations",
)
"""The pipeline from the dense form to a program, without its last check."""

EXPERTS, CHOSEN = 3, 2

ROW, WIDE = "tensor<1x?x64xf16>", "tensor<1x?x512xf16>"


def model(target: Target | None = None) -> str:
    """One layer of attention with one head, and two layers of experts 64 -> 512 -> 64."""
    weights = "".join(
        f"""
      speq.weight @up{layer}{n} from "u{layer}{n}" : tensor<64x512xf16>
        {{digest = "sha256:1{layer}{n}", codebook = "sets", group_size = 64 : i64}}
      speq.weight @down{layer}{n} from "d{layer}{n}" : tensor<512x64xf16>
        {{digest = "sha256:2{layer}{n}", codebook = "sets", group_size = 64 : i64}}"""
        for layer in range(2)
        for n in range(EXPERTS)
    )
    routers = "".join(
        f"""
      speq.weight @router{layer} from "r{layer}" : tensor<64x3xf16>
        {{digest = "sha256:3{layer}", kept = "small"}}"""
        for layer in range(2)
    )
    return f"""
    builtin.module attributes {{
      onnx.opset = 20 : i64, speq.context = 128 : i64,
      pe.target = {target_attribute(target or Target())}
    }} {{
      speq.weight @head from "head" : tensor<64x272xf16>
        {{digest = "sha256:00", codebook = "sets", group_size = 64 : i64}}
      {weights} {routers}
      speq.cache @kv
        {{heads = 1 : i64, key_dim = 64 : i64, value_dim = 64 : i64, element_type = f16}}
      func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {{
        %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> {ROW}
        %two = onnx.Constant dense<2> : tensor<1xi64>
        %last = onnx.Constant dense<-1> : tensor<1xi64>
        %axis = onnx.Constant dense<1> : tensor<1xi64>
        %h = onnx.Unsqueeze %x, %axis : ({ROW}, tensor<1xi64>) -> tensor<1x1x?x64xf16>
        %mixed = speq.attention @kv, %h, %h, %h {{score_type = f16, probability_type = f16}}
          : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>)
          -> tensor<1x1x?x64xf16>
        speq.cache_append @kv, %h, %h : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>)
        %x0 = onnx.Squeeze %mixed, %axis : (tensor<1x1x?x64xf16>, tensor<1xi64>) -> {ROW}
        {_layer(0, "%x0", "%x1")}
        {_layer(1, "%x1", "%x2")}
        %v = speq.view @head : !speq.view<64x272, full>
        %logits = speq.matmul %x2, %v : ({ROW}, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
        func.return %logits : tensor<1x?x272xf16>
      }}
    }}"""


def _layer(layer: int, x: str, out: str) -> str:
    """The experts of a layer, added up into x."""
    name = f"l{layer}"
    score, index, one = "tensor<1x?x2xf16>", "tensor<1x?x2xi64>", "tensor<1x?x1xf16>"
    lines = [
        f"%{name}v = speq.view @router{layer} : !speq.view<64x3, full>",
        f"%{name}s = speq.matmul {x}, %{name}v : ({ROW}, !speq.view<64x3, full>)"
        " -> tensor<1x?x3xf16>",
        f"%{name}b, %{name}i = onnx.TopK %{name}s, %two {{axis = -1 : i64}} : (tensor<1x?x3xf16>, "
        f"tensor<1xi64>) -> ({score}, {index})",
    ]
    total = x
    for n in range(EXPERTS):
        e, after = f"%{name}e{n}", out if n == EXPERTS - 1 else f"%{name}t{n}"
        lines += [
            f"{e}u = speq.view @up{layer}{n} : !speq.view<64x512, full>",
            f"{e}h = speq.matmul {x}, {e}u : ({ROW}, !speq.view<64x512, full>) -> {WIDE}",
            f"{e}g = onnx.Sigmoid {e}h : ({WIDE}) -> {WIDE}",
            f"{e}a = onnx.Mul {e}h, {e}g : ({WIDE}, {WIDE}) -> {WIDE}",
            f"{e}d = speq.view @down{layer}{n} : !speq.view<512x64, full>",
            f"{e}y = speq.matmul {e}a, {e}d : ({WIDE}, !speq.view<512x64, full>) -> {ROW}",
            f"{e}n = onnx.Constant dense<{n}> : tensor<i64>",
            f"{e}m = onnx.Equal %{name}i, {e}n : ({index}, tensor<i64>) -> tensor<1x?x2xi1>",
            f"{e}f = onnx.Cast {e}m {{to = 10 : i64}} : (tensor<1x?x2xi1>) -> {score}",
            f"{e}p = onnx.Mul %{name}b, {e}f : ({score}, {score}) -> {score}",
            f"{e}w = onnx.ReduceSum {e}p, %last {{keepdims = 1 : i64}} : ({score}, tensor<1xi64>)"
            f" -> {one}",
            f"{e}z = onnx.Mul {e}y, {e}w : ({ROW}, {one}) -> {ROW}",
            f"{after} = onnx.Add {total}, {e}z : ({ROW}, {ROW}) -> {ROW}",
        ]
        total = after
    return "\n        ".join(lines)
