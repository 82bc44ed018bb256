// RUN: speqc opt %s -p 'recompute-prefix{reason="of a test"}' | filecheck %s
// RUN: sed 's/-6.550400e+04/-1.000000e+00/' %s | not speqc opt -p recompute-prefix 2>&1 | filecheck %s --check-prefix SEES
// RUN: sed 's/onnx.Concat %%past, %%k/onnx.Add %%past, %%k/; s/ {axis = 2 : i64}//' %s | not speqc opt -p recompute-prefix 2>&1 | filecheck %s --check-prefix CACHE

// A cache stays empty, and goes; softmax and product that see no later token become such that can't.

// SEES: onnx.Softmax 'soft': a token's row may depend on later tokens
// CACHE: onnx.Add 'join': it uses the cache 'past' otherwise than by appending to it

// CHECK: speq.history @tokens because "of a test"
// CHECK-NEXT: func.func @main(%tokens: tensor<1x?xi64> {{.*}}) -> tensor<1x?x6xf16> {
// CHECK-NOT: onnx.Concat
// CHECK: %weights = speq.causal_softmax %masked : tensor<1x2x?x?xf16>
// CHECK-NEXT: %squares = onnx.Mul %weights, %weights
// CHECK-NEXT: %sum = speq.causal_matmul %squares, %x_ : (tensor<1x2x?x?xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>
builtin.module attributes {onnx.opset = 20 : i64, onnx.kv_pairs = [array<i64: 1, 1>]} {
func.func @main(%tokens: tensor<1x?xi64> {onnx.name = "tokens", onnx.dims = ["1", "sequence"]}, %past: tensor<1x2x?x4xf16> {onnx.name = "past", onnx.dims = ["1", "2", "past", "4"]}) -> (tensor<1x?x6xf16>, tensor<1x2x?x4xf16>) {
  %table = onnx.initializer "table", "sha256:00" : tensor<6x8xf16>
  %head = onnx.initializer "head", "sha256:01" : tensor<8x6xf16>
  %batched = onnx.Constant dense<[1, -1, 2, 4]> : tensor<4xi64>
  %flat = onnx.Constant dense<[1, -1, 8]> : tensor<3xi64>
  %column = onnx.Constant dense<[-1, 1]> : tensor<2xi64>
  %seen = onnx.Constant dense<0.000000e+00> : tensor<f16>
  %hidden = onnx.Constant dense<-6.550400e+04> : tensor<f16>
  %positions = speq.positions %tokens : tensor<1x?xi64>
  %rows = onnx.Reshape %positions, %column : (tensor<1x?xi64>, tensor<2xi64>) -> tensor<?x1xi64>
  %earlier = onnx.LessOrEqual %positions, %rows : (tensor<1x?xi64>, tensor<?x1xi64>) -> tensor<?x?xi1>
  %mask = onnx.Where %earlier, %seen, %hidden : (tensor<?x?xi1>, tensor<f16>, tensor<f16>) -> tensor<?x?xf16>
  %x = onnx.Gather %table, %tokens {axis = 0 : i64} : (tensor<6x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
  %x4 = onnx.Reshape %x, %batched : (tensor<1x?x8xf16>, tensor<4xi64>) -> tensor<1x?x2x4xf16>
  %x_ = onnx.Transpose %x4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x2x4xf16>) -> tensor<1x2x?x4xf16>
  %k = onnx.Identity %x_ : (tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>
  %whole = onnx.Concat %past, %k {axis = 2 : i64} : (tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16> loc("join")
  %keys = onnx.Transpose %whole {perm = array<i64: 0, 1, 3, 2>} : (tensor<1x2x?x4xf16>) -> tensor<1x2x4x?xf16>
  %scores = onnx.MatMul %x_, %keys : (tensor<1x2x?x4xf16>, tensor<1x2x4x?xf16>) -> tensor<1x2x?x?xf16>
  %masked = onnx.Add %scores, %mask : (tensor<1x2x?x?xf16>, tensor<?x?xf16>) -> tensor<1x2x?x?xf16>
  %weights = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x2x?x?xf16>) -> tensor<1x2x?x?xf16> loc("soft")
  %squares = onnx.Mul %weights, %weights : (tensor<1x2x?x?xf16>, tensor<1x2x?x?xf16>) -> tensor<1x2x?x?xf16>
  %sum = onnx.MatMul %squares, %x_ : (tensor<1x2x?x?xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16> loc("sum")
  %back = onnx.Transpose %sum {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x2x?x4xf16>) -> tensor<1x?x2x4xf16>
  %joined = onnx.Reshape %back, %flat : (tensor<1x?x2x4xf16>, tensor<3xi64>) -> tensor<1x?x8xf16>
  %logits = onnx.MatMul %joined, %head : (tensor<1x?x8xf16>, tensor<8x6xf16>) -> tensor<1x?x6xf16>
  func.return %logits, %whole : tensor<1x?x6xf16>, tensor<1x2x?x4xf16>
}
}
