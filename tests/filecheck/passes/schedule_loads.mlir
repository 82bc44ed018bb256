// RUN: speqc opt %s -p schedule-loads | filecheck %s
// RUN: sed 's/%%x, %%b_w/%%x, %%a_w/' %s | not speqc opt -p schedule-loads 2>&1 | filecheck %s --check-prefix CONSUMERS

// CONSUMERS: error: schedule-loads: pe.load_weight: a stream has one consumer, this one has 2

#target = #pe.target<{name = "tiny", description = "four banks of 32 KiB", array_rows = 64 : i64, array_columns = 64 : i64, draft_lanes = 4 : i64, draft_mantissa_bits = 10 : i64, clock_hz = 500000000 : i64, dram_bytes_per_second = 51200000000 : i64, dram_burst_bytes = 64 : i64, dram_latency_ns = 100 : i64, weight_sram_bytes = 131072 : i64, weight_sram_banks = 4 : i64, activation_sram_bytes = 4096 : i64, vector_lanes = 64 : i64, mode_switch_cycles = 64 : i64, vector_latency_cycles = 8 : i64, dram_energy_picojoules_per_bit = 18.75 : f64, sram_energy_picojoules_per_bit = 0.43 : f64, array_full_energy_picojoules_per_multiply_add = 2.0 : f64, array_draft_energy_picojoules_per_multiply_add = 2.0 : f64, vector_energy_picojoules_per_operation = 4.6 : f64}>

builtin.module attributes {onnx.opset = 20 : i64, speq.context = 128 : i64, pe.target = #target} {

  // Each weight takes two of the four banks. @a and @b are fetched at once; the first block of @c
  // finds a bank when @a is consumed, that of @d when @b is.

  // CHECK-LABEL: func.func @ring
  // CHECK-NEXT:    %a_w = pe.load_weight @a
  // CHECK-NEXT:    %b_w = pe.load_weight @b
  // CHECK-NEXT:    pe.mode full
  // CHECK-NEXT:    %c_w = pe.load_weight @c
  // CHECK-NEXT:    %a = pe.gemm %x, %a_w
  // CHECK-NEXT:    %d_w = pe.load_weight @d
  // CHECK-NEXT:    %b = pe.gemm %x, %b_w
  // CHECK-NEXT:    %c = pe.gemm %x, %c_w
  // CHECK-NEXT:    %d = pe.gemm %x, %d_w
  // CHECK-NEXT:    func.return
  func.func @ring(%x: tensor<1x?x64xf16>) {
    pe.mode full
    %a_w = pe.load_weight @a {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %a = pe.gemm %x, %a_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    %b_w = pe.load_weight @b {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %b = pe.gemm %x, %b_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    %c_w = pe.load_weight @c {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %c = pe.gemm %x, %c_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    %d_w = pe.load_weight @d {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %d = pe.gemm %x, %d_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    func.return
  }

  // A load with a predicate waits until that is known, and those behind it wait too. It may bring
  // nothing, so that it counts no bank: @c is fetched as early as without it.

  // CHECK-LABEL: func.func @chosen
  // CHECK-NEXT:    %a_w = pe.load_weight @a
  // CHECK-NEXT:    pe.mode full
  // CHECK-NEXT:    %known = pe.vector "Cast"
  // CHECK-NEXT:    %b_w = pe.load_weight @b when %known
  // CHECK-NEXT:    %c_w = pe.load_weight @c
  // CHECK-NEXT:    %a = pe.gemm %x, %a_w
  // CHECK-NEXT:    %b = pe.gemm %x, %b_w when %known
  // CHECK-NEXT:    %c = pe.gemm %x, %c_w
  // CHECK-NEXT:    func.return
  func.func @chosen(%x: tensor<1x?x64xf16>, %y: tensor<1x?x1xf16>) {
    pe.mode full
    %known = pe.vector "Cast"(%y) {arguments = {to = 9 : i64}} : (tensor<1x?x1xf16>) -> tensor<1x?x1xi1>
    %a_w = pe.load_weight @a {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %a = pe.gemm %x, %a_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    %b_w = pe.load_weight @b when %known : tensor<1x?x1xi1> {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %b = pe.gemm %x, %b_w when %known : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    %c_w = pe.load_weight @c {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %c = pe.gemm %x, %c_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    func.return
  }

  // Constants take one bank, and so does a cache, whose length is not known: all three are fetched
  // at the beginning, the weight's first block into the fourth bank.

  // CHECK-LABEL: func.func @kinds
  // CHECK-NEXT:    %norm = pe.load_constant "norm"
  // CHECK-NEXT:    %keys = pe.load_cache @kv keys
  // CHECK-NEXT:    %values = pe.load_cache @kv values
  // CHECK-NEXT:    %a_w = pe.load_weight @a
  // CHECK-NEXT:    %y = pe.vector "rms_norm"
  // CHECK-NEXT:    %b_w = pe.load_weight @b
  // CHECK-NEXT:    %o = pe.attention
  // CHECK-NEXT:    %a = pe.gemm

  // The store of keys and values waits behind the next product: by then they are there.

  // CHECK-NEXT:    pe.append @kv, %k, %k
  // CHECK-NEXT:    %b = pe.gemm
  // CHECK-NEXT:    func.return
  func.func @kinds(%x: tensor<1x?x64xf16>, %q: tensor<1x4x?x16xf16>, %k: tensor<1x1x?x16xf16>) {
    %norm = pe.load_constant "norm" {digest = "sha256:03"} : !pe.stream<tensor<64xf16>>
    %y = pe.vector "rms_norm"(%x, %norm) : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
    %keys = pe.load_cache @kv keys : !pe.stream<tensor<1x?x16xf16>>
    %values = pe.load_cache @kv values : !pe.stream<tensor<1x?x16xf16>>
    %o = pe.attention @kv, %q, %k, %k, %keys, %values on vector {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>, !pe.stream<tensor<1x?x16xf16>>, !pe.stream<tensor<1x?x16xf16>>) -> tensor<1x4x?x16xf16>
    pe.append @kv, %k, %k : (tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>)
    %a_w = pe.load_weight @a {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %a = pe.gemm %x, %a_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    %b_w = pe.load_weight @b {tiling = #pe.tiling<64x64, grid 1x2, per_block 1>, block_bytes = 8192 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x128, full>>
    %b = pe.gemm %x, %b_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x128, full>>) -> tensor<1x?x128xf16>
    func.return
  }

  // Without a product behind it, a store stays.

  // CHECK-LABEL: func.func @last
  // CHECK-NEXT:    pe.append @kv, %k, %k
  // CHECK-NEXT:    func.return
  func.func @last(%k: tensor<1x1x?x16xf16>) {
    pe.append @kv, %k, %k : (tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>)
    func.return
  }
}
