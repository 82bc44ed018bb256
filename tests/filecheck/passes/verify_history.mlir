// RUN: speqc opt %s -p verify-speq | filecheck %s
// RUN: sed 's/speq.causal_softmax %%masked/onnx.Softmax %%masked/; s/ : tensor<1x2x?x?xf16> loc/ {axis = -1 : i64} : (tensor<1x2x?x?xf16>) -> tensor<1x2x?x?xf16> loc/' %s | not speqc opt -p verify-speq 2>&1 | filecheck %s --check-prefix LATER
// RUN: sed 's/^speq.history.*//' %s | not speqc opt -p verify-speq 2>&1 | filecheck %s --check-prefix NONE
// RUN: sed 's/^speq.history.*/&\nspeq.cache @kv0 {heads = 2 : i64, key_dim = 4 : i64, value_dim = 4 : i64, element_type = f16}/' %s | not speqc opt -p verify-speq 2>&1 | filecheck %s --check-prefix CACHE
// RUN: speqc opt %s -p 'form-draft-verify,verify-speq,lower-to-pe,schedule-loads,allocate-activations,verify-pe' | filecheck %s --check-prefix PE
// RUN: speqc opt %s -p 'form-draft-verify,lower-to-pe,schedule-loads,allocate-activations' | sed '/speq.history/d' | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix ALONE
// RUN: speqc opt %s -p 'form-draft-verify,lower-to-pe,schedule-loads,allocate-activations' | sed 's/"causal_matmul"(%%weights, %%x_)/"causal_matmul"(%%x_, %%weights)/; s/(tensor<1x2x?x?xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>/(tensor<1x2x?x4xf16>, tensor<1x2x?x?xf16>) -> tensor<1x2x?x4xf16>/' | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix TURNED

// With a history, a step runs over all tokens so far: pairs of them are legal, and what reads no later one.

// LATER: onnx.Softmax 'soft': a token's row may depend on later tokens
// NONE: onnx.LessOrEqual: result 0 has more than one dynamic size: tensor<?x?xi1>
// CACHE: speq.history: it must be the only state of a module, beside no cache
// ALONE: verify-pe: @full, pe.vector: gives elements for pairs of tokens, but there is no history
// TURNED: verify-pe: @full, pe.vector: "causal_matmul" takes pairs of tokens [..., ?, ?], rows [..., ?, N]

// CHECK: speq.history @tokens
// CHECK: speq.causal_matmul %weights, %x_

// PE: speq.history @tokens because "of a test"
// PE: %weights = pe.vector "causal_softmax"(%masked) : (tensor<1x2x?x?xf16>) -> tensor<1x2x?x?xf16>
// PE: %sum = pe.vector "causal_matmul"(%weights, %x_) {{.*}}sram_row_offset
// PE: speq.call @full(%prompt) : (tensor<1x?xi64>)
builtin.module attributes {onnx.opset = 20 : i64, speq.context = 128 : i64, pe.target = #pe.target<{name = "tiny", description = "four banks of 32 KiB", array_rows = 64 : i64, array_columns = 64 : i64, draft_lanes = 4 : i64, draft_mantissa_bits = 10 : i64, clock_hz = 500000000 : i64, dram_bytes_per_second = 51200000000 : i64, dram_burst_bytes = 64 : i64, dram_latency_ns = 100 : i64, weight_sram_bytes = 131072 : i64, weight_sram_banks = 4 : i64, activation_sram_bytes = 4096 : i64, vector_lanes = 64 : i64, mode_switch_cycles = 64 : i64, vector_latency_cycles = 8 : i64, dram_energy_picojoules_per_bit = 1.875000e+01 : f64, sram_energy_picojoules_per_bit = 0.43 : f64, array_full_energy_picojoules_per_multiply_add = 2.0 : f64, array_draft_energy_picojoules_per_multiply_add = 2.0 : f64, vector_energy_picojoules_per_operation = 4.6 : f64}>} {
speq.weight @table from "t" : tensor<8x6xf16> {digest = "sha256:00"}
speq.weight @head from "h" : tensor<8x6xf16> {digest = "sha256:01"}
speq.history @tokens because "of a test"
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x6xf16> {
  %batched = onnx.Constant dense<[1, -1, 2, 4]> : tensor<4xi64>
  %flat = onnx.Constant dense<[1, -1, 8]> : tensor<3xi64>
  %column = onnx.Constant dense<[-1, 1]> : tensor<2xi64>
  %seen = onnx.Constant dense<0.000000e+00> : tensor<f16>
  %hidden = onnx.Constant dense<-6.550400e+04> : tensor<f16>
  %positions = speq.positions %tokens : tensor<1x?xi64>
  %rows = onnx.Reshape %positions, %column : (tensor<1x?xi64>, tensor<2xi64>) -> tensor<?x1xi64>
  %earlier = onnx.LessOrEqual %positions, %rows : (tensor<1x?xi64>, tensor<?x1xi64>) -> tensor<?x?xi1>
  %mask = onnx.Where %earlier, %seen, %hidden : (tensor<?x?xi1>, tensor<f16>, tensor<f16>) -> tensor<?x?xf16>
  %x = speq.embedding @table[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x8xf16>
  %x4 = onnx.Reshape %x, %batched : (tensor<1x?x8xf16>, tensor<4xi64>) -> tensor<1x?x2x4xf16>
  %x_ = onnx.Transpose %x4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x2x4xf16>) -> tensor<1x2x?x4xf16>
  %keys = onnx.Transpose %x_ {perm = array<i64: 0, 1, 3, 2>} : (tensor<1x2x?x4xf16>) -> tensor<1x2x4x?xf16>
  %scores = onnx.MatMul %x_, %keys : (tensor<1x2x?x4xf16>, tensor<1x2x4x?xf16>) -> tensor<1x2x?x?xf16>
  %masked = onnx.Add %scores, %mask : (tensor<1x2x?x?xf16>, tensor<?x?xf16>) -> tensor<1x2x?x?xf16>
  %weights = speq.causal_softmax %masked : tensor<1x2x?x?xf16> loc("soft")
  %sum = speq.causal_matmul %weights, %x_ : (tensor<1x2x?x?xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>
  %back = onnx.Transpose %sum {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x2x?x4xf16>) -> tensor<1x?x2x4xf16>
  %joined = onnx.Reshape %back, %flat : (tensor<1x?x2x4xf16>, tensor<3xi64>) -> tensor<1x?x8xf16>
  %view = speq.view @head : !speq.view<8x6, full>
  %logits = speq.matmul %joined, %view : (tensor<1x?x8xf16>, !speq.view<8x6, full>) -> tensor<1x?x6xf16>
  func.return %logits : tensor<1x?x6xf16>
}
}
