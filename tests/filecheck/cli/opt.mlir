// RUN: speqc opt %s | filecheck %s
// RUN: xdsl-opt %s | filecheck %s
// RUN: speqc opt %s | speqc opt | filecheck %s
// RUN: speqc opt %s -p cse | filecheck %s --check-prefix CSE
// RUN: speqc opt %s --print-debuginfo | filecheck %s --check-prefix LOCATION
// RUN: not speqc opt %s -p no-such-pass 2>&1 | filecheck %s --check-prefix UNKNOWN
// RUN: not speqc opt no-such-file.mlir 2>&1 | filecheck %s --check-prefix MISSING

// Dialects of ours and of xDSL stand side by side, and passes of xDSL run on both.

// CHECK:      func.func @twice(%{{.*}}: tensor<1x?xi64>) -> (tensor<1x?xi64>, tensor<1x?xi64>) {
// CHECK-NEXT:   %[[A:.*]] = speq.positions %{{.*}} : tensor<1x?xi64>
// CHECK-NEXT:   %[[B:.*]] = speq.positions %{{.*}} : tensor<1x?xi64>
// CHECK-NEXT:   func.return %[[A]], %[[B]] : tensor<1x?xi64>, tensor<1x?xi64>

// CSE:          speq.positions
// CSE-NOT:      speq.positions

// LOCATION:     speq.positions %{{.*}} : tensor<1x?xi64> loc("/model/positions")

// UNKNOWN:      error: -p: Unrecognized passes: ['no-such-pass']
// MISSING:      error: no-such-file.mlir: No such file or directory

func.func @twice(%tokens: tensor<1x?xi64>) -> (tensor<1x?xi64>, tensor<1x?xi64>) {
  %a = speq.positions %tokens : tensor<1x?xi64> loc("/model/positions")
  %b = speq.positions %tokens : tensor<1x?xi64>
  func.return %a, %b : tensor<1x?xi64>, tensor<1x?xi64>
}
