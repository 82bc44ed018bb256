// RUN: speqc opt %s --verify-diagnostics --parsing-diagnostics --split-input-file | filecheck %s

// CHECK: every size of a tiling must be positive
"test.op"() {tiling = #pe.tiling<64x64, grid 0x5, per_block 4>} : () -> ()

// -----

// CHECK: a stream carries a weight view or a tensor, got f16
%s = "test.op"() : () -> !pe.stream<f16>

// -----

// CHECK: Expected `draft`, `wide8`, `wide12`, or `full`.
pe.mode half

// -----

// CHECK: an immediate has at most 64 elements, got 65
%i = pe.immediate dense<1> : tensor<65xi64>

// -----

// CHECK: value has type tensor<1xi64>, result tensor<2xi64>
%i = "pe.immediate"() <{value = dense<1> : tensor<1xi64>}> : () -> tensor<2xi64>

// -----

// CHECK: f16 should be of base attribute integer_type
%t = "test.op"() : () -> tensor<1x?xf16>
%p = pe.positions %t : tensor<1x?xf16>

// -----

// CHECK: a weight streams as a view, got tensor<64x64xf16>
%s = pe.load_weight @w {tiling = #pe.tiling<64x64, grid 1x1, per_block 1>, block_bytes = 0 : i64, last_block_bytes = 8192 : i64} : !pe.stream<tensor<64x64xf16>>

// -----

// CHECK: tiling: a grid of 1x5 tiles covers the weight, got 1x4
%s = pe.load_weight @w {tiling = #pe.tiling<64x64, grid 1x4, per_block 4>, block_bytes = 0 : i64, last_block_bytes = 32768 : i64} : !pe.stream<!speq.view<64x272, full>>

// -----

// CHECK: a constant streams as a static tensor, got tensor<?xf16>
%s = pe.load_constant "c" {digest = "sha256:00"} : !pe.stream<tensor<?xf16>>

// -----

// CHECK: Expected `keys`, or `values`.
%s = pe.load_cache @kv rows : !pe.stream<tensor<2x?x16xf16>>

// -----

// CHECK: f32 should be of base attribute integer_type
%t = "test.op"() : () -> tensor<1x?xf32>
%x = pe.gather @w[%t] : (tensor<1x?xf32>) -> tensor<1x?x64xf16>

// -----

// CHECK: weight must be a streamed weight view, got tensor<64xf16>
%x, %s = "test.op"() : () -> (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>)
%y = pe.gemm %x, %s : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>

// -----

// CHECK: input has 32 columns, the weight 64 rows
%x, %s = "test.op"() : () -> (tensor<1x?x32xf16>, !pe.stream<!speq.view<64x64, draft>>)
%y = pe.gemm %x, %s : (tensor<1x?x32xf16>, !pe.stream<!speq.view<64x64, draft>>) -> tensor<1x?x64xf16>

// -----

// CHECK: Unexpected attribute f16
%x = "test.op"() : () -> f16
%y = pe.vector "Neg"(%x) : (f16) -> tensor<1xf16>

// -----

// CHECK: Expected `array`, or `vector`.
%q, %s = "test.op"() : () -> (tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>)
%y = pe.attention @kv, %q, %q, %q, %s, %s on host {score_type = f16, probability_type = f16} : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x2x?x16xf16>

// -----

// CHECK: result must have 2 heads of 16 channels
%q, %s = "test.op"() : () -> (tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>)
%y = pe.attention @kv, %q, %q, %q, %s, %s on array {score_type = f16, probability_type = f16} : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: 2 query heads need as many slopes, got 1
%q, %s = "test.op"() : () -> (tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>)
%y = pe.attention @kv, %q, %q, %q, %s, %s on array {score_type = f16, probability_type = f16, position_bias = #speq.position_bias<row, array<f32: 1.0>, f32, f16, f16>} : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, !pe.stream<tensor<2x?x16xf16>>, !pe.stream<tensor<2x?x16xf16>>) -> tensor<1x2x?x16xf16>

// -----

// CHECK: f32 should be of base attribute tensor
%k = "test.op"() : () -> f32
pe.append @kv, %k, %k : (f32, f32)

// -----

// CHECK: predicate must have shape [1, ?, 2, 1], got [1, ?, 1]
%x, %c, %w = "test.op"() : () -> (tensor<1x?x2x64xf16>, tensor<1x?x1xi1>, !pe.stream<!speq.view<64x64, full>>)
%y = pe.gemm %x, %w when %c : tensor<1x?x1xi1> : (tensor<1x?x2x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x2x64xf16>

// -----

// CHECK: rows of tensor<16x8xf16> for tensor<1x?xi64> are tensor<1x?x8xf16>, got tensor<1x?x16xf16>
%i = "test.op"() : () -> tensor<1x?xi64>
%r = pe.lookup "t"[%i] {digest = "sha256:00"} : (tensor<16x8xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>

// -----

// CHECK: rows are looked up in a static tensor, got tensor<?x8xf16>
%i = "test.op"() : () -> tensor<1x?xi64>
%r = pe.lookup "t"[%i] {digest = "sha256:00"} : (tensor<?x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>

// -----

// CHECK: f16 should be of base attribute integer_type
%i = "test.op"() : () -> tensor<1x?xf16>
%r = pe.lookup "t"[%i] {digest = "sha256:00"} : (tensor<16x8xf16>, tensor<1x?xf16>) -> tensor<1x?x8xf16>

// -----

// CHECK: digest must be 'none' or start with 'sha256:', got ''
%i = "test.op"() : () -> tensor<1x?xi64>
%r = pe.lookup "t"[%i] {digest = ""} : (tensor<16x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>

// -----

// CHECK: digest must be 'none' or start with 'sha256:', got 'nothing'
%s = pe.load_constant "t" {digest = "nothing"} : !pe.stream<tensor<64xf16>>
