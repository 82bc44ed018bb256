// RUN: speqc opt %s -p split-weights | filecheck %s
// RUN: speqc opt %s -p 'split-weights{codebook=paper group-size=128}' | filecheck %s --check-prefix PAPER
// RUN: speqc opt %s -p 'split-weights{codebook=paper},split-weights' | filecheck %s
// RUN: speqc opt %s -p 'split-weights{levels=fp4 group-size=32}' | filecheck %s --check-prefix FP4
// RUN: not speqc opt %s -p 'split-weights{levels=fp6}' 2>&1 | filecheck %s --check-prefix LEVELS
// RUN: not speqc opt %s -p 'split-weights{codebook=naive levels=m2}' 2>&1 | filecheck %s --check-prefix OWN
// RUN: not speqc opt %s -p 'split-weights{codebook=nf4}' 2>&1 | filecheck %s --check-prefix BOOK
// RUN: not speqc opt %s -p 'split-weights{group-size=0}' 2>&1 | filecheck %s --check-prefix GROUP

// CHECK-DAG: speq.weight @table {{.*}}, kept = "embedding only"}
// CHECK-DAG: speq.weight @small {{.*}}, codebook = "sets", levels = "free", group_size = 64 : i64}
// CHECK-DAG: speq.weight @large {{.*}}, codebook = "sets", levels = "free", group_size = 64 : i64}
// CHECK-DAG: speq.weight @wide {{.*}}, codebook = "sets", levels = "free", group_size = 64 : i64}

// The paper's book holds exponents 0 to 15: |w| >= 2 is scaled down, if that loses no bit.
// PAPER-DAG: speq.weight @table {{.*}}, kept = "embedding only"}
// PAPER-DAG: speq.weight @small {{.*}}, codebook = "paper", group_size = 128 : i64}
// PAPER-DAG: speq.weight @large {{.*}}, codebook = "paper", group_size = 128 : i64, shift = 2 : i64}
// PAPER-DAG: speq.weight @wide {{.*}}, kept = "{{.*}}subnormal{{.*}}"}

// FP4: speq.weight @small {{.*}}, codebook = "sets", levels = "fp4", group_size = 32 : i64}

// LEVELS: error: unknown levels 'fp6': choose one of free, m2, m1, fp4, pow2
// OWN:   error: the code book 'naive' has levels of its own: only 'sets' has a choice
// BOOK:  error: unknown code book 'nf4': choose one of sets, paper, naive
// GROUP: error: group size must be positive, got 0

speq.weight @table from "t" : tensor<2x4xf16> {digest = "sha256:0"}
speq.weight @small from "s" : tensor<2x4xf16> {digest = "sha256:1", exponents = array<i64: 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 1 : i64}
speq.weight @large from "l" : tensor<2x4xf16> {digest = "sha256:2", exponents = array<i64: 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 2 : i64}
speq.weight @wide from "w" : tensor<2x4xf16> {digest = "sha256:3", exponents = array<i64: 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 1 : i64}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x4xf16> {
  %x = speq.embedding @table[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x2xf16>
  %s = speq.view @small : !speq.view<2x4, full>
  %l = speq.view @large : !speq.view<2x4, full>
  %w = speq.view @wide : !speq.view<2x4, full>
  %a = speq.matmul %x, %s : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  %b = speq.matmul %x, %l : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  %c = speq.matmul %x, %w : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  func.return %a : tensor<1x?x4xf16>
}
