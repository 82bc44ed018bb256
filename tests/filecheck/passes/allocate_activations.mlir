// RUN: speqc opt %s -p allocate-activations | filecheck %s
// RUN: speqc opt %s -p allocate-activations,allocate-activations | filecheck %s

// In bytes for one row: 64 FP16 values take 128. An operation does not write over its operands, and
// what the step gives lives in DRAM.

// CHECK-LABEL: func.func @chain
// CHECK-SAME:    attributes {pe.sram_row_bytes = 256 : i64}
// CHECK-NEXT:    pe.gather @w[%tokens] {sram_row_offset = 0 : i64}
// CHECK-NEXT:    pe.vector "Abs"(%x) {sram_row_offset = 128 : i64}
// CHECK-NEXT:    pe.vector "Neg"(%a) {sram_row_offset = 0 : i64}
// CHECK-NEXT:    pe.vector "Abs"(%b) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
func.func @chain(%tokens: tensor<1x?xi64>) -> tensor<1x?x64xf16> {
  %x = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %a = pe.vector "Abs"(%x) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %b = pe.vector "Neg"(%a) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %c = pe.vector "Abs"(%b) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  func.return %c : tensor<1x?x64xf16>
}

// Other shapes of one value have its place, and keep it in use; results of one operation stand side
// by side; counters and constants have no place.

// CHECK-LABEL: func.func @places
// CHECK-SAME:    attributes {pe.sram_row_bytes = 384 : i64}
// CHECK-NEXT:    pe.gather @w[%tokens] {sram_row_offset = 0 : i64}
// CHECK-NEXT:    pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>
// CHECK-NEXT:    pe.vector "Reshape"(%x, %shape) {sram_row_offset = 0 : i64}
// CHECK-NEXT:    pe.vector "Split"(%x) {arguments = {axis = 2 : i64}, sram_row_offset = 128 : i64}
// CHECK-NEXT:    pe.vector "Concat"(%right, %left) {arguments = {axis = 2 : i64}, sram_row_offset = 256 : i64}
// CHECK-NEXT:    pe.vector "Abs"(%y) {sram_row_offset = 128 : i64}
// CHECK-NEXT:    pe.positions %tokens : tensor<1x?xi64>
func.func @places(%tokens: tensor<1x?xi64>) -> tensor<1x?x4x16xf16> {
  %x = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %shape = pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>
  %heads = pe.vector "Reshape"(%x, %shape) : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
  %left, %right = pe.vector "Split"(%x) {arguments = {axis = 2 : i64}} : (tensor<1x?x64xf16>) -> tensor<1x?x48xf16>, tensor<1x?x16xf16>
  %y = pe.vector "Concat"(%right, %left) {arguments = {axis = 2 : i64}} : (tensor<1x?x16xf16>, tensor<1x?x48xf16>) -> tensor<1x?x64xf16>
  %z = pe.vector "Abs"(%y) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %p = pe.positions %tokens : tensor<1x?xi64>
  %out = pe.vector "Neg"(%heads) : (tensor<1x?x4x16xf16>) -> tensor<1x?x4x16xf16>
  func.return %out : tensor<1x?x4x16xf16>
}

// The array may start its product while the vector unit still turns %a into %b: the result %p gets
// a place of its own. What waits for both units, as %c does, may use any of theirs again.

// CHECK-LABEL: func.func @units
// CHECK:         %a = pe.vector "Abs"(%x) {sram_row_offset = 128 : i64}
// CHECK-NEXT:    %b = pe.vector "Neg"(%a) {sram_row_offset = 256 : i64}
// CHECK:         %p = pe.gemm %x, %w_w {sram_row_offset = 384 : i64}
// CHECK-NEXT:    %c = pe.vector "Add"(%p, %b) {sram_row_offset = 0 : i64}
func.func @units(%tokens: tensor<1x?xi64>) -> tensor<1x?x64xf16> {
  %x = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %a = pe.vector "Abs"(%x) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %b = pe.vector "Neg"(%a) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %w_w = pe.load_weight @w {tiling = #pe.tiling<64x64, grid 1x1, per_block 1>, block_bytes = 0 : i64, last_block_bytes = 8192 : i64} : !pe.stream<!speq.view<64x64, full>>
  %p = pe.gemm %x, %w_w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
  %c = pe.vector "Add"(%p, %b) : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %out = pe.vector "Abs"(%c) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  func.return %out : tensor<1x?x64xf16>
}

// A store reads its operands when the DRAM channel gets to it. Operations that stream behind it, as
// the norm does, find it done.

// CHECK-LABEL: func.func @stores
// CHECK:         %k = pe.vector "Reshape"(%x, %shape) {sram_row_offset = 0 : i64}
// CHECK-NEXT:    pe.append @kv, %k, %k
// CHECK-NEXT:    %b = pe.vector "Abs"(%a) {sram_row_offset = 256 : i64}
// CHECK:         %n = pe.vector "rms_norm"(%b, %norm) {sram_row_offset = 0 : i64}
func.func @stores(%tokens: tensor<1x?xi64>) -> tensor<1x?x64xf16> {
  %x = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %a = pe.vector "Abs"(%x) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %shape = pe.immediate dense<[1, 1, -1, 64]> : tensor<4xi64>
  %k = pe.vector "Reshape"(%x, %shape) : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x1x?x64xf16>
  pe.append @kv, %k, %k : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>)
  %b = pe.vector "Abs"(%a) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %norm = pe.load_constant "norm" {digest = "sha256:03"} : !pe.stream<tensor<64xf16>>
  %n = pe.vector "rms_norm"(%b, %norm) : (tensor<1x?x64xf16>, !pe.stream<tensor<64xf16>>) -> tensor<1x?x64xf16>
  %out = pe.vector "Abs"(%n) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  func.return %out : tensor<1x?x64xf16>
}
