// RUN: speqc opt %s -p predicate-vectors | filecheck %s

// What lies between two products with one predicate is computed for the same rows; what others
// read too is not, nor what made the predicate.

// CHECK:      func.func @full(%x: tensor<1x?x64xf16>, %w: tensor<1x?x1xf16>, %a: !pe.stream<!speq.view<64x64, full>>, %b: !pe.stream<!speq.view<64x64, full>>, %c: !pe.stream<!speq.view<64x64, full>>) -> (tensor<1x?x64xf16>, tensor<1x?x64xf16>) {
// CHECK-NEXT: %chosen = pe.vector "Cast"(%w) {arguments = {to = 9 : i64}} : (tensor<1x?x1xf16>) -> tensor<1x?x1xi1>
// CHECK-NEXT: %read_twice = pe.vector "Abs"(%x) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %y = pe.gemm %read_twice, %a when %chosen : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %s = pe.vector "Sigmoid"(%y) when %chosen : tensor<1x?x1xi1> : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %m = pe.vector "Mul"(%y, %s) when %chosen : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %sizes = pe.immediate dense<[-1, 64]> : tensor<2xi64>
// CHECK-NEXT: %flat = pe.vector "Reshape"(%m, %sizes) : (tensor<1x?x64xf16>, tensor<2xi64>) -> tensor<?x64xf16>
// CHECK-NEXT: %neg = pe.vector "Neg"(%flat) when %chosen : tensor<1x?x1xi1> : (tensor<?x64xf16>) -> tensor<?x64xf16>
// CHECK-NEXT: %back = pe.immediate dense<[1, -1, 64]> : tensor<3xi64>
// CHECK-NEXT: %again = pe.vector "Reshape"(%neg, %back) : (tensor<?x64xf16>, tensor<3xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %z = pe.gemm %again, %b when %chosen : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %v = pe.gemm %read_twice, %c : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
// CHECK-NEXT: func.return %z, %v : tensor<1x?x64xf16>, tensor<1x?x64xf16>
builtin.module {
  func.func @full(%x: tensor<1x?x64xf16>, %w: tensor<1x?x1xf16>, %a: !pe.stream<!speq.view<64x64, full>>, %b: !pe.stream<!speq.view<64x64, full>>, %c: !pe.stream<!speq.view<64x64, full>>) -> (tensor<1x?x64xf16>, tensor<1x?x64xf16>) {
    %chosen = pe.vector "Cast"(%w) {arguments = {to = 9 : i64}} : (tensor<1x?x1xf16>) -> tensor<1x?x1xi1>
    %read_twice = pe.vector "Abs"(%x) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
    %y = pe.gemm %read_twice, %a when %chosen : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
    %s = pe.vector "Sigmoid"(%y) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
    %m = pe.vector "Mul"(%y, %s) : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
    %sizes = pe.immediate dense<[-1, 64]> : tensor<2xi64>
    %flat = pe.vector "Reshape"(%m, %sizes) : (tensor<1x?x64xf16>, tensor<2xi64>) -> tensor<?x64xf16>
    %neg = pe.vector "Neg"(%flat) : (tensor<?x64xf16>) -> tensor<?x64xf16>
    %back = pe.immediate dense<[1, -1, 64]> : tensor<3xi64>
    %again = pe.vector "Reshape"(%neg, %back) : (tensor<?x64xf16>, tensor<3xi64>) -> tensor<1x?x64xf16>
    %z = pe.gemm %again, %b when %chosen : tensor<1x?x1xi1> : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
    %v = pe.gemm %read_twice, %c : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
    func.return %z, %v : tensor<1x?x64xf16>, tensor<1x?x64xf16>
  }
}
