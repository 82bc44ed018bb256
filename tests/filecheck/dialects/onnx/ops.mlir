// RUN: speqc opt %s | filecheck %s
// RUN: speqc opt %s | speqc opt | filecheck %s
// RUN: speqc opt %s --print-op-generic | speqc opt | filecheck %s
// RUN: speqc opt %s --print-op-generic | filecheck %s --check-prefix=GENERIC
// RUN: speqc opt %s --print-debuginfo | speqc opt --print-debuginfo | filecheck %s --check-prefix=LOC

func.func @main(%ids: tensor<1x?xi64> {onnx.name = "input_ids"}, %x: tensor<1x?x8xf16>) -> tensor<1x?x8xf16> {
  // CHECK: %none = onnx.NoValue
  // GENERIC: %none = "onnx.NoValue"() : () -> none
  %none = onnx.NoValue
  // CHECK-NEXT: %plain = onnx.initializer "plain.weight", "sha256:00" : tensor<16x8xf32>
  %plain = onnx.initializer "plain.weight", "sha256:00" : tensor<16x8xf32>
  // CHECK-NEXT: %table = onnx.initializer "embed.weight", "sha256:01" {zeros = 1 : i64, exponents = array<i64: 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 63, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>} : tensor<16x8xf16>
  // GENERIC: %table = "onnx.initializer"() <{ref = "embed.weight", digest = "sha256:01", zeros = 1 : i64, exponents = array<i64: 1, {{.*}}>}> : () -> tensor<16x8xf16>
  %table = onnx.initializer "embed.weight", "sha256:01" {zeros = 1 : i64, exponents = array<i64: 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 63, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>} : tensor<16x8xf16>
  // CHECK-NEXT: %axes = onnx.Constant dense<[0, 1]> : tensor<2xi64>
  // GENERIC: %axes = "onnx.Constant"() <{value = dense<[0, 1]> : tensor<2xi64>}> : () -> tensor<2xi64>
  %axes = onnx.Constant dense<[0, 1]> : tensor<2xi64>
  // CHECK-NEXT: %scale = onnx.Constant dense<5.000000e-01> : tensor<8xf16>
  %scale = onnx.Constant dense<5.000000e-01> : tensor<8xf16>
  // CHECK-NEXT: %flag = onnx.Constant dense<true> : tensor<i1>
  %flag = onnx.Constant dense<true> : tensor<i1>
  // CHECK-NEXT: %empty = onnx.Constant dense<> : tensor<0xi64>
  %empty = onnx.Constant dense<> : tensor<0xi64>
  // CHECK-NEXT: %marked = onnx.Constant dense<1> : tensor<i64> {test.mark}
  %marked = onnx.Constant dense<1> : tensor<i64> {test.mark}
  // CHECK-NEXT: %rows = onnx.Gather %table, %ids {axis = 0 : i64} : (tensor<16x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
  // GENERIC: %rows = "onnx.Gather"(%table, %ids) <{axis = 0 : i64}> : (tensor<16x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16>
  // LOC: %rows = onnx.Gather %table, %ids {axis = 0 : i64} : (tensor<16x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16> loc("/model/embed/Gather")
  %rows = onnx.Gather %table, %ids {axis = 0 : i64} : (tensor<16x8xf16>, tensor<1x?xi64>) -> tensor<1x?x8xf16> loc("/model/embed/Gather")
  // CHECK-NEXT: %turned = onnx.Transpose %rows {perm = array<i64: 0, 2, 1>} : (tensor<1x?x8xf16>) -> tensor<1x8x?xf16>
  %turned = onnx.Transpose %rows {perm = array<i64: 0, 2, 1>} : (tensor<1x?x8xf16>) -> tensor<1x8x?xf16>
  // CHECK-NEXT: %norm = onnx.SimplifiedLayerNormalization %rows, %scale {epsilon = 1.000000e-05 : f32} : (tensor<1x?x8xf16>, tensor<8xf16>) -> tensor<1x?x8xf16>
  %norm = onnx.SimplifiedLayerNormalization %rows, %scale {epsilon = 1.000000e-05 : f32} : (tensor<1x?x8xf16>, tensor<8xf16>) -> tensor<1x?x8xf16>
  // CHECK-NEXT: %sum, %mean, %deviation, %residual = onnx.microsoft.SkipSimplifiedLayerNormalization %rows, %norm, %scale {test.kept = 1 : i64} : (tensor<1x?x8xf16>, tensor<1x?x8xf16>, tensor<8xf16>) -> (tensor<1x?x8xf16>, none, none, tensor<1x?x8xf16>)
  %sum, %mean, %deviation, %residual = onnx.microsoft.SkipSimplifiedLayerNormalization %rows, %norm, %scale {test.kept = 1 : i64} : (tensor<1x?x8xf16>, tensor<1x?x8xf16>, tensor<8xf16>) -> (tensor<1x?x8xf16>, none, none, tensor<1x?x8xf16>)
  // CHECK-NEXT: %max = onnx.Constant dense<6.000000e+00> : tensor<f16>
  // CHECK-NEXT: %clipped = onnx.Clip %sum, %none, %max : (tensor<1x?x8xf16>, none, tensor<f16>) -> tensor<1x?x8xf16>
  %max = onnx.Constant dense<6.000000e+00> : tensor<f16>
  %clipped = onnx.Clip %sum, %none, %max : (tensor<1x?x8xf16>, none, tensor<f16>) -> tensor<1x?x8xf16>
  // CHECK-NEXT: %gelu = onnx.Gelu %clipped {approximate = "tanh"} : (tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
  %gelu = onnx.Gelu %clipped {approximate = "tanh"} : (tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
  func.return %gelu : tensor<1x?x8xf16>
}
