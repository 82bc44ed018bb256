// RUN: speqc opt %s -p 'split-weights{draft-format=int4}' | filecheck %s --check-prefix INT4
// RUN: speqc opt %s -p 'split-weights{draft-format=int4 group-size=32}' | filecheck %s --check-prefix INT32
// RUN: speqc opt %s -p 'split-weights{draft-format=mxfp4}' | filecheck %s --check-prefix MXFP4
// RUN: speqc opt %s -p 'split-weights{draft-format=nvfp4}' | filecheck %s --check-prefix NVFP4
// RUN: speqc opt %s -p 'split-weights{draft-format=nvfp4},split-weights{levels=m2}' | filecheck %s --check-prefix ANEW
// RUN: speqc opt %s -p 'split-weights{draft-format=mxfp4},form-draft-verify,verify-speq' | filecheck %s --check-prefix DRAFT
// RUN: sed '/@small from/s/exponents = [^>]*>, //' %s | not speqc opt -p 'split-weights{draft-format=int4}' 2>&1 | filecheck %s --check-prefix COUNTS
// RUN: not speqc opt %s -p 'split-weights{draft-format=nf4}' 2>&1 | filecheck %s --check-prefix FORMAT
// RUN: not speqc opt %s -p 'split-weights{draft-format=mxfp4 group-size=64}' 2>&1 | filecheck %s --check-prefix GROUP
// RUN: not speqc opt %s -p 'split-weights{draft-format=mxfp4 levels=m2}' 2>&1 | filecheck %s --check-prefix LEVELS
// RUN: not speqc opt %s -p 'split-weights{draft-format=mxfp4 codebook=paper}' 2>&1 | filecheck %s --check-prefix BOOK
// RUN: not speqc opt %s -p 'split-weights{draft-format=mxfp4},form-draft-verify,choose-views{draft-views="small=8"}' 2>&1 | filecheck %s --check-prefix VIEWS
// RUN: not speqc opt %s -p 'split-weights{draft-format=mxfp4},form-draft-verify,choose-views{draft-views="other=8"}' 2>&1 | filecheck %s --check-prefix OTHER

// A weight that a product reads gets a copy, and no code book; one that has Inf or NaN stays plain.

// INT4-DAG: speq.weight @table {{.*}}, kept = "embedding only"}
// INT4-DAG: speq.weight @small {{.*}}zeros = 1 : i64, copy = "int4", group_size = 64 : i64}
// INT4-DAG: speq.weight @odd {{.*}}, kept = "it has Inf or NaN, which a copy in int4 cannot hold"}

// INT32: speq.weight @small {{.*}}, copy = "int4", group_size = 32 : i64}
// MXFP4: speq.weight @small {{.*}}, copy = "mxfp4", group_size = 32 : i64}

// The largest exponents are 15 and 17: |w| < 2 and 8. E4M3 goes to 448, and E2M1 to 6.
// NVFP4-DAG: speq.weight @small {{.*}}, copy = "nvfp4", group_size = 16 : i64, shift = -10 : i64}
// NVFP4-DAG: speq.weight @large {{.*}}, copy = "nvfp4", group_size = 16 : i64, shift = -8 : i64}

// ANEW-NOT: copy
// ANEW: speq.weight @small {{.*}}zeros = 1 : i64, codebook = "sets", levels = "m2", group_size = 64 : i64}

// The draft reads copies; what has none it reads in full.
// DRAFT-LABEL: func.func @full
// DRAFT-NEXT:    speq.embedding
// DRAFT-NEXT:    speq.view @small : !speq.view<2x4, full>
// DRAFT-LABEL: func.func @draft
// DRAFT-NEXT:    speq.embedding
// DRAFT-NEXT:    speq.view @small : !speq.view<2x4, draft>
// DRAFT-NEXT:    speq.view @large : !speq.view<2x4, draft>
// DRAFT-NEXT:    speq.view @odd : !speq.view<2x4, full>

// COUNTS: error: weight @small: its declaration has no histogram of exponents, which a copy in int4 needs
// FORMAT: error: unknown draft format 'nf4': choose one of bsfp, int4, mxfp4, nvfp4
// GROUP:  error: mxfp4 has groups of 32: leave the group size out, or give 32
// LEVELS: error: mxfp4 has levels of its own: leave out levels
// BOOK:   error: mxfp4 splits no weight: leave out codebook
// VIEWS:  error: draft views: 'small' matches only weights that are not split: they have no wider views{{$}}
// OTHER:  error: draft views: 'other' matches no weight that is split, as none is

speq.weight @table from "t" : tensor<2x4xf16> {digest = "sha256:0"}
speq.weight @small from "s" : tensor<2x4xf16> {digest = "sha256:1", exponents = array<i64: 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 1 : i64}
speq.weight @large from "l" : tensor<2x4xf16> {digest = "sha256:2", exponents = array<i64: 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 2 : i64}
speq.weight @odd from "o" : tensor<2x4xf16> {digest = "sha256:3", exponents = array<i64: 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1>, zeros = 1 : i64}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x4xf16> {
  %x = speq.embedding @table[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x2xf16>
  %s = speq.view @small : !speq.view<2x4, full>
  %l = speq.view @large : !speq.view<2x4, full>
  %o = speq.view @odd : !speq.view<2x4, full>
  %a = speq.matmul %x, %s : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  %b = speq.matmul %x, %l : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  %c = speq.matmul %x, %o : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  func.return %a : tensor<1x?x4xf16>
}
