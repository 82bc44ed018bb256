// RUN: speqc opt %s -p raise-experts | filecheck %s

// Two experts of which a token chooses one. The routing weight of the first comes from a mask of
// indices, the second's result is selected. Its product and the one before it get predicates; all
// predicates are known before the first of these products. The gate of @shared is never zero: its
// product keeps all rows.

// CHECK:      speq.weight @router from "r" : tensor<8x2xf16> {digest = "sha256:00"}
// CHECK-NEXT: speq.weight @up from "u" : tensor<8x4xf16> {digest = "sha256:01"}
// CHECK-NEXT: speq.weight @down from "d" : tensor<4x8xf16> {digest = "sha256:02"}
// CHECK-NEXT: speq.weight @other from "o" : tensor<8x8xf16> {digest = "sha256:03"}
// CHECK-NEXT: speq.weight @shared from "s" : tensor<8x8xf16> {digest = "sha256:04"}
// CHECK-NEXT: speq.weight @gate from "g" : tensor<8x1xf16> {digest = "sha256:05"}
// CHECK-NEXT: func.func @full(%x: tensor<1x?x8xf16>) -> tensor<1x?x8xf16> attributes {speq.experts = [array<i64: 2, 1>]} {
// CHECK-NEXT: %zero = onnx.Constant dense<0> : tensor<i64>
// CHECK-NEXT: %nought = onnx.Constant dense<0.000000e+00> : tensor<f16>
// CHECK-NEXT: %k = onnx.Constant dense<1> : tensor<1xi64>
// CHECK-NEXT: %up = speq.view @up : !speq.view<8x4, full>
// CHECK-NEXT: %router = speq.view @router : !speq.view<8x2, full>
// CHECK-NEXT: %scores = speq.matmul %x, %router : (tensor<1x?x8xf16>, !speq.view<8x2, full>) -> tensor<1x?x2xf16>
// CHECK-NEXT: %best, %index = onnx.TopK %scores, %k {axis = -1 : i64} : (tensor<1x?x2xf16>, tensor<1xi64>) -> (tensor<1x?x1xf16>, tensor<1x?x1xi64>)
// CHECK-NEXT: %is = onnx.Equal %index, %zero : (tensor<1x?x1xi64>, tensor<i64>) -> tensor<1x?x1xi1>
// CHECK-NEXT: %mask = onnx.Cast %is {to = 10 : i64} : (tensor<1x?x1xi1>) -> tensor<1x?x1xf16>
// CHECK-NEXT: %weight = onnx.Mul %best, %mask : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
// CHECK-NEXT: %chosen = onnx.Cast %weight {to = 9 : i64} : (tensor<1x?x1xf16>) -> tensor<1x?x1xi1>
// CHECK-NEXT: %chosen_1 = onnx.Not %is : (tensor<1x?x1xi1>) -> tensor<1x?x1xi1>
// CHECK-NEXT: %h = speq.matmul %x, %up when %chosen : tensor<1x?x1xi1> : (tensor<1x?x8xf16>, !speq.view<8x4, full>) -> tensor<1x?x4xf16>
// CHECK-NEXT: %act = onnx.Relu %h : (tensor<1x?x4xf16>) -> tensor<1x?x4xf16>
// CHECK-NEXT: %down = speq.view @down : !speq.view<4x8, full>
// CHECK-NEXT: %first = speq.matmul %act, %down when %chosen : tensor<1x?x1xi1> : (tensor<1x?x4xf16>, !speq.view<4x8, full>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %other = speq.view @other : !speq.view<8x8, full>
// CHECK-NEXT: %second = speq.matmul %x, %other when %chosen_1 : tensor<1x?x1xi1> : (tensor<1x?x8xf16>, !speq.view<8x8, full>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %shared = speq.view @shared : !speq.view<8x8, full>
// CHECK-NEXT: %third = speq.matmul %x, %shared : (tensor<1x?x8xf16>, !speq.view<8x8, full>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %a = onnx.Mul %first, %weight : (tensor<1x?x8xf16>, tensor<1x?x1xf16>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %b = onnx.Where %chosen_1, %second, %nought : (tensor<1x?x1xi1>, tensor<1x?x8xf16>, tensor<f16>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %sum = onnx.Add %a, %b : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %gate = speq.view @gate : !speq.view<8x1, full>
// CHECK-NEXT: %g = speq.matmul %x, %gate : (tensor<1x?x8xf16>, !speq.view<8x1, full>) -> tensor<1x?x1xf16>
// CHECK-NEXT: %s = onnx.Sigmoid %g : (tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
// CHECK-NEXT: %c = onnx.Mul %third, %s : (tensor<1x?x8xf16>, tensor<1x?x1xf16>) -> tensor<1x?x8xf16>
// CHECK-NEXT: %all = onnx.Add %sum, %c : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
// CHECK-NEXT: func.return %all : tensor<1x?x8xf16>
builtin.module attributes {onnx.opset = 20 : i64} {
  speq.weight @router from "r" : tensor<8x2xf16> {digest = "sha256:00"}
  speq.weight @up from "u" : tensor<8x4xf16> {digest = "sha256:01"}
  speq.weight @down from "d" : tensor<4x8xf16> {digest = "sha256:02"}
  speq.weight @other from "o" : tensor<8x8xf16> {digest = "sha256:03"}
  speq.weight @shared from "s" : tensor<8x8xf16> {digest = "sha256:04"}
  speq.weight @gate from "g" : tensor<8x1xf16> {digest = "sha256:05"}
  func.func @full(%x: tensor<1x?x8xf16>) -> tensor<1x?x8xf16> {
    %zero = onnx.Constant dense<0> : tensor<i64>
    %nought = onnx.Constant dense<0.0> : tensor<f16>
    %k = onnx.Constant dense<[1]> : tensor<1xi64>
    %up = speq.view @up : !speq.view<8x4, full>
    %h = speq.matmul %x, %up : (tensor<1x?x8xf16>, !speq.view<8x4, full>) -> tensor<1x?x4xf16>
    %act = onnx.Relu %h : (tensor<1x?x4xf16>) -> tensor<1x?x4xf16>
    %down = speq.view @down : !speq.view<4x8, full>
    %first = speq.matmul %act, %down : (tensor<1x?x4xf16>, !speq.view<4x8, full>) -> tensor<1x?x8xf16>
    %other = speq.view @other : !speq.view<8x8, full>
    %second = speq.matmul %x, %other : (tensor<1x?x8xf16>, !speq.view<8x8, full>) -> tensor<1x?x8xf16>
    %shared = speq.view @shared : !speq.view<8x8, full>
    %third = speq.matmul %x, %shared : (tensor<1x?x8xf16>, !speq.view<8x8, full>) -> tensor<1x?x8xf16>
    %router = speq.view @router : !speq.view<8x2, full>
    %scores = speq.matmul %x, %router : (tensor<1x?x8xf16>, !speq.view<8x2, full>) -> tensor<1x?x2xf16>
    %best, %index = onnx.TopK %scores, %k {axis = -1 : i64} : (tensor<1x?x2xf16>, tensor<1xi64>) -> (tensor<1x?x1xf16>, tensor<1x?x1xi64>)
    %is = onnx.Equal %index, %zero : (tensor<1x?x1xi64>, tensor<i64>) -> tensor<1x?x1xi1>
    %mask = onnx.Cast %is {to = 10 : i64} : (tensor<1x?x1xi1>) -> tensor<1x?x1xf16>
    %weight = onnx.Mul %best, %mask : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
    %a = onnx.Mul %first, %weight : (tensor<1x?x8xf16>, tensor<1x?x1xf16>) -> tensor<1x?x8xf16>
    %not = onnx.Not %is : (tensor<1x?x1xi1>) -> tensor<1x?x1xi1>
    %b = onnx.Where %not, %second, %nought : (tensor<1x?x1xi1>, tensor<1x?x8xf16>, tensor<f16>) -> tensor<1x?x8xf16>
    %sum = onnx.Add %a, %b : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
    %gate = speq.view @gate : !speq.view<8x1, full>
    %g = speq.matmul %x, %gate : (tensor<1x?x8xf16>, !speq.view<8x1, full>) -> tensor<1x?x1xf16>
    %s = onnx.Sigmoid %g : (tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
    %c = onnx.Mul %third, %s : (tensor<1x?x8xf16>, tensor<1x?x1xf16>) -> tensor<1x?x8xf16>
    %all = onnx.Add %sum, %c : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
    func.return %all : tensor<1x?x8xf16>
  }
}
