// RUN: speqc opt %s -p raise-attention | filecheck %s

// Grouped-query attention with keys scaled in f16, a causal mask with -inf, NaN replaced. The
// scale goes to the new rows; caches and mask leave the signature.

// CHECK:       builtin.module attributes {onnx.opset = 20 : i64, speq.proved_positions = 262144 : i64} {
// CHECK-NEXT:    speq.cache @kv0 {heads = 2 : i64, key_dim = 8 : i64, value_dim = 8 : i64, element_type = f16}
// CHECK-NEXT:    func.func @main(%input_ids: tensor<1x?xi64> {{.*}}, %q: tensor<1x4x?x8xf16> {{.*}}, %new_key: tensor<1x2x?x8xf16> {{.*}}, %new_value: tensor<1x2x?x8xf16> {{.*}}) -> tensor<1x4x?x8xf16> {
// CHECK-NEXT:      %[[FACTOR:.*]] = onnx.Constant dense<5.000000e-01> : tensor<f16>
// CHECK-NEXT:      %[[K:.*]] = onnx.Mul %new_key, %[[FACTOR]] : (tensor<1x2x?x8xf16>, tensor<f16>) -> tensor<1x2x?x8xf16>
// CHECK-NEXT:      %[[Y:.*]] = speq.attention @kv0, %q, %[[K]], %new_value {score_type = f16, probability_type = f16} : (tensor<1x4x?x8xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>) -> tensor<1x4x?x8xf16>
// CHECK-NEXT:      speq.cache_append @kv0, %[[K]], %new_value : (tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>)
// CHECK-NEXT:      func.return %[[Y]] : tensor<1x4x?x8xf16>
builtin.module attributes {onnx.opset = 20 : i64, onnx.kv_pairs = [array<i64: 2, 1>, array<i64: 3, 2>]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %attention_mask: tensor<1x?xi64> {onnx.name = "attention_mask", onnx.dims = ["1", "past + sequence"]}, %past_key: tensor<1x2x?x8xf16> {onnx.name = "past.key", onnx.dims = ["1", "2", "past", "8"]}, %past_value: tensor<1x2x?x8xf16> {onnx.name = "past.value", onnx.dims = ["1", "2", "past", "8"]}, %q: tensor<1x4x?x8xf16> {onnx.name = "q", onnx.dims = ["1", "4", "sequence", "8"]}, %new_key: tensor<1x2x?x8xf16> {onnx.name = "k", onnx.dims = ["1", "2", "sequence", "8"]}, %new_value: tensor<1x2x?x8xf16> {onnx.name = "v", onnx.dims = ["1", "2", "sequence", "8"]}) -> (tensor<1x4x?x8xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>) {
    %zero = onnx.Constant dense<0> : tensor<i64>
    %one = onnx.Constant dense<1> : tensor<i64>
    %axis1 = onnx.Constant dense<1> : tensor<1xi64>
    %axis2 = onnx.Constant dense<2> : tensor<1xi64>
    %group = onnx.Constant dense<[1, 2, 2, 1, 8]> : tensor<5xi64>
    %heads = onnx.Constant dense<[1, 4, -1, 8]> : tensor<4xi64>
    %factor = onnx.Constant dense<0.5> : tensor<f16>
    %nothing = onnx.Constant dense<0.0> : tensor<f16>
    %lowest = onnx.Constant dense<"0x00FC"> : tensor<f16>
    %k = onnx.Concat %past_key, %new_key {axis = 2 : i64} : (tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>) -> tensor<1x2x?x8xf16>
    %v = onnx.Concat %past_value, %new_value {axis = -2 : i64} : (tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>) -> tensor<1x2x?x8xf16>
    %rows1 = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
    %past1 = onnx.Shape %past_key {start = 2 : i64, end = 3 : i64} : (tensor<1x2x?x8xf16>) -> tensor<1xi64>
    %rows = onnx.Squeeze %rows1 : (tensor<1xi64>) -> tensor<i64>
    %past = onnx.Squeeze %past1 : (tensor<1xi64>) -> tensor<i64>
    %total = onnx.Add %rows, %past : (tensor<i64>, tensor<i64>) -> tensor<i64>
    %arange = onnx.Range %past, %total, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    %queries = onnx.Unsqueeze %arange, %axis1 : (tensor<?xi64>, tensor<1xi64>) -> tensor<?x1xi64>
    %keys = onnx.Range %zero, %total, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    %causal = onnx.LessOrEqual %keys, %queries : (tensor<?xi64>, tensor<?x1xi64>) -> tensor<?x?xi1>
    %present = onnx.Cast %attention_mask {to = 9 : i64} : (tensor<1x?xi64>) -> tensor<1x?xi1>
    %seen = onnx.And %causal, %present : (tensor<?x?xi1>, tensor<1x?xi1>) -> tensor<?x?xi1>
    %k5 = onnx.Unsqueeze %k, %axis2 : (tensor<1x2x?x8xf16>, tensor<1xi64>) -> tensor<1x2x1x?x8xf16>
    %k6 = onnx.Expand %k5, %group : (tensor<1x2x1x?x8xf16>, tensor<5xi64>) -> tensor<1x2x2x?x8xf16>
    %k7 = onnx.Reshape %k6, %heads : (tensor<1x2x2x?x8xf16>, tensor<4xi64>) -> tensor<1x4x?x8xf16>
    %v5 = onnx.Unsqueeze %v, %axis2 : (tensor<1x2x?x8xf16>, tensor<1xi64>) -> tensor<1x2x1x?x8xf16>
    %v6 = onnx.Expand %v5, %group : (tensor<1x2x1x?x8xf16>, tensor<5xi64>) -> tensor<1x2x2x?x8xf16>
    %v7 = onnx.Reshape %v6, %heads : (tensor<1x2x2x?x8xf16>, tensor<4xi64>) -> tensor<1x4x?x8xf16>
    %kt = onnx.Transpose %k7 {perm = array<i64: 0, 1, 3, 2>} : (tensor<1x4x?x8xf16>) -> tensor<1x4x8x?xf16>
    %ks = onnx.Mul %kt, %factor : (tensor<1x4x8x?xf16>, tensor<f16>) -> tensor<1x4x8x?xf16>
    %scores = onnx.MatMul %q, %ks : (tensor<1x4x?x8xf16>, tensor<1x4x8x?xf16>) -> tensor<1x4x?x?xf16>
    %bias = onnx.Where %seen, %nothing, %lowest : (tensor<?x?xi1>, tensor<f16>, tensor<f16>) -> tensor<?x?xf16>
    %masked = onnx.Add %scores, %bias : (tensor<1x4x?x?xf16>, tensor<?x?xf16>) -> tensor<1x4x?x?xf16>
    %p = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xf16>
    %nan = onnx.IsNaN %p : (tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xi1>
    %clean = onnx.Where %nan, %nothing, %p : (tensor<1x4x?x?xi1>, tensor<f16>, tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xf16>
    %y = onnx.MatMul %clean, %v7 : (tensor<1x4x?x?xf16>, tensor<1x4x?x8xf16>) -> tensor<1x4x?x8xf16>
    func.return %y, %k, %v : tensor<1x4x?x8xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>
  }
}
