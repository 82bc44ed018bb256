// RUN: speqc opt %s -p raise-rms-norm --split-input-file | filecheck %s

// As PyTorch spells it: squares, mean, root, reciprocal in f32, rounding, then the scale.

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %{{.*}} = speq.rms_norm %{{.*}}, %{{.*}} {epsilon = 1.000000e-06 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    func.return
func.func @main(%x: tensor<1x?x64xf16>, %scale: tensor<64xf16>) -> tensor<1x?x64xf16> {
  %two = onnx.Constant dense<2.0> : tensor<f32>
  %last = onnx.Constant dense<-1> : tensor<1xi64>
  %epsilon = onnx.Constant dense<1.0e-06> : tensor<f32>
  %wide = onnx.Cast %x {to = 1 : i64} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf32>
  %squares = onnx.Pow %wide, %two : (tensor<1x?x64xf32>, tensor<f32>) -> tensor<1x?x64xf32>
  %mean = onnx.ReduceMean %squares, %last {keepdims = 1 : i64} : (tensor<1x?x64xf32>, tensor<1xi64>) -> tensor<1x?x1xf32>
  %moved = onnx.Add %mean, %epsilon : (tensor<1x?x1xf32>, tensor<f32>) -> tensor<1x?x1xf32>
  %root = onnx.Sqrt %moved : (tensor<1x?x1xf32>) -> tensor<1x?x1xf32>
  %inverse = onnx.Reciprocal %root : (tensor<1x?x1xf32>) -> tensor<1x?x1xf32>
  %normal = onnx.Mul %wide, %inverse : (tensor<1x?x64xf32>, tensor<1x?x1xf32>) -> tensor<1x?x64xf32>
  %rounded = onnx.Cast %normal {to = 10 : i64} : (tensor<1x?x64xf32>) -> tensor<1x?x64xf16>
  %y = onnx.Mul %scale, %rounded : (tensor<64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  func.return %y : tensor<1x?x64xf16>
}

// -----

// x * x, 1 / root, axes as an attribute, the scale in f32 before rounding (Gemma).

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %{{.*}} = speq.rms_norm %{{.*}}, %{{.*}} {epsilon = 1.000000e-05 : f32, scale_in_f32} : (tensor<1x?x64xf16>, tensor<64xf32>) -> tensor<1x?x64xf16>
func.func @main(%x: tensor<1x?x64xf16>, %scale: tensor<64xf32>) -> tensor<1x?x64xf16> {
  %one = onnx.Constant dense<1.0> : tensor<f32>
  %epsilon = onnx.Constant dense<1.0e-05> : tensor<f32>
  %wide = onnx.Cast %x {to = 1 : i64} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf32>
  %squares = onnx.Mul %wide, %wide : (tensor<1x?x64xf32>, tensor<1x?x64xf32>) -> tensor<1x?x64xf32>
  %mean = onnx.ReduceMean %squares {axes = array<i64: 2>} : (tensor<1x?x64xf32>) -> tensor<1x?x1xf32>
  %moved = onnx.Add %epsilon, %mean : (tensor<f32>, tensor<1x?x1xf32>) -> tensor<1x?x1xf32>
  %root = onnx.Sqrt %moved : (tensor<1x?x1xf32>) -> tensor<1x?x1xf32>
  %inverse = onnx.Div %one, %root : (tensor<f32>, tensor<1x?x1xf32>) -> tensor<1x?x1xf32>
  %normal = onnx.Mul %inverse, %wide : (tensor<1x?x1xf32>, tensor<1x?x64xf32>) -> tensor<1x?x64xf32>
  %scaled = onnx.Mul %normal, %scale : (tensor<1x?x64xf32>, tensor<64xf32>) -> tensor<1x?x64xf32>
  %y = onnx.Cast %scaled {to = 10 : i64} : (tensor<1x?x64xf32>) -> tensor<1x?x64xf16>
  func.return %y : tensor<1x?x64xf16>
}

// -----

// Mean and root in f16 round otherwise than speq.rms_norm: left as they are.

// CHECK-LABEL: func.func @main
// CHECK-NOT:     speq.rms_norm
// CHECK:         onnx.ReduceMean
func.func @main(%x: tensor<1x?x64xf16>, %scale: tensor<64xf16>) -> tensor<1x?x64xf16> {
  %two = onnx.Constant dense<2.0> : tensor<f16>
  %last = onnx.Constant dense<-1> : tensor<1xi64>
  %epsilon = onnx.Constant dense<1.0e-06> : tensor<f16>
  %squares = onnx.Pow %x, %two : (tensor<1x?x64xf16>, tensor<f16>) -> tensor<1x?x64xf16>
  %mean = onnx.ReduceMean %squares, %last : (tensor<1x?x64xf16>, tensor<1xi64>) -> tensor<1x?x1xf16>
  %moved = onnx.Add %mean, %epsilon : (tensor<1x?x1xf16>, tensor<f16>) -> tensor<1x?x1xf16>
  %root = onnx.Sqrt %moved : (tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
  %inverse = onnx.Reciprocal %root : (tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
  %normal = onnx.Mul %x, %inverse : (tensor<1x?x64xf16>, tensor<1x?x1xf16>) -> tensor<1x?x64xf16>
  %y = onnx.Mul %scale, %normal : (tensor<64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  func.return %y : tensor<1x?x64xf16>
}

// -----

// A division by the root rounds once where the operation rounds twice: left as it is.

// CHECK-LABEL: func.func @main
// CHECK-NOT:     speq.rms_norm
// CHECK:         onnx.Div
func.func @main(%x: tensor<1x?x64xf32>, %scale: tensor<64xf32>) -> tensor<1x?x64xf32> {
  %last = onnx.Constant dense<-1> : tensor<1xi64>
  %epsilon = onnx.Constant dense<1.0e-06> : tensor<f32>
  %squares = onnx.Mul %x, %x : (tensor<1x?x64xf32>, tensor<1x?x64xf32>) -> tensor<1x?x64xf32>
  %mean = onnx.ReduceMean %squares, %last : (tensor<1x?x64xf32>, tensor<1xi64>) -> tensor<1x?x1xf32>
  %moved = onnx.Add %mean, %epsilon : (tensor<1x?x1xf32>, tensor<f32>) -> tensor<1x?x1xf32>
  %root = onnx.Sqrt %moved : (tensor<1x?x1xf32>) -> tensor<1x?x1xf32>
  %normal = onnx.Div %x, %root : (tensor<1x?x64xf32>, tensor<1x?x1xf32>) -> tensor<1x?x64xf32>
  %y = onnx.Mul %scale, %normal : (tensor<64xf32>, tensor<1x?x64xf32>) -> tensor<1x?x64xf32>
  func.return %y : tensor<1x?x64xf32>
}

// -----

// Operators that say it themselves.

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %[[A:.*]] = speq.rms_norm %{{.*}}, %{{.*}} {epsilon = 1.000000e-05 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    %[[B:.*]] = speq.rms_norm %[[A]], %{{.*}} {epsilon = 1.000000e-06 : f32, scale_in_f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
// CHECK-NEXT:    func.return %[[B]] : tensor<1x?x64xf16>
func.func @main(%x: tensor<1x?x64xf16>, %scale: tensor<64xf16>) -> tensor<1x?x64xf16> {
  %a = onnx.RMSNormalization %x, %scale : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  %b = onnx.SimplifiedLayerNormalization %a, %scale {axis = -1 : i64, epsilon = 1.0e-06 : f32} : (tensor<1x?x64xf16>, tensor<64xf16>) -> tensor<1x?x64xf16>
  func.return %b : tensor<1x?x64xf16>
}
