// RUN: speqc opt %s | filecheck %s
// RUN: speqc opt %s | speqc opt | filecheck %s
// RUN: speqc opt %s --print-op-generic | speqc opt | filecheck %s

// CHECK: speq.weight @plain from "head.weight" : tensor<64x272xf16> {digest = "sha256:00", transposed}
speq.weight @plain from "head.weight" : tensor<64x272xf16> {digest = "sha256:00", transposed}
// CHECK-NEXT: speq.weight @split from "q.weight" : tensor<64x64xf16> {digest = "sha256:01", codebook = "sets", levels = "m2", group_size = 64 : i64, shift = 0 : i64}
speq.weight @split from "q.weight" : tensor<64x64xf16> {digest = "sha256:01", codebook = "sets", levels = "m2", group_size = 64 : i64, shift = 0 : i64}
// CHECK-NEXT: speq.weight @kept from "up.weight" : tensor<64x128xf16> {digest = "sha256:02", kept = "has an infinity"}
speq.weight @kept from "up.weight" : tensor<64x128xf16> {digest = "sha256:02", kept = "has an infinity"}
// CHECK-NEXT: speq.weight @narrow from "down.weight" : tensor<64x128xf16> {digest = "sha256:03", stored_bits = 8 : i64, group_size = 64 : i64}
speq.weight @narrow from "down.weight" : tensor<64x128xf16> {digest = "sha256:03", stored_bits = 8 : i64, group_size = 64 : i64}
// CHECK-NEXT: speq.weight @copied from "o.weight" : tensor<64x128xf16> {digest = "sha256:04", copy = "nvfp4", group_size = 16 : i64, shift = -9 : i64}
speq.weight @copied from "o.weight" : tensor<64x128xf16> {digest = "sha256:04", copy = "nvfp4", group_size = 16 : i64, shift = -9 : i64}
// CHECK-NEXT: speq.cache @kv_0 {heads = 2 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}
speq.cache @kv_0 {heads = 2 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}
// CHECK-NEXT: speq.history @fed because "onnx.Softmax 'n': no \22cache\22"
speq.history @fed because "onnx.Softmax 'n': no \22cache\22"

func.func @full(%tokens: tensor<1x?xi64>, %scale: tensor<64xf16>, %cos: tensor<1x1x?x16xf16>, %query: tensor<1x4x?x16xf16>, %key: tensor<1x2x?x16xf16>) -> tensor<1x?x272xf16> {
  // CHECK: %x = speq.embedding @plain[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %x = speq.embedding @plain[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  // CHECK-NEXT: %positions = speq.positions %tokens : tensor<1x?xi64>
  %positions = speq.positions %tokens : tensor<1x?xi64>
  // CHECK-NEXT: %normed = speq.rms_norm %x, %scale {epsilon = 1.000000e-05 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  %normed = speq.rms_norm %x, %scale {epsilon = 1.000000e-05 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  // CHECK-NEXT: %normed32 = speq.rms_norm %x, %scale {epsilon = 1.000000e-05 : f32, scale_in_f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  %normed32 = speq.rms_norm %x, %scale {epsilon = 1.000000e-05 : f32, scale_in_f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  // CHECK-NEXT: %draft = speq.view @split : !speq.view<64x64, draft>
  %draft = speq.view @split : !speq.view<64x64, draft>
  // CHECK-NEXT: %wide8 = speq.view @split : !speq.view<64x64, wide8>
  %wide8 = speq.view @split : !speq.view<64x64, wide8>
  // CHECK-NEXT: %wide12 = speq.view @split : !speq.view<64x64, wide12>
  %wide12 = speq.view @split : !speq.view<64x64, wide12>
  // CHECK-NEXT: %wider = speq.matmul %normed, %wide8 : (tensor<1x?x64xf16>, !speq.view<64x64, wide8>) -> tensor<1x?x64xf16>
  %wider = speq.matmul %normed, %wide8 : (tensor<1x?x64xf16>, !speq.view<64x64, wide8>) -> tensor<1x?x64xf16>
  // CHECK-NEXT: %few = "test.op"() : () -> tensor<1x?x1xi1>
  %few = "test.op"() : () -> tensor<1x?x1xi1>
  // CHECK-NEXT: %some = speq.matmul %normed, %draft when %few : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !speq.view<64x64, draft>) -> tensor<1x?x64xf16>
  %some = speq.matmul %normed, %draft when %few : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !speq.view<64x64, draft>) -> tensor<1x?x64xf16>
  // CHECK-NEXT: %product = speq.matmul %normed, %draft : (tensor<1x?x64xf16>, !speq.view<64x64, draft>) -> tensor<1x?x64xf16>
  %product = speq.matmul %normed, %draft : (tensor<1x?x64xf16>, !speq.view<64x64, draft>) -> tensor<1x?x64xf16>
  // CHECK-NEXT: %rotated = speq.rotary %query, %cos, %cos : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  %rotated = speq.rotary %query, %cos, %cos : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  // CHECK-NEXT: %paired = speq.rotary %query, %cos, %cos {interleaved} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  %paired = speq.rotary %query, %cos, %cos {interleaved} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  // CHECK-NEXT: %mixed = speq.attention @kv_0, %rotated, %key, %key {score_type = f16, probability_type = f16, window = 8 : i64} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>
  %mixed = speq.attention @kv_0, %rotated, %key, %key {score_type = f16, probability_type = f16, window = 8 : i64} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>
  // CHECK-NEXT: %biased = speq.attention @kv_0, %rotated, %key, %key {score_type = f16, probability_type = f16, score_divisor = 3.000000e+00 : f32, position_bias = #speq.position_bias<row, array<f32: 5.000000e-01, 2.500000e-01, 1.000000e-01, 0.707106769>, f32, f16, f32>, scale_behind_bias, softmax_type = f16, sinks = array<f32: 1.000000e+00, 2.000000e+00, 3.000000e+00, 4.000000e+00>, shifted_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>
  %biased = speq.attention @kv_0, %rotated, %key, %key {score_type = f16, probability_type = f16, score_divisor = 3.000000e+00 : f32, position_bias = #speq.position_bias<row, array<f32: 5.000000e-01, 2.500000e-01, 1.000000e-01, 0.707106769>, f32, f16, f32>, scale_behind_bias, softmax_type = f16, sinks = array<f32: 1.000000e+00, 2.000000e+00, 3.000000e+00, 4.000000e+00>, shifted_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>
  // CHECK-NEXT: speq.cache_append @kv_0, %key, %key : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
  speq.cache_append @kv_0, %key, %key : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
  // CHECK-NEXT: %pairs = "test.op"() : () -> tensor<4x?x?xf16>
  %pairs = "test.op"() : () -> tensor<4x?x?xf16>
  // CHECK-NEXT: %shares = speq.causal_softmax %pairs : tensor<4x?x?xf16>
  %shares = speq.causal_softmax %pairs : tensor<4x?x?xf16>
  // CHECK-NEXT: %sums = speq.causal_matmul %shares, %query : (tensor<4x?x?xf16>, tensor<1x4x?x16xf16>) -> tensor<1x4x?x16xf16>
  %sums = speq.causal_matmul %shares, %query : (tensor<4x?x?xf16>, tensor<1x4x?x16xf16>) -> tensor<1x4x?x16xf16>
  // CHECK-NEXT: %head = speq.view @plain : !speq.view<64x272, full>
  %head = speq.view @plain : !speq.view<64x272, full>
  %logits = speq.matmul %product, %head : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
  func.return %logits : tensor<1x?x272xf16>
}

// CHECK: speq.decode @speculative attributes {draft_length = 4 : i64, exit_threshold = 3.000000e-01 : f64} {
speq.decode @speculative attributes {draft_length = 4 : i64, exit_threshold = 3.000000e-01 : f64} {
// CHECK-NEXT: ^bb{{[0-9]+}}(%prompt: tensor<1x?xi64>):
^bb0(%prompt: tensor<1x?xi64>):
  // CHECK-NEXT: %logits = speq.call @full(%prompt) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
  %logits = speq.call @full(%prompt) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
  // CHECK-NEXT: %first, %p = speq.sample %logits : tensor<1x?x272xf16>
  %first, %p = speq.sample %logits : tensor<1x?x272xf16>
  // CHECK-NEXT: speq.emit %first : tensor<1x1xi64>
  speq.emit %first : tensor<1x1xi64>
  // CHECK-NEXT: speq.repeat(%first : tensor<1x1xi64>) {
  speq.repeat(%first : tensor<1x1xi64>) {
  ^bb0(%last: tensor<1x1xi64>):
    // CHECK: %drafted, %draft_logits = speq.draft(%last : tensor<1x1xi64>) {
    %drafted, %draft_logits = speq.draft(%last : tensor<1x1xi64>) {
    ^bb0(%token: tensor<1x1xi64>):
      %l = speq.call @full(%token) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>
      %t, %q = speq.sample %l : tensor<1x1x272xf16>
      // CHECK: speq.yield %t, %q, %l : tensor<1x1xi64>, f32, tensor<1x1x272xf16>
      speq.yield %t, %q, %l : tensor<1x1xi64>, f32, tensor<1x1x272xf16>
    // CHECK-NEXT: } : tensor<1x?x272xf16>
    } : tensor<1x?x272xf16>
    // CHECK-NEXT: %full_logits = speq.verify(%last, %drafted : tensor<1x1xi64>, tensor<1x?xi64>) {
    %full_logits = speq.verify(%last, %drafted : tensor<1x1xi64>, tensor<1x?xi64>) {
    ^bb0(%tokens: tensor<1x?xi64>):
      %l = speq.call @full(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
      speq.yield %l : tensor<1x?x272xf16>
    } : tensor<1x?x272xf16>
    // CHECK: %accepted, %next = speq.accept %drafted, %draft_logits, %full_logits : (tensor<1x?xi64>, tensor<1x?x272xf16>, tensor<1x?x272xf16>)
    %accepted, %next = speq.accept %drafted, %draft_logits, %full_logits : (tensor<1x?xi64>, tensor<1x?x272xf16>, tensor<1x?x272xf16>)
    // CHECK-NEXT: speq.truncate %accepted : tensor<1x?xi64>
    speq.truncate %accepted : tensor<1x?xi64>
    // CHECK-NEXT: speq.emit %accepted, %next : tensor<1x?xi64>, tensor<1x1xi64>
    speq.emit %accepted, %next : tensor<1x?xi64>, tensor<1x1xi64>
    // CHECK-NEXT: speq.yield %next : tensor<1x1xi64>
    speq.yield %next : tensor<1x1xi64>
  }
}
