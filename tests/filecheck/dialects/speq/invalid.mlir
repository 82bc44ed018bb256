// RUN: speqc opt %s --verify-diagnostics --parsing-diagnostics --split-input-file | filecheck %s

// CHECK: a weight holds f16, got f32
speq.weight @w from "w" : tensor<64x64xf32> {digest = "sha256:00"}

// -----

// CHECK: a weight is a static KxN matrix, got tensor<64xf16>
speq.weight @w from "w" : tensor<64xf16> {digest = "sha256:00"}

// -----

// CHECK: levels, group_size and shift need a codebook
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", group_size = 64 : i64}

// -----

// CHECK: unknown codebook "nf4", expected one of sets, paper, naive
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", codebook = "nf4", group_size = 64 : i64}

// -----

// CHECK: unknown levels "fp6", expected one of free, m2, m1, fp4, pow2
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", codebook = "sets", levels = "fp6", group_size = 64 : i64}

// -----

// CHECK: levels are for the codebook sets, not "paper"
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", codebook = "paper", levels = "m2", group_size = 64 : i64}

// -----

// CHECK: a split weight needs a positive group_size
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", codebook = "sets"}

// -----

// CHECK: a weight kept as FP16 has no codebook
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64, kept = "why"}

// -----

// CHECK: stored_bits must be from 1 to 15, got 16
speq.weight @w from "w" : tensor<64x64xf16> {digest = "none", stored_bits = 16 : i64, group_size = 64 : i64}

// -----

// CHECK: a weight with stored_bits needs a positive group_size
speq.weight @w from "w" : tensor<64x64xf16> {digest = "none", stored_bits = 8 : i64}

// -----

// CHECK: a weight with stored_bits has no codebook, levels, shift or kept
speq.weight @w from "w" : tensor<64x64xf16> {digest = "none", stored_bits = 8 : i64, group_size = 64 : i64, codebook = "sets"}

// -----

// CHECK: unknown copy "nf4", expected one of int4, mxfp4, nvfp4
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "nf4", group_size = 64 : i64}

// -----

// CHECK: a weight with a copy has no codebook, levels or kept
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "int4", group_size = 64 : i64, codebook = "sets"}

// -----

// CHECK: a weight with a copy has no codebook, levels or kept
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "int4", group_size = 64 : i64, kept = "why"}

// -----

// CHECK: a weight with a copy needs a positive group_size
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "int4"}

// -----

// CHECK: copies in "mxfp4" have groups of 32, got 64
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "mxfp4", group_size = 64 : i64}

// -----

// CHECK: a shift is for nvfp4 copies, not "int4"
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "int4", group_size = 64 : i64, shift = -3 : i64}

// -----

// CHECK: the shift of a copy must be from -15 to 7, got 40
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "nvfp4", group_size = 16 : i64, shift = 40 : i64}

// -----

// CHECK: the shift of a copy must be from -15 to 7, got -16
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", copy = "nvfp4", group_size = 16 : i64, shift = -16 : i64}

// -----

// CHECK: a weight with stored_bits has no copy
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", stored_bits = 8 : i64, copy = "int4", group_size = 64 : i64}

// -----

// CHECK: heads must be positive, got 0
speq.cache @c {heads = 0 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = f16}

// -----

// CHECK: Unexpected attribute i8
speq.cache @c {heads = 1 : i64, key_dim = 16 : i64, value_dim = 16 : i64, element_type = i8}

// -----

// CHECK: Expected `draft`, `wide8`, `wide12`, or `full`.
%v = speq.view @w : !speq.view<64x64, quarter>

// -----

// CHECK: input has 32 columns, the weight 64 rows
%x, %w = "test.op"() : () -> (tensor<1x?x32xf16>, !speq.view<64x64, full>)
%y = speq.matmul %x, %w : (tensor<1x?x32xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>

// -----

// CHECK: result must have shape [1, 2, 64], got [1, 2, 32]
%x, %w = "test.op"() : () -> (tensor<1x2x64xf16>, !speq.view<64x64, full>)
%y = speq.matmul %x, %w : (tensor<1x2x64xf16>, !speq.view<64x64, full>) -> tensor<1x2x32xf16>

// -----

// CHECK: f16 should be of base attribute integer_type
%t = "test.op"() : () -> (tensor<1x?xf16>)
%p = speq.positions %t : tensor<1x?xf16>

// -----

// CHECK: f32 should be of base attribute integer_type
%t = "test.op"() : () -> (tensor<1x?xf32>)
%x = speq.embedding @w[%t] : (tensor<1x?xf32>) -> tensor<1x?x64xf16>

// -----

// CHECK: scale must be a vector, got shape [1, 64]
%x, %s = "test.op"() : () -> (tensor<1x?x64xf16>, tensor<1x64xf16>)
%y = speq.rms_norm %x, %s {epsilon = 1.0e-05 : f32} : (tensor<1x?x64xf16>, tensor<1x64xf16>) -> tensor<1x?x64xf16>

// -----

// CHECK: input has 64 channels, scale has 32
%x, %s = "test.op"() : () -> (tensor<1x?x64xf16>, tensor<32xf16>)
%y = speq.rms_norm %x, %s {epsilon = 1.0e-05 : f32} : (tensor<1x?x64xf16>, tensor<32xf16>) -> tensor<1x?x64xf16>

// -----

// CHECK: the rotated width must be even and at most 16, got 32
%x, %c = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x1x?x32xf16>)
%y = speq.rotary %x, %c, %c : (tensor<1x4x?x16xf16>, tensor<1x1x?x32xf16>, tensor<1x1x?x32xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: cos and sin must have one shape
%x, %c, %s = "test.op"() : () -> (tensor<1x4x2x16xf16>, tensor<1x1x2x16xf16>, tensor<1x1x2x8xf16>)
%y = speq.rotary %x, %c, %s : (tensor<1x4x2x16xf16>, tensor<1x1x2x16xf16>, tensor<1x1x2x8xf16>) -> tensor<1x4x2x16xf16>

// -----

// CHECK: 4 query heads are no multiple of 3 key heads
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x3x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x3x?x16xf16>, tensor<1x3x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: query heads of 16 channels, key heads of 8
%q, %k, %v = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %v {score_type = f16, probability_type = f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x8xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: scores have either a scale or a divisor, not both
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f16, probability_type = f16, score_scale = 2.0 : f16, score_divisor = 3.0 : f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: scale and soft cap must have one type
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f16, probability_type = f16, score_scale = 2.0 : f16, softcap = 3.0 : f32} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: f32 scores are scaled in f16
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f32, probability_type = f16, score_divisor = 3.0 : f16} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: 4 query heads need as many slopes, got 2
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f16, probability_type = f16, position_bias = #speq.position_bias<start, array<f32: 1.0, 0.5>, f32, f16, f16>} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: scale_behind_bias needs a bias and a scale, and no soft cap
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f16, probability_type = f16, score_scale = 2.0 : f16, scale_behind_bias} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: sinks must be 4 numbers in f32
%q, %k = "test.op"() : () -> (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>)
%y = speq.attention @c, %q, %k, %k {score_type = f16, probability_type = f16, sinks = array<f32: 1.0>} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x4x?x16xf16>

// -----

// CHECK: slopes must be f32, got i32
"test.op"() {bias = #speq.position_bias<start, array<i32: 1>, f32, f16, f16>} : () -> ()

// -----

// CHECK: f32 should be of base attribute tensor
%k = "test.op"() : () -> (f32)
speq.cache_append @c, %k, %k : (f32, f32)

// -----

// CHECK: draft_length must be positive
speq.decode @d attributes {draft_length = 0 : i64} {
^bb0(%prompt: tensor<1x?xi64>):
}

// -----

// CHECK: exit_threshold must lie in [0, 1]
speq.decode @d attributes {exit_threshold = 2.0 : f64} {
^bb0(%prompt: tensor<1x?xi64>):
}

// -----

// CHECK: draft_schedule must be one of constant, heuristic, cost
speq.decode @d attributes {draft_schedule = "best"} {
^bb0(%prompt: tensor<1x?xi64>):
}

// -----

// CHECK: 'speq.yield' expects parent op
func.func @f() {
  speq.yield
}

// -----

// CHECK: result must have shape [1, ?, 64], got [1, ?, 32]
%x, %w = "test.op"() : () -> (tensor<1x?x64xf16>, !speq.view<64x64, full>)
%y = speq.matmul %x, %w : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x32xf16>

// -----

// CHECK: f16 should be of base attribute integer_type
%t = "test.op"() : () -> (tensor<1x?xf16>)
%l = speq.call @full(%t) : (tensor<1x?xf16>) -> tensor<1x?x16xf16>

// -----

// CHECK: chunk must be positive, got 0
%t = "test.op"() : () -> (tensor<1x?xi64>)
%l = speq.call @full(%t) {chunk = 0 : i64} : (tensor<1x?xi64>) -> tensor<1x?x16xf16>

// -----

// CHECK: f32 should be of base attribute tensor
%l = "test.op"() : () -> (f32)
%t, %p = speq.sample %l : f32

// -----

// CHECK: f16 should be of base attribute integer_type
%t = "test.op"() : () -> (tensor<1x1xf16>)
speq.repeat(%t : tensor<1x1xf16>) {
^bb0(%last: tensor<1x1xf16>):
  speq.yield %last : tensor<1x1xf16>
}

// -----

// CHECK: f16 should be of base attribute integer_type
%t = "test.op"() : () -> (tensor<1x1xf16>)
%d, %l = speq.draft(%t : tensor<1x1xf16>) {
^bb0(%token: tensor<1x1xf16>):
  speq.yield
} : tensor<1x?x16xf16>

// -----

// CHECK: f32 should be of base attribute tensor
%t = "test.op"() : () -> (tensor<1x1xi64>)
%d, %l = speq.draft(%t : tensor<1x1xi64>) {
^bb0(%token: tensor<1x1xi64>):
  speq.yield
} : f32

// -----

// CHECK: f16 should be of base attribute integer_type
%t, %d = "test.op"() : () -> (tensor<1x1xi64>, tensor<1x?xf16>)
%l = speq.verify(%t, %d : tensor<1x1xi64>, tensor<1x?xf16>) {
^bb0(%tokens: tensor<1x?xi64>):
  speq.yield
} : tensor<1x?x16xf16>

// -----

// CHECK: f16 should be of base attribute integer_type
%d, %l = "test.op"() : () -> (tensor<1x?xf16>, tensor<1x?x16xf16>)
%a, %n = speq.accept %d, %l, %l : (tensor<1x?xf16>, tensor<1x?x16xf16>, tensor<1x?x16xf16>)

// -----

// CHECK: f32 should be of base attribute tensor
%d, %l, %p = "test.op"() : () -> (tensor<1x?xi64>, tensor<1x?x16xf16>, f32)
%a, %n = speq.accept %d, %p, %l : (tensor<1x?xi64>, f32, tensor<1x?x16xf16>)

// -----

// CHECK: f16 should be of base attribute integer_type
%a = "test.op"() : () -> (tensor<1x?xf16>)
speq.truncate %a : tensor<1x?xf16>

// -----

// CHECK: f16 should be of base attribute integer_type
%a = "test.op"() : () -> (tensor<1x?xf16>)
speq.emit %a : tensor<1x?xf16>

// -----

// CHECK: predicate must have shape [1, ?, 1], got [1, ?, 2]
%x, %c, %w = "test.op"() : () -> (tensor<1x?x64xf16>, tensor<1x?x2xi1>, !speq.view<64x64, full>)
%y = speq.matmul %x, %w when %c : tensor<1x?x2xi1> : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>

// -----

// CHECK: part must not be negative, got -1
speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", part = -1 : i64}

// -----

// CHECK: a tensor without bytes has no histogram of exponents
speq.weight @w from "w" : tensor<64x64xf16> {digest = "none", zeros = 3 : i64}

// -----

// CHECK: digest must be 'none' or start with 'sha256:', got '00'
speq.weight @w from "w" : tensor<64x64xf16> {digest = "00"}

// -----

// CHECK: expected pairs of tokens [..., ?, ?], got [2, ?, 4]
%scores = "test.op"() : () -> tensor<2x?x4xf16>
%shares = speq.causal_softmax %scores : tensor<2x?x4xf16>

// -----

// CHECK: rows must have shape [..., ?, N], got [2, 4, ?]
%weights, %rows = "test.op"() : () -> (tensor<2x?x?xf16>, tensor<2x4x?xf16>)
%sums = speq.causal_matmul %weights, %rows : (tensor<2x?x?xf16>, tensor<2x4x?xf16>) -> tensor<2x?x4xf16>
