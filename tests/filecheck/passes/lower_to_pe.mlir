// RUN: speqc opt %s -p lower-to-pe | filecheck %s
// RUN: speqc opt %s -p 'lower-to-pe{attention-unit=array}' | filecheck %s --check-prefix ARRAY
// RUN: sed 's/pe.target = /other = /' %s | not speqc opt -p lower-to-pe 2>&1 | filecheck %s --check-prefix TARGET
// RUN: sed 's/speq.context = 128/speq.context = 0/' %s | not speqc opt -p lower-to-pe 2>&1 | filecheck %s --check-prefix CONTEXT
// RUN: sed 's/weight_sram_bytes = 131072/weight_sram_bytes = 16384/' %s | not speqc opt -p lower-to-pe 2>&1 | filecheck %s --check-prefix BANK
// RUN: sed 's/speq.positions %%tokens :/"test.op"(%%tokens) : (tensor<1x?xi64>) ->/' %s | not speqc opt -p lower-to-pe 2>&1 | filecheck %s --check-prefix LOWERING

// TARGET:   error: the module has no pe.target attribute: no target to map to
// CONTEXT:  error: the module has no positive speq.context attribute
// BANK:     error: target tiny: a weight bank of 4096 bytes cannot hold a tile of 64 x 64 16-bit weights (8320 bytes)
// LOWERING: error: lower-to-pe: test.op has no lowering

#target = #pe.target<{name = "tiny", description = "four banks of 32 KiB", array_rows = 64 : i64, array_columns = 64 : i64, draft_lanes = 4 : i64, draft_mantissa_bits = 10 : i64, clock_hz = 500000000 : i64, dram_bytes_per_second = 51200000000 : i64, dram_burst_bytes = 64 : i64, dram_latency_ns = 100 : i64, weight_sram_bytes = 131072 : i64, weight_sram_banks = 4 : i64, activation_sram_bytes = 4096 : i64, vector_lanes = 64 : i64, mode_switch_cycles = 64 : i64, vector_latency_cycles = 8 : i64, dram_energy_picojoules_per_bit = 18.75 : f64, sram_energy_picojoules_per_bit = 0.43 : f64, array_full_energy_picojoules_per_multiply_add = 2.0 : f64, array_draft_energy_picojoules_per_multiply_add = 2.0 : f64, vector_energy_picojoules_per_operation = 4.6 : f64}>

builtin.module attributes {onnx.opset = 20 : i64, speq.context = 128 : i64, pe.target = #target} {
  speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
  speq.weight @up from "up" : tensor<64x512xf16> {digest = "sha256:01", codebook = "paper", group_size = 128 : i64}
  speq.weight @down from "down" : tensor<512x64xf16> {digest = "sha256:02", kept = "it has Inf or NaN"}
  speq.weight @gate from "gate" : tensor<64x512xf16> {digest = "sha256:03", copy = "int4", group_size = 64 : i64}
  speq.weight @wide from "wide" : tensor<64x512xf16> {digest = "sha256:04", copy = "nvfp4", group_size = 16 : i64, shift = -9 : i64}
  speq.cache @kv {heads = 1 : i64, key_dim = 16 : i64, value_dim = 8 : i64, element_type = f16}

  // A product is a load, a mode and a gemm; the tiles of the draft are as many lanes deep. The full
  // view of the `sets` book reads scales too, 128 bytes a tile; those of `paper` and of a kept
  // weight have none.

  // CHECK-LABEL: func.func @products
  // CHECK-NEXT:    %head = pe.load_weight @head {tiling = #pe.tiling<64x64, grid 1x5, per_block 3>, block_bytes = 24960 : i64, last_block_bytes = 16640 : i64} : !pe.stream<!speq.view<64x272, full>>
  // CHECK-NEXT:    pe.mode full
  // CHECK-NEXT:    pe.gemm %x, %head : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x272, full>>) -> tensor<1x?x272xf16>
  // CHECK-NEXT:    pe.load_weight @head {tiling = #pe.tiling<256x64, grid 1x5, per_block 3>, block_bytes = 6528 : i64, last_block_bytes = 4352 : i64} : !pe.stream<!speq.view<64x272, draft>>
  // CHECK-NEXT:    pe.mode draft
  // CHECK-NEXT:    pe.gemm
  // CHECK-NEXT:    %up = pe.load_weight @up {tiling = #pe.tiling<64x64, grid 1x8, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 32768 : i64} : !pe.stream<!speq.view<64x512, full>>
  // CHECK-NEXT:    pe.mode full
  // CHECK-NEXT:    pe.gemm
  // CHECK-NEXT:    %down = pe.load_weight @down {tiling = #pe.tiling<64x64, grid 8x1, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 32768 : i64} : !pe.stream<!speq.view<512x64, full>>
  // CHECK-NEXT:    pe.mode full
  // CHECK-NEXT:    pe.gemm
  // CHECK-NEXT:    func.return
  func.func @products(%x: tensor<1x?x64xf16>) {
    %v0 = speq.view @head : !speq.view<64x272, full>
    %a = speq.matmul %x, %v0 : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
    %v1 = speq.view @head : !speq.view<64x272, draft>
    %b = speq.matmul %x, %v1 : (tensor<1x?x64xf16>, !speq.view<64x272, draft>) -> tensor<1x?x272xf16>
    %v2 = speq.view @up : !speq.view<64x512, full>
    %h = speq.matmul %x, %v2 : (tensor<1x?x64xf16>, !speq.view<64x512, full>) -> tensor<1x?x512xf16>
    %v3 = speq.view @down : !speq.view<512x64, full>
    %d = speq.matmul %h, %v3 : (tensor<1x?x512xf16>, !speq.view<512x64, full>) -> tensor<1x?x64xf16>
    func.return
  }

  // A draft streams a weight's copy, with 20 bits a group in int4 (160 bytes a tile of 64 rows), and
  // 8 for each 16 weights in nvfp4 (256 bytes); the full view is the plain weight.

  // CHECK-LABEL: func.func @copies
  // CHECK-NEXT:    pe.load_weight @gate {tiling = #pe.tiling<64x64, grid 1x8, per_block 4>, block_bytes = 32768 : i64, last_block_bytes = 32768 : i64} : !pe.stream<!speq.view<64x512, full>>
  // CHECK:         pe.load_weight @gate {tiling = #pe.tiling<256x64, grid 1x8, per_block 3>, block_bytes = 6624 : i64, last_block_bytes = 4416 : i64} : !pe.stream<!speq.view<64x512, draft>>
  // CHECK-NEXT:    pe.mode draft
  // CHECK:         pe.load_weight @wide {tiling = #pe.tiling<256x64, grid 1x8, per_block 3>, block_bytes = 6912 : i64, last_block_bytes = 4608 : i64} : !pe.stream<!speq.view<64x512, draft>>
  func.func @copies(%x: tensor<1x?x64xf16>) {
    %v0 = speq.view @gate : !speq.view<64x512, full>
    %a = speq.matmul %x, %v0 : (tensor<1x?x64xf16>, !speq.view<64x512, full>) -> tensor<1x?x512xf16>
    %v1 = speq.view @gate : !speq.view<64x512, draft>
    %b = speq.matmul %x, %v1 : (tensor<1x?x64xf16>, !speq.view<64x512, draft>) -> tensor<1x?x512xf16>
    %v2 = speq.view @wide : !speq.view<64x512, draft>
    %c = speq.matmul %x, %v2 : (tensor<1x?x64xf16>, !speq.view<64x512, draft>) -> tensor<1x?x512xf16>
    func.return
  }

  // Attention is preceded by the streams of both halves of its cache, and on the array by its mode.

  // CHECK-LABEL: func.func @attends
  // CHECK-NEXT:    %keys = pe.load_cache @kv keys : !pe.stream<tensor<1x?x16xf16>>
  // CHECK-NEXT:    %values = pe.load_cache @kv values : !pe.stream<tensor<1x?x8xf16>>
  // CHECK-NEXT:    pe.attention @kv, %q, %k, %v, %keys, %values on vector {score_type = f16, probability_type = f32, score_scale = 5.000000e-01 : f32, softcap = 3.000000e+01 : f32, position_bias = #speq.position_bias<start, array<f32: 5.000000e-01, 2.500000e-01, 1.250000e-01, 1.000000e-01>, f32, f16, f16>, softmax_type = f16, sinks = array<f32: 1.000000e+00, 2.000000e+00, 3.000000e+00, 4.000000e+00>, shifted_type = f16, window = 32 : i64}
  // CHECK-NEXT:    pe.append @kv, %k, %v
  // ARRAY-LABEL: func.func @attends
  // ARRAY:         pe.load_cache @kv values
  // ARRAY-NEXT:    pe.mode full
  // ARRAY-NEXT:    pe.attention {{.*}} on array
  func.func @attends(%q: tensor<1x4x?x16xf16>, %k: tensor<1x1x?x16xf16>, %v: tensor<1x1x?x8xf16>) {
    %o = speq.attention @kv, %q, %k, %v {score_type = f16, probability_type = f32, score_scale = 5.0e-01 : f32, softcap = 3.0e+01 : f32, position_bias = #speq.position_bias<start, array<f32: 5.000000e-01, 2.500000e-01, 1.250000e-01, 1.000000e-01>, f32, f16, f16>, softmax_type = f16, sinks = array<f32: 1.000000e+00, 2.000000e+00, 3.000000e+00, 4.000000e+00>, shifted_type = f16, window = 32 : i64} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x8xf16>) -> tensor<1x4x?x8xf16>
    speq.cache_append @kv, %k, %v : (tensor<1x1x?x16xf16>, tensor<1x1x?x8xf16>)
    func.return
  }

  // Rows of a table are looked up by computed indices; along another axis the table streams in.

  // CHECK-LABEL: func.func @looks_up
  // CHECK-NEXT:    %a = pe.lookup "cos"[%places] {digest = "sha256:05"} : (tensor<128x8xf16>, tensor<1x?xi32>) -> tensor<1x?x8xf16>
  // CHECK-NEXT:    %cos = pe.load_constant "cos"
  // CHECK-NEXT:    pe.vector "Gather"(%cos, %places) {arguments = {axis = 1 : i64}}
  // CHECK-NEXT:    func.return
  func.func @looks_up(%places: tensor<1x?xi32>) {
    %table = onnx.initializer "cos", "sha256:05" : tensor<128x8xf16>
    %a = onnx.Gather %table, %places : (tensor<128x8xf16>, tensor<1x?xi32>) -> tensor<1x?x8xf16>
    %b = onnx.Gather %table, %places {axis = 1 : i64} : (tensor<128x8xf16>, tensor<1x?xi32>) -> tensor<128x1x?xf16>
    func.return
  }

  // All else is for the vector unit: constants of the file stream in, one load for each use; small
  // ones stand in the program; inputs that are left out are named by their place.

  // CHECK-LABEL: func.func @others
  // CHECK-NEXT:    %x = pe.gather @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  // CHECK-NEXT:    pe.positions %tokens : tensor<1x?xi64>
  // CHECK-NEXT:    %norm.weight = pe.load_constant "norm.weight" {digest = "sha256:03"} : !pe.stream<tensor<64xf16>>
  // CHECK-NEXT:    %y = pe.vector "rms_norm"(%x, %norm.weight) {arguments = {epsilon = 1.000000e-05 : f32, scale_in_f32}} : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
  // CHECK-NEXT:    %norm.weight_1 = pe.load_constant "norm.weight"
  // CHECK-NEXT:    %z = pe.vector "Mul"(%y, %norm.weight_1) : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
  // CHECK-NEXT:    %high = pe.immediate dense<6.000000e+00> : tensor<f16>
  // CHECK-NEXT:    pe.vector "Clip"(%z, %high) {arguments = {absent = array<i64: 1>}} : (tensor<1x?x64xf16>, tensor<f16>) -> tensor<1x?x64xf16>
  // CHECK-NEXT:    pe.vector "rotary"(%r, %cos, %sin) {arguments = {interleaved}} : (tensor<1x4x?x16xf16>, tensor<1x1x?x8xf16>, tensor<1x1x?x8xf16>) -> tensor<1x4x?x16xf16>
  // CHECK-NEXT:    func.return
  func.func @others(%tokens: tensor<1x?xi64>, %r: tensor<1x4x?x16xf16>, %cos: tensor<1x1x?x8xf16>, %sin: tensor<1x1x?x8xf16>) {
    %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %p = speq.positions %tokens : tensor<1x?xi64>
    %weight = onnx.initializer "norm.weight", "sha256:03" : tensor<64xf16>
    %y = speq.rms_norm %x, %weight {epsilon = 1.0e-05 : f32, scale_in_f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
    %z = onnx.Mul %y, %weight : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
    %none = onnx.NoValue
    %high = onnx.Constant dense<6.0> : tensor<f16>
    %c = onnx.Clip %z, %none, %high : (tensor<1x?x64xf16>, none, tensor<f16>) -> tensor<1x?x64xf16>
    %o = speq.rotary %r, %cos, %sin {interleaved} : (tensor<1x4x?x16xf16>, tensor<1x1x?x8xf16>, tensor<1x1x?x8xf16>) -> tensor<1x4x?x16xf16>
    func.return
  }
}
