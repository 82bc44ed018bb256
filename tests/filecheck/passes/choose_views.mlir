// RUN: speqc opt %s -p 'form-draft-verify,choose-views{draft-views="head=12"}' | filecheck %s
// RUN: speqc opt %s -p 'form-draft-verify,choose-views{draft-views="head=12,h*d=8"}' | filecheck %s --check-prefix LAST
// RUN: speqc opt %s -p 'form-draft-verify,choose-views{draft-views="head=16"}' | filecheck %s --check-prefix FULL
// RUN: speqc opt %s -p form-draft-verify,choose-views | filecheck %s --check-prefix NONE
// RUN: not speqc opt %s -p 'form-draft-verify,choose-views{draft-views="body=8"}' 2>&1 | filecheck %s --check-prefix BODY
// RUN: not speqc opt %s -p 'form-draft-verify,choose-views{draft-views="down=8"}' 2>&1 | filecheck %s --check-prefix KEPT
// RUN: not speqc opt %s -p 'form-draft-verify,choose-views{draft-views="head=6"}' 2>&1 | filecheck %s --check-prefix BITS

// The draft alone reads the wider view; a weight kept as FP16 has none.

// CHECK:      func.func @full
// CHECK:        speq.view @head : !speq.view<64x272, full>
// CHECK:      func.func @draft
// CHECK:        speq.view @down : !speq.view<64x64, full>
// CHECK:        %split = speq.view @head : !speq.view<64x272, wide12>
// CHECK-NEXT:   speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, wide12>) -> tensor<1x?x272xf16>

// LAST:       func.func @draft
// LAST:         speq.view @head : !speq.view<64x272, wide8>
// FULL:       func.func @draft
// FULL:         speq.view @head : !speq.view<64x272, full>
// NONE:       func.func @draft
// NONE:         speq.view @head : !speq.view<64x272, draft>

// BODY: error: draft views: 'body' matches no weight; there are head
// KEPT: error: draft views: 'down' matches only weights that are not split: they have no wider views; there are head
// BITS: error: draft views: 'head=6' is no assignment; expected PATTERN=BITS,PATTERN=BITS,... with 4, 8, 12 or 16 bits

speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
speq.weight @down from "down" : tensor<64x64xf16> {digest = "sha256:02", kept = "it has Inf or NaN"}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
  %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %kept = speq.view @down : !speq.view<64x64, full>
  %y = speq.matmul %x, %kept : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>
  %split = speq.view @head : !speq.view<64x272, full>
  %logits = speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
  func.return %logits : tensor<1x?x272xf16>
}
