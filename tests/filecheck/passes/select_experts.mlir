// RUN: speqc opt %s -p select-experts | filecheck %s

// Two of two experts for each token. The file's tensor is a stack of two matrices [N, K], of
// which a batch of products picks two for each token; rows of tokens and choices are one dimension
// until they stand apart again behind the products, as [1, M, 2, ...].

// CHECK:      func.func @main(%tokens: tensor<1x?xi64>, %scores: tensor<?x3xf16>, %x: tensor<?x8xf16>) -> tensor<?x4xf16> {
// CHECK-NEXT: %two = onnx.Constant dense<2> : tensor<1xi64>
// CHECK-NEXT: %one = onnx.Constant dense<1> : tensor<1xi64>
// CHECK-NEXT: %sizes = onnx.Constant dense<[1, 2, 1]> : tensor<3xi64>
// CHECK-NEXT: %best, %index = onnx.TopK %scores, %two {axis = -1 : i64} : (tensor<?x3xf16>, tensor<1xi64>) -> (tensor<?x2xf16>, tensor<?x2xi64>)
// CHECK-NEXT: %x1 = onnx.Unsqueeze %x, %one : (tensor<?x8xf16>, tensor<1xi64>) -> tensor<?x1x8xf16>
// CHECK-NEXT: %x2 = onnx.Expand %x1, %sizes : (tensor<?x1x8xf16>, tensor<3xi64>) -> tensor<?x2x8xf16>
// CHECK-NEXT: %0 = onnx.Constant dense<[1, -1, 2, 8]> : tensor<4xi64>
// CHECK-NEXT: %1 = onnx.Reshape %x2, %0 : (tensor<?x2x8xf16>, tensor<4xi64>) -> tensor<1x?x2x8xf16>
// CHECK-NEXT: %2 = onnx.Constant dense<[1, -1, 2, 1]> : tensor<4xi64>
// CHECK-NEXT: %3 = onnx.Reshape %index, %2 : (tensor<?x2xi64>, tensor<4xi64>) -> tensor<1x?x2x1xi64>
// CHECK-NEXT: %4 = onnx.Constant dense<0.000000e+00> : tensor<f16>
// CHECK-NEXT: %5 = onnx.initializer "experts", "sha256:01" {part = 0 : i64, exponents = array<i64: 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 5 : i64} : tensor<4x8xf16>
// CHECK-NEXT: %6 = onnx.Transpose %5 {perm = array<i64: 1, 0>} : (tensor<4x8xf16>) -> tensor<8x4xf16>
// CHECK-NEXT: %7 = onnx.MatMul %1, %6 : (tensor<1x?x2x8xf16>, tensor<8x4xf16>) -> tensor<1x?x2x4xf16>
// CHECK-NEXT: %8 = onnx.Constant dense<0> : tensor<1xi64>
// CHECK-NEXT: %9 = onnx.Equal %3, %8 : (tensor<1x?x2x1xi64>, tensor<1xi64>) -> tensor<1x?x2x1xi1>
// CHECK-NEXT: %10 = onnx.Where %9, %7, %4 : (tensor<1x?x2x1xi1>, tensor<1x?x2x4xf16>, tensor<f16>) -> tensor<1x?x2x4xf16>
// CHECK-NEXT: %11 = onnx.initializer "experts", "sha256:02" {part = 1 : i64, exponents = array<i64: 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 0 : i64} : tensor<4x8xf16>
// CHECK-NEXT: %12 = onnx.Transpose %11 {perm = array<i64: 1, 0>} : (tensor<4x8xf16>) -> tensor<8x4xf16>
// CHECK-NEXT: %13 = onnx.MatMul %1, %12 : (tensor<1x?x2x8xf16>, tensor<8x4xf16>) -> tensor<1x?x2x4xf16>
// CHECK-NEXT: %14 = onnx.Constant dense<1> : tensor<1xi64>
// CHECK-NEXT: %15 = onnx.Equal %3, %14 : (tensor<1x?x2x1xi64>, tensor<1xi64>) -> tensor<1x?x2x1xi1>
// CHECK-NEXT: %16 = onnx.Where %15, %13, %10 : (tensor<1x?x2x1xi1>, tensor<1x?x2x4xf16>, tensor<1x?x2x4xf16>) -> tensor<1x?x2x4xf16>
// CHECK-NEXT: %tanh = onnx.Tanh %16 : (tensor<1x?x2x4xf16>) -> tensor<1x?x2x4xf16>
// CHECK-NEXT: %17 = onnx.Constant dense<[1, -1, 2, 1]> : tensor<4xi64>
// CHECK-NEXT: %18 = onnx.Reshape %best, %17 : (tensor<?x2xf16>, tensor<4xi64>) -> tensor<1x?x2x1xf16>
// CHECK-NEXT: %weighted = onnx.Mul %tanh, %18 : (tensor<1x?x2x4xf16>, tensor<1x?x2x1xf16>) -> tensor<1x?x2x4xf16>
// CHECK-NEXT: %19 = onnx.Constant dense<[-1, 2, 4]> : tensor<3xi64>
// CHECK-NEXT: %pairs = onnx.Reshape %weighted, %19 : (tensor<1x?x2x4xf16>, tensor<3xi64>) -> tensor<?x2x4xf16>
// CHECK-NEXT: %sum = onnx.ReduceSum %pairs, %one {keepdims = 0 : i64} : (tensor<?x2x4xf16>, tensor<1xi64>) -> tensor<?x4xf16>
// CHECK-NEXT: func.return %sum : tensor<?x4xf16>
builtin.module attributes {onnx.opset = 20 : i64} {
  func.func @main(%tokens: tensor<1x?xi64>, %scores: tensor<?x3xf16>, %x: tensor<?x8xf16>) -> (tensor<?x4xf16>) {
    %stack = onnx.initializer "experts", "sha256:00" {parts = [["sha256:01", array<i64: 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, 5 : i64], ["sha256:02", array<i64: 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, 0 : i64]]} : tensor<2x4x8xf16>
    %two = onnx.Constant dense<[2]> : tensor<1xi64>
    %flat = onnx.Constant dense<[-1]> : tensor<1xi64>
    %pair = onnx.Constant dense<[-1, 2, 4]> : tensor<3xi64>
    %one = onnx.Constant dense<[1]> : tensor<1xi64>
    %last = onnx.Constant dense<[-1]> : tensor<1xi64>
    %sizes = onnx.Constant dense<[1, 2, 1]> : tensor<3xi64>
    %rows = onnx.Constant dense<[-1, 8, 1]> : tensor<3xi64>
    %best, %index = onnx.TopK %scores, %two {axis = -1 : i64} : (tensor<?x3xf16>, tensor<1xi64>) -> (tensor<?x2xf16>, tensor<?x2xi64>)
    %names = onnx.Reshape %index, %flat : (tensor<?x2xi64>, tensor<1xi64>) -> tensor<?xi64>
    %weights = onnx.Gather %stack, %names : (tensor<2x4x8xf16>, tensor<?xi64>) -> tensor<?x4x8xf16>
    %x1 = onnx.Unsqueeze %x, %one : (tensor<?x8xf16>, tensor<1xi64>) -> tensor<?x1x8xf16>
    %x2 = onnx.Expand %x1, %sizes : (tensor<?x1x8xf16>, tensor<3xi64>) -> tensor<?x2x8xf16>
    %vectors = onnx.Reshape %x2, %rows : (tensor<?x2x8xf16>, tensor<3xi64>) -> tensor<?x8x1xf16>
    %products = onnx.MatMul %weights, %vectors : (tensor<?x4x8xf16>, tensor<?x8x1xf16>) -> tensor<?x4x1xf16>
    %squeezed = onnx.Squeeze %products, %last : (tensor<?x4x1xf16>, tensor<1xi64>) -> tensor<?x4xf16>
    %tanh = onnx.Tanh %squeezed : (tensor<?x4xf16>) -> tensor<?x4xf16>
    %column = onnx.Reshape %best, %flat : (tensor<?x2xf16>, tensor<1xi64>) -> tensor<?xf16>
    %weight = onnx.Unsqueeze %column, %last : (tensor<?xf16>, tensor<1xi64>) -> tensor<?x1xf16>
    %weighted = onnx.Mul %tanh, %weight : (tensor<?x4xf16>, tensor<?x1xf16>) -> tensor<?x4xf16>
    %pairs = onnx.Reshape %weighted, %pair : (tensor<?x4xf16>, tensor<3xi64>) -> tensor<?x2x4xf16>
    %sum = onnx.ReduceSum %pairs, %one {keepdims = 0 : i64} : (tensor<?x2x4xf16>, tensor<1xi64>) -> tensor<?x4xf16>
    func.return %sum : tensor<?x4xf16>
  }
}
