// RUN: speqc opt %s -p expand-fused --split-input-file | filecheck %s

// The normalisation of a sum of three, which is a result too.

// CHECK-LABEL: func.func @main
// CHECK:         %[[TWO:.*]] = onnx.Add %x, %skip : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[SUM:.*]] = onnx.Add %[[TWO]], %bias : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[Y:.*]] = onnx.LayerNormalization %[[SUM]], %gamma, %beta {axis = -1 : i64, epsilon = 1.000000e-05 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    func.return %[[Y]], %[[SUM]] : tensor<1x?x64xf16>, tensor<1x?x64xf16>
func.func @main(%x: tensor<1x?x64xf16>, %skip: tensor<1x?x64xf16>, %gamma: tensor<64xf16>, %beta: tensor<64xf16>, %bias: tensor<64xf16>) -> (tensor<1x?x64xf16>, tensor<1x?x64xf16>) {
  %y, %mean, %inverse, %sum = onnx.microsoft.SkipLayerNormalization %x, %skip, %gamma, %beta, %bias {epsilon = 1.0e-05 : f32} : (tensor<1x?x64xf16>, tensor<1x?x64xf16>, tensor<64xf16>, tensor<64xf16>, tensor<64xf16>) -> (tensor<1x?x64xf16>, none, none, tensor<1x?x64xf16>)
  func.return %y, %sum : tensor<1x?x64xf16>, tensor<1x?x64xf16>
}

// -----

// Without a mean there is no beta; `raise-rms-norm` takes it from here.

// CHECK-LABEL: func.func @main
// CHECK:         %[[SUM:.*]] = onnx.Add %x, %skip : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[Y:.*]] = onnx.SimplifiedLayerNormalization %[[SUM]], %gamma {axis = -1 : i64, epsilon = 1.000000e-06 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    func.return %[[Y]], %[[SUM]] : tensor<1x?x64xf16>, tensor<1x?x64xf16>
func.func @main(%x: tensor<1x?x64xf16>, %skip: tensor<1x?x64xf16>, %gamma: tensor<64xf16>) -> (tensor<1x?x64xf16>, tensor<1x?x64xf16>) {
  %y, %mean, %inverse, %sum = onnx.microsoft.SkipSimplifiedLayerNormalization %x, %skip, %gamma {epsilon = 1.0e-06 : f32} : (tensor<1x?x64xf16>, tensor<1x?x64xf16>, tensor<64xf16>) -> (tensor<1x?x64xf16>, none, none, tensor<1x?x64xf16>)
  func.return %y, %sum : tensor<1x?x64xf16>, tensor<1x?x64xf16>
}

// -----

// CHECK-LABEL: func.func @main
// CHECK:         %[[SUM:.*]] = onnx.Add %x, %bias : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[FAST:.*]] = onnx.Gelu %[[SUM]] {approximate = "tanh"} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[PLAIN:.*]] = onnx.Gelu %[[FAST]] {approximate = "tanh"} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[SUM:.*]] = onnx.Add %[[PLAIN]], %bias : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    onnx.Gelu %[[SUM]] {approximate = "none"} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
func.func @main(%x: tensor<1x?x64xf16>, %bias: tensor<64xf16>) -> tensor<1x?x64xf16> {
  %fast = onnx.microsoft.FastGelu %x, %bias : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  %plain = onnx.microsoft.FastGelu %fast : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %biased = onnx.microsoft.BiasGelu %plain, %bias : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  func.return %biased : tensor<1x?x64xf16>
}
