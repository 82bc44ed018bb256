// RUN: speqc opt %s -p 'schedule-loads' | filecheck %s

// CHECK: speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
// CHECK-NEXT: speq.weight @up from "up" : tensor<64x512xf16> {digest = "sha256:01", codebook = "paper", group_size = 128 : i64}
// CHECK-NEXT: speq.weight @down from "down" : tensor<512x64xf16> {digest = "sha256:02", kept = "has an infinity"}
// CHECK-NEXT: speq.cache @kv_0 {heads = 1 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}
// CHECK-NEXT: func.func @draft(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
// CHECK-NEXT: %norm = pe.load_constant "norm" {digest = "sha256:03"} : !pe.stream<tensor<64xf16>>
// CHECK-NEXT: %keys = pe.load_cache @kv_0 keys : !pe.stream<tensor<1x?x16xf16>>
// CHECK-NEXT: %values = pe.load_cache @kv_0 values : !pe.stream<tensor<1x?x16xf16>>
// CHECK-NEXT: %up = pe.load_weight @up {tiling = #pe.tiling<256x64, grid 1x8, per_block 3>, block_bytes = 6528 : i64, last_block_bytes = 4352 : i64} : !pe.stream<!speq.view<64x512, draft>>
// CHECK-NEXT: %x = pe.gather @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %normed = pe.vector "rms_norm"(%x, %norm) {arguments = {epsilon = 1.000000e-05 : f32}} : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %shape = pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>
// CHECK-NEXT: %heads = pe.vector "Reshape"(%normed, %shape) : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
// CHECK-NEXT: %query = pe.vector "Transpose"(%heads) {arguments = {perm = array<i64: 0, 2, 1, 3>}} : (tensor<1x?x4x16xf16>) -> tensor<1x4x?x16xf16>
// CHECK-NEXT: %start = pe.immediate dense<0> : tensor<1xi64>
// CHECK-NEXT: %end = pe.immediate dense<1> : tensor<1xi64>
// CHECK-NEXT: %key = pe.vector "Slice"(%query, %start, %end, %end) : (tensor<1x4x?x16xf16>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x1x?x16xf16>
// CHECK-NEXT: %down = pe.load_weight @down {tiling = #pe.tiling<64x64, grid 8x1, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 32768 : i64} : !pe.stream<!speq.view<512x64, full>>
// CHECK-NEXT: %mixed = pe.attention @kv_0, %query, %key, %key, %keys, %values on vector {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>, !pe.stream<tensor<1x?x16xf16>>, !pe.stream<tensor<1x?x16xf16>>) -> tensor<1x4x?x16xf16>
// CHECK-NEXT: pe.mode draft
// CHECK-NEXT: %head = pe.load_weight @head {tiling = #pe.tiling<256x64, grid 1x5, per_block 3>, block_bytes = 6528 : i64, last_block_bytes = 4352 : i64} : !pe.stream<!speq.view<64x272, draft>>
// CHECK-NEXT: %h = pe.gemm %normed, %up : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x512, draft>>) -> tensor<1x?x512xf16>
// CHECK-NEXT: pe.append @kv_0, %key, %key : (tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>)
// CHECK-NEXT: pe.mode full
// CHECK-NEXT: %d = pe.gemm %h, %down : (tensor<1x?x512xf16>, !pe.stream<!speq.view<512x64, full>>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %r = pe.vector "Add"(%x, %d) : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT: pe.mode draft
// CHECK-NEXT: %logits = pe.gemm %r, %head : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, draft>>) -> tensor<1x?x272xf16>
// CHECK-NEXT: func.return %logits : tensor<1x?x272xf16>
// CHECK-NEXT: }

builtin.module attributes {onnx.opset = 20 : i64, speq.context = 128 : i64, pe.target = #pe.target<{name = "tiny", description = "test", array_rows = 64 : i64, array_columns = 64 : i64, draft_lanes = 4 : i64, clock_hz = 500000000 : i64, dram_bytes_per_second = 51200000000 : i64, dram_burst_bytes = 64 : i64, dram_latency_ns = 100 : i64, weight_sram_bytes = 131072 : i64, weight_sram_banks = 4 : i64, activation_sram_bytes = 4096 : i64, vector_lanes = 64 : i64, mode_switch_cycles = 64 : i64, vector_latency_cycles = 8 : i64, dram_energy_picojoules_per_bit = 1.875000e+01 : f64}>} {
  speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
  speq.weight @up from "up" : tensor<64x512xf16> {digest = "sha256:01", codebook = "paper", group_size = 128 : i64}
  speq.weight @down from "down" : tensor<512x64xf16> {digest = "sha256:02", kept = "has an infinity"}
  speq.cache @kv_0 {heads = 1 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}
  func.func @draft(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
    %x = pe.gather @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %norm = pe.load_constant "norm" {digest = "sha256:03"} : !pe.stream<tensor<64xf16>>
    %normed = pe.vector "rms_norm"(%x, %norm) {arguments = {epsilon = 1.000000e-05 : f32}} : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
    %shape = pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>
    %heads = pe.vector "Reshape"(%normed, %shape) : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
    %query = pe.vector "Transpose"(%heads) {arguments = {perm = array<i64: 0, 2, 1, 3>}} : (tensor<1x?x4x16xf16>) -> tensor<1x4x?x16xf16>
    %start = pe.immediate dense<0> : tensor<1xi64>
    %end = pe.immediate dense<1> : tensor<1xi64>
    %key = pe.vector "Slice"(%query, %start, %end, %end) : (tensor<1x4x?x16xf16>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x1x?x16xf16>
    %keys = pe.load_cache @kv_0 keys : !pe.stream<tensor<1x?x16xf16>>
    %values = pe.load_cache @kv_0 values : !pe.stream<tensor<1x?x16xf16>>
    %mixed = pe.attention @kv_0, %query, %key, %key, %keys, %values on vector {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>, !pe.stream<tensor<1x?x16xf16>>, !pe.stream<tensor<1x?x16xf16>>) -> tensor<1x4x?x16xf16>
    pe.append @kv_0, %key, %key : (tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>)
    %up = pe.load_weight @up {tiling = #pe.tiling<256x64, grid 1x8, per_block 3>, block_bytes = 6528 : i64, last_block_bytes = 4352 : i64} : !pe.stream<!speq.view<64x512, draft>>
    pe.mode draft
    %h = pe.gemm %normed, %up : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x512, draft>>) -> tensor<1x?x512xf16>
    %down = pe.load_weight @down {tiling = #pe.tiling<64x64, grid 8x1, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 32768 : i64} : !pe.stream<!speq.view<512x64, full>>
    pe.mode full
    %d = pe.gemm %h, %down : (tensor<1x?x512xf16>, !pe.stream<!speq.view<512x64, full>>) -> tensor<1x?x64xf16>
    %r = pe.vector "Add"(%x, %d) : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
    %head = pe.load_weight @head {tiling = #pe.tiling<256x64, grid 1x5, per_block 3>, block_bytes = 6528 : i64, last_block_bytes = 4352 : i64} : !pe.stream<!speq.view<64x272, draft>>
    pe.mode draft
    %logits = pe.gemm %r, %head : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, draft>>) -> tensor<1x?x272xf16>
    func.return %logits : tensor<1x?x272xf16>
  }
}
