// RUN: speqc opt %s -p verify-speq | filecheck %s

// Step operations, ONNX operators that the vector unit has, and nothing else.

// CHECK: func.func @full
speq.weight @table from "t" : tensor<8x272xf16> {digest = "sha256:0"}
speq.weight @head from "t" : tensor<8x272xf16> {digest = "sha256:0", transposed}
speq.cache @kv0 {heads = 2 : i64, key_dim = 4 : i64, value_dim = 4 : i64, element_type = f16}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
  %shape = onnx.Constant dense<[1, -1, 2, 4]> : tensor<4xi64>
  %flat = onnx.Constant dense<[1, -1, 8]> : tensor<3xi64>
  %x = speq.embedding @table[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x8xf16>
  %x4 = onnx.Reshape %x, %shape : (tensor<1x?x8xf16>, tensor<4xi64>) -> tensor<1x?x2x4xf16>
  %q = onnx.Transpose %x4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x2x4xf16>) -> tensor<1x2x?x4xf16>
  %a = speq.attention @kv0, %q, %q, %q {score_type = f16, probability_type = f16} : (tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>
  speq.cache_append @kv0, %q, %q : (tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>)
  %b = onnx.Transpose %a {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x2x?x4xf16>) -> tensor<1x?x2x4xf16>
  %c = onnx.Reshape %b, %flat : (tensor<1x?x2x4xf16>, tensor<3xi64>) -> tensor<1x?x8xf16>
  %w = speq.view @head : !speq.view<8x272, full>
  %l = speq.matmul %c, %w : (tensor<1x?x8xf16>, !speq.view<8x272, full>) -> tensor<1x?x272xf16>
  func.return %l : tensor<1x?x272xf16>
}
