// RUN: speqc opt %s -p verify-pe | filecheck %s
// RUN: sed 's/pe.mode full/pe.mode draft/' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix MODE
// RUN: sed 's/load_weight @w/load_weight @v/' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix WEIGHT
// RUN: sed 's/per_block 1>/per_block 2>/' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix TILING
// RUN: sed 's/%%keys, %%values on/%%values, %%keys on/' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix HALVES
// RUN: sed '/ pe.append/d' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix APPEND
// RUN: sed 's/offset = 128/offset = 64/' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix PLACE
// RUN: sed '/ speq.truncate/d' %s | not speqc opt -p verify-pe 2>&1 | filecheck %s --check-prefix PROGRAM

// A legal program passes as it is. Each rule is broken once in tests/passes/test_verify_pe.py; here
// some are, as a user meets them.

// CHECK:   func.func @full
// MODE:    error: verify-pe: @full, pe.gemm: reads a full view while the array's mode is draft
// WEIGHT:  error: verify-pe: @full, pe.load_weight: no weight @v is declared
// TILING:  error: verify-pe: @full, pe.load_weight: tiling #pe.tiling<64x64, grid 1x1, per_block 2> does not fit the target, not #pe.tiling<64x64, grid 1x1, per_block 1>
// HALVES:  error: verify-pe: @full, pe.attention: its cached keys must be streamed from @kv
// APPEND:  error: verify-pe: @full: cache @kv is never appended to
// PLACE:   error: verify-pe: @full, pe.attention: bytes 64 to 192 of its row overlap those of pe.gather at 0 to 128, still needed
// PROGRAM: error: verify-pe: @speculative: expected speq.truncate, got speq.emit

builtin.module attributes {onnx.opset = 20 : i64, speq.context = 128 : i64, pe.target = #pe.target<{name = "tiny", description = "four banks of 32 KiB", array_rows = 64 : i64, array_columns = 64 : i64, draft_lanes = 4 : i64, draft_mantissa_bits = 10 : i64, clock_hz = 500000000 : i64, dram_bytes_per_second = 51200000000 : i64, dram_burst_bytes = 64 : i64, dram_latency_ns = 100 : i64, weight_sram_bytes = 131072 : i64, weight_sram_banks = 4 : i64, activation_sram_bytes = 4096 : i64, vector_lanes = 64 : i64, mode_switch_cycles = 64 : i64, vector_latency_cycles = 8 : i64, dram_energy_picojoules_per_bit = 1.875000e+01 : f64, sram_energy_picojoules_per_bit = 0.43 : f64, array_full_energy_picojoules_per_multiply_add = 2.0 : f64, array_draft_energy_picojoules_per_multiply_add = 2.0 : f64, vector_energy_picojoules_per_operation = 4.6 : f64}>} {
  speq.weight @w from "w" : tensor<64x64xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
  speq.cache @kv {heads = 1 : i64, key_dim = 64 : i64, value_dim = 64 : i64, element_type = f16}
  func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x64xf16> attributes {pe.sram_row_bytes = 256 : i64} {
    %keys = pe.load_cache @kv keys : !pe.stream<tensor<1x?x64xf16>>
    %values = pe.load_cache @kv values : !pe.stream<tensor<1x?x64xf16>>
    %w = pe.load_weight @w {tiling = #pe.tiling<64x64, grid 1x1, per_block 1>, block_bytes = 0 : i64, last_block_bytes = 8320 : i64} : !pe.stream<!speq.view<64x64, full>>
    %x = pe.gather @w[%tokens] {sram_row_offset = 0 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %one = pe.immediate dense<1> : tensor<1xi64>
    %q = pe.vector "Unsqueeze"(%x, %one) {sram_row_offset = 0 : i64} : (tensor<1x?x64xf16>, tensor<1xi64>) -> tensor<1x1x?x64xf16>
    %a = pe.attention @kv, %q, %q, %q, %keys, %values on vector {score_type = f16, probability_type = f16, sram_row_offset = 128 : i64} : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>, !pe.stream<tensor<1x?x64xf16>>, !pe.stream<tensor<1x?x64xf16>>) -> tensor<1x1x?x64xf16>
    %y = pe.vector "Squeeze"(%a, %one) {sram_row_offset = 128 : i64} : (tensor<1x1x?x64xf16>, tensor<1xi64>) -> tensor<1x?x64xf16>
    pe.mode full
    %logits = pe.gemm %y, %w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
    pe.append @kv, %q, %q : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>)
    func.return %logits : tensor<1x?x64xf16>
  }
  func.func @draft(%tokens: tensor<1x?xi64>) -> tensor<1x?x64xf16> attributes {pe.sram_row_bytes = 256 : i64} {
    %keys = pe.load_cache @kv keys : !pe.stream<tensor<1x?x64xf16>>
    %values = pe.load_cache @kv values : !pe.stream<tensor<1x?x64xf16>>
    %w = pe.load_weight @w {tiling = #pe.tiling<256x64, grid 1x1, per_block 1>, block_bytes = 0 : i64, last_block_bytes = 2176 : i64} : !pe.stream<!speq.view<64x64, draft>>
    %x = pe.gather @w[%tokens] {sram_row_offset = 0 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %one = pe.immediate dense<1> : tensor<1xi64>
    %q = pe.vector "Unsqueeze"(%x, %one) {sram_row_offset = 0 : i64} : (tensor<1x?x64xf16>, tensor<1xi64>) -> tensor<1x1x?x64xf16>
    %a = pe.attention @kv, %q, %q, %q, %keys, %values on vector {score_type = f16, probability_type = f16, sram_row_offset = 128 : i64} : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>, !pe.stream<tensor<1x?x64xf16>>, !pe.stream<tensor<1x?x64xf16>>) -> tensor<1x1x?x64xf16>
    %y = pe.vector "Squeeze"(%a, %one) {sram_row_offset = 128 : i64} : (tensor<1x1x?x64xf16>, tensor<1xi64>) -> tensor<1x?x64xf16>
    pe.mode draft
    %logits = pe.gemm %y, %w : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, draft>>) -> tensor<1x?x64xf16>
    pe.append @kv, %q, %q : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>)
    func.return %logits : tensor<1x?x64xf16>
  }
  speq.decode @speculative attributes {draft_length = 8 : i64, exit_threshold = 3.000000e-01 : f64} {
  ^bb0(%prompt: tensor<1x?xi64>):
    %logits = speq.call @full(%prompt) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %first, %probability = speq.sample %logits : tensor<1x?x64xf16>
    speq.emit %first : tensor<1x1xi64>
    speq.repeat(%first : tensor<1x1xi64>) {
    ^bb0(%last: tensor<1x1xi64>):
      %drafted, %draft_logits = speq.draft(%last : tensor<1x1xi64>) {
      ^bb0(%token: tensor<1x1xi64>):
        %logits_1 = speq.call @draft(%token) : (tensor<1x1xi64>) -> tensor<1x1x64xf16>
        %next, %probability_1 = speq.sample %logits_1 : tensor<1x1x64xf16>
        speq.yield %next, %probability_1, %logits_1 : tensor<1x1xi64>, f32, tensor<1x1x64xf16>
      } : tensor<1x?x64xf16>
      %full_logits = speq.verify(%last, %drafted : tensor<1x1xi64>, tensor<1x?xi64>) {
      ^bb0(%tokens: tensor<1x?xi64>):
        %logits_2 = speq.call @full(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
        speq.yield %logits_2 : tensor<1x?x64xf16>
      } : tensor<1x?x64xf16>
      %accepted, %next_1 = speq.accept %drafted, %draft_logits, %full_logits : (tensor<1x?xi64>, tensor<1x?x64xf16>, tensor<1x?x64xf16>)
      speq.truncate %accepted : tensor<1x?xi64>
      speq.emit %accepted, %next_1 : tensor<1x?xi64>, tensor<1x1xi64>
      speq.yield %next_1 : tensor<1x1xi64>
    }
  }
  speq.decode @autoregressive {
  ^bb0(%prompt_1: tensor<1x?xi64>):
    %logits_3 = speq.call @full(%prompt_1) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %first_1, %probability_2 = speq.sample %logits_3 : tensor<1x?x64xf16>
    speq.emit %first_1 : tensor<1x1xi64>
    speq.repeat(%first_1 : tensor<1x1xi64>) {
    ^bb0(%last_1: tensor<1x1xi64>):
      %logits_4 = speq.call @full(%last_1) : (tensor<1x1xi64>) -> tensor<1x1x64xf16>
      %next_2, %probability_3 = speq.sample %logits_4 : tensor<1x1x64xf16>
      speq.emit %next_2 : tensor<1x1xi64>
      speq.yield %next_2 : tensor<1x1xi64>
    }
  }
  speq.decode @draft_only {
  ^bb0(%prompt_2: tensor<1x?xi64>):
    %logits_5 = speq.call @full(%prompt_2) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %first_2, %probability_4 = speq.sample %logits_5 : tensor<1x?x64xf16>
    speq.emit %first_2 : tensor<1x1xi64>
    speq.repeat(%first_2 : tensor<1x1xi64>) {
    ^bb0(%last_2: tensor<1x1xi64>):
      %logits_6 = speq.call @draft(%last_2) : (tensor<1x1xi64>) -> tensor<1x1x64xf16>
      %next_3, %probability_5 = speq.sample %logits_6 : tensor<1x1x64xf16>
      speq.emit %next_3 : tensor<1x1xi64>
      speq.yield %next_3 : tensor<1x1xi64>
    }
  }
}
