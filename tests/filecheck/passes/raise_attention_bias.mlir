// RUN: speqc opt %s -p raise-attention | filecheck %s

// Slopes times key positions are added to the scores in f16, and both are scaled behind that. What
// the file adds is evaluated: slopes, origin and roundings are those that give the same bits.

// CHECK:           %y = speq.attention @kv0, %q, %new_key, %new_value {score_type = f16, probability_type = f16, score_scale = 5.000000e-01 : f16, position_bias = #speq.position_bias<start, array<f32: 5.000000e-01, 2.500000e-01, 1.000000e-01, 0.707106769>, f32, f16, f16>, scale_behind_bias} : (tensor<1x4x?x8xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>) -> tensor<1x4x?x8xf16>
// CHECK-NEXT:      speq.cache_append @kv0, %new_key, %new_value : (tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>)
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
    %scores = onnx.MatMul %q, %kt : (tensor<1x4x?x8xf16>, tensor<1x4x8x?xf16>) -> tensor<1x4x?x?xf16>
    %slopes = onnx.Constant dense<[[[0.5]], [[0.25]], [[0.1]], [[0.7071067812]]]> : tensor<4x1x1xf32>
    %positions = onnx.Cast %keys {to = 1 : i64} : (tensor<?xi64>) -> tensor<?xf32>
    %wide = onnx.Mul %slopes, %positions : (tensor<4x1x1xf32>, tensor<?xf32>) -> tensor<4x1x?xf32>
    %alibi = onnx.Cast %wide {to = 10 : i64} : (tensor<4x1x?xf32>) -> tensor<4x1x?xf16>
    %biased = onnx.Add %scores, %alibi : (tensor<1x4x?x?xf16>, tensor<4x1x?xf16>) -> tensor<1x4x?x?xf16>
    %scaled = onnx.Mul %biased, %factor : (tensor<1x4x?x?xf16>, tensor<f16>) -> tensor<1x4x?x?xf16>
    %bias = onnx.Where %seen, %nothing, %lowest : (tensor<?x?xi1>, tensor<f16>, tensor<f16>) -> tensor<?x?xf16>
    %masked = onnx.Add %scaled, %bias : (tensor<1x4x?x?xf16>, tensor<?x?xf16>) -> tensor<1x4x?x?xf16>
    %p = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xf16>
    %nan = onnx.IsNaN %p : (tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xi1>
    %clean = onnx.Where %nan, %nothing, %p : (tensor<1x4x?x?xi1>, tensor<f16>, tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xf16>
    %y = onnx.MatMul %clean, %v7 : (tensor<1x4x?x?xf16>, tensor<1x4x?x8xf16>) -> tensor<1x4x?x8xf16>
    func.return %y, %k, %v : tensor<1x4x?x8xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x8xf16>
  }
}
