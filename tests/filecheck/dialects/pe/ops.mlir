// RUN: speqc opt %s | filecheck %s
// RUN: speqc opt %s | speqc opt | filecheck %s
// RUN: speqc opt %s --print-op-generic | speqc opt | filecheck %s

// CHECK: builtin.module attributes {pe.target = #pe.target<{name = "tiny", array_rows = 64 : i64}>} {
builtin.module attributes {pe.target = #pe.target<{name = "tiny", array_rows = 64 : i64}>} {
  speq.weight @head from "head.weight" : tensor<64x272xf16> {digest = "sha256:00"}
  speq.cache @kv_0 {heads = 2 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}
  func.func @full(%tokens: tensor<1x?xi64>, %query: tensor<1x4x?x16xf16>, %key: tensor<1x2x?x16xf16>) -> tensor<1x?x272xf16> {
    // CHECK: pe.mode full
    pe.mode full
    // CHECK-NEXT: %x = pe.gather @head[%tokens] {sram_row_offset = 0 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %x = pe.gather @head[%tokens] {sram_row_offset = 0 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    // CHECK-NEXT: %positions = pe.positions %tokens : tensor<1x?xi64>
    %positions = pe.positions %tokens : tensor<1x?xi64>
    // CHECK-NEXT: %cos = pe.lookup "cos"[%positions] {digest = "sha256:02", sram_row_offset = 128 : i64} : (tensor<2048x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
    %cos = pe.lookup "cos"[%positions] {digest = "sha256:02", sram_row_offset = 128 : i64} : (tensor<2048x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
    // CHECK-NEXT: %one = pe.immediate dense<1.000000e+00> : tensor<1xf16>
    %one = pe.immediate dense<1.0> : tensor<1xf16>
    // CHECK-NEXT: %scale = pe.load_constant "norm.weight" {digest = "sha256:01"} : !pe.stream<tensor<64xf16>>
    %scale = pe.load_constant "norm.weight" {digest = "sha256:01"} : !pe.stream<tensor<64xf16>>
    // CHECK-NEXT: %normed = pe.vector "rms_norm"(%x, %scale) {arguments = {epsilon = 1.000000e-05 : f32}} : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
    %normed = pe.vector "rms_norm"(%x, %scale) {arguments = {epsilon = 1.000000e-05 : f32}} : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
    // CHECK-NEXT: %sum = pe.vector "Add"(%normed, %one) : (tensor<1x?x64xf16>, tensor<1xf16>) -> tensor<1x?x64xf16>
    %sum = pe.vector "Add"(%normed, %one) : (tensor<1x?x64xf16>, tensor<1xf16>) -> tensor<1x?x64xf16>
    // CHECK-NEXT: %head = pe.load_weight @head {tiling = #pe.tiling<64x64, grid 1x5, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x272, full>>
    %head = pe.load_weight @head {tiling = #pe.tiling<64x64, grid 1x5, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x272, full>>
    // CHECK-NEXT: %logits = pe.gemm %sum, %head : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, full>>) -> tensor<1x?x272xf16>
    %logits = pe.gemm %sum, %head : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, full>>) -> tensor<1x?x272xf16>
    // CHECK-NEXT: %few = pe.vector "Cast"(%one) {arguments = {to = 9 : i64}} : (tensor<1xf16>) -> tensor<1x?x1xi1>
    %few = pe.vector "Cast"(%one) {arguments = {to = 9 : i64}} : (tensor<1xf16>) -> tensor<1x?x1xi1>
    // CHECK-NEXT: %again = pe.load_weight @head when %few : tensor<1x?x1xi1> {tiling = #pe.tiling<64x64, grid 1x5, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x272, full>>
    %again = pe.load_weight @head when %few : tensor<1x?x1xi1> {tiling = #pe.tiling<64x64, grid 1x5, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x272, full>>
    // CHECK-NEXT: %some = pe.gemm %sum, %again when %few : tensor<1x?x1xi1> {sram_row_offset = 128 : i64} : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, full>>) -> tensor<1x?x272xf16>
    %some = pe.gemm %sum, %again when %few : tensor<1x?x1xi1> {sram_row_offset = 128 : i64} : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, full>>) -> tensor<1x?x272xf16>
    // CHECK-NEXT: %neg = pe.vector "Neg"(%some) when %few : tensor<1x?x1xi1> : (tensor<1x?x272xf16>) -> tensor<1x?x272xf16>
    %neg = pe.vector "Neg"(%some) when %few : tensor<1x?x1xi1> : (tensor<1x?x272xf16>) -> tensor<1x?x272xf16>
    // CHECK-NEXT: %keys = pe.load_cache @kv_0 keys : !pe.stream<tensor<2x?x16xf16>>
    %keys = pe.load_cache @kv_0 keys : !pe.stream<tensor<2x?x16xf16>>
    // CHECK-NEXT: %values = pe.load_cache @kv_0 values : !pe.stream<tensor<2x?x16xf16>>
    %values = pe.load_cache @kv_0 values : !pe.stream<tensor<2x?x16xf16>>
    // CHECK-NEXT: %mixed = pe.attention @kv_0, %query, %key, %key, %keys, %values on array {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x4x?x16xf16>
    %mixed = pe.attention @kv_0, %query, %key, %key, %keys, %values on array {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x4x?x16xf16>
    // CHECK-NEXT: %biased = pe.attention @kv_0, %query, %key, %key, %keys, %values on array {score_type = f16, probability_type = f16, score_scale = 2.500000e-01 : f16, position_bias = #speq.position_bias<start, array<f32: 5.000000e-01, 2.500000e-01, 1.000000e-01, 0.707106769>, f32, f16, f16>, scale_behind_bias, sinks = array<f32: 1.000000e+00, 2.000000e+00, 3.000000e+00, 4.000000e+00>, shifted_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x4x?x16xf16>
    %biased = pe.attention @kv_0, %query, %key, %key, %keys, %values on array {score_type = f16, probability_type = f16, score_scale = 2.500000e-01 : f16, position_bias = #speq.position_bias<start, array<f32: 5.000000e-01, 2.500000e-01, 1.000000e-01, 0.707106769>, f32, f16, f16>, scale_behind_bias, sinks = array<f32: 1.000000e+00, 2.000000e+00, 3.000000e+00, 4.000000e+00>, shifted_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x4x?x16xf16>
    // CHECK-NEXT: pe.append @kv_0, %key, %key : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
    pe.append @kv_0, %key, %key : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>)
    func.return %logits : tensor<1x?x272xf16>
  }
}
