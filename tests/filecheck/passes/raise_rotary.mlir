// RUN: speqc opt %s -p raise-rotary --split-input-file | filecheck %s

// Halves, by slices.

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %[[Y:.*]] = speq.rotary %{{.*}}, %{{.*}}, %{{.*}} : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
// CHECK-NEXT:    func.return %[[Y]]
func.func @main(%x: tensor<1x4x?x16xf16>, %cos: tensor<1x1x?x16xf16>, %sin: tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16> {
  %zero = onnx.Constant dense<0> : tensor<1xi64>
  %half = onnx.Constant dense<8> : tensor<1xi64>
  %end = onnx.Constant dense<9223372036854775807> : tensor<1xi64>
  %axis = onnx.Constant dense<-1> : tensor<1xi64>
  %first = onnx.Slice %x, %zero, %half, %axis : (tensor<1x4x?x16xf16>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x4x?x8xf16>
  %second = onnx.Slice %x, %half, %end, %axis : (tensor<1x4x?x16xf16>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x4x?x8xf16>
  %negative = onnx.Neg %second : (tensor<1x4x?x8xf16>) -> tensor<1x4x?x8xf16>
  %turned = onnx.Concat %negative, %first {axis = -1 : i64} : (tensor<1x4x?x8xf16>, tensor<1x4x?x8xf16>) -> tensor<1x4x?x16xf16>
  %a = onnx.Mul %turned, %sin : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  %b = onnx.Mul %cos, %x : (tensor<1x1x?x16xf16>, tensor<1x4x?x16xf16>) -> tensor<1x4x?x16xf16>
  %y = onnx.Add %a, %b : (tensor<1x4x?x16xf16>, tensor<1x4x?x16xf16>) -> tensor<1x4x?x16xf16>
  func.return %y : tensor<1x4x?x16xf16>
}

// -----

// Halves, by a split; tables without the dimensions of batch and heads.

// CHECK-LABEL: func.func @main
// CHECK:         %[[COS:.*]] = onnx.Reshape %cos, %{{.*}} : (tensor<?x16xf16>, tensor<4xi64>) -> tensor<1x1x?x16xf16>
// CHECK:         %[[SIN:.*]] = onnx.Reshape %sin, %{{.*}} : (tensor<1x?x16xf16>, tensor<4xi64>) -> tensor<1x1x?x16xf16>
// CHECK-NEXT:    %{{.*}} = speq.rotary %x, %[[COS]], %[[SIN]]
func.func @main(%x: tensor<1x4x?x16xf16>, %cos: tensor<?x16xf16>, %sin: tensor<1x?x16xf16>) -> tensor<1x4x?x16xf16> {
  %first, %second = onnx.Split %x {axis = 3 : i64, num_outputs = 2 : i64} : (tensor<1x4x?x16xf16>) -> (tensor<1x4x?x8xf16>, tensor<1x4x?x8xf16>)
  %negative = onnx.Neg %second : (tensor<1x4x?x8xf16>) -> tensor<1x4x?x8xf16>
  %turned = onnx.Concat %negative, %first {axis = 3 : i64} : (tensor<1x4x?x8xf16>, tensor<1x4x?x8xf16>) -> tensor<1x4x?x16xf16>
  %a = onnx.Mul %turned, %sin : (tensor<1x4x?x16xf16>, tensor<1x?x16xf16>) -> tensor<1x4x?x16xf16>
  %b = onnx.Mul %x, %cos : (tensor<1x4x?x16xf16>, tensor<?x16xf16>) -> tensor<1x4x?x16xf16>
  %y = onnx.Add %b, %a : (tensor<1x4x?x16xf16>, tensor<1x4x?x16xf16>) -> tensor<1x4x?x16xf16>
  func.return %y : tensor<1x4x?x16xf16>
}

// -----

// Interleaved pairs, by strided slices and a stack.

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %{{.*}} = speq.rotary %x, %cos, %sin {interleaved} : (tensor<1x4x?x16xf32>, tensor<1x1x?x16xf32>, tensor<1x1x?x16xf32>) -> tensor<1x4x?x16xf32>
func.func @main(%x: tensor<1x4x?x16xf32>, %cos: tensor<1x1x?x16xf32>, %sin: tensor<1x1x?x16xf32>) -> tensor<1x4x?x16xf32> {
  %zero = onnx.Constant dense<0> : tensor<1xi64>
  %one = onnx.Constant dense<1> : tensor<1xi64>
  %two = onnx.Constant dense<2> : tensor<1xi64>
  %last = onnx.Constant dense<3> : tensor<1xi64>
  %stack = onnx.Constant dense<4> : tensor<1xi64>
  %end = onnx.Constant dense<9223372036854775807> : tensor<1xi64>
  %flat = onnx.Constant dense<[1, 4, -1, 16]> : tensor<4xi64>
  %even = onnx.Slice %x, %zero, %end, %last, %two : (tensor<1x4x?x16xf32>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x4x?x8xf32>
  %odd = onnx.Slice %x, %one, %end, %last, %two : (tensor<1x4x?x16xf32>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x4x?x8xf32>
  %negative = onnx.Neg %odd : (tensor<1x4x?x8xf32>) -> tensor<1x4x?x8xf32>
  %left = onnx.Unsqueeze %negative, %stack : (tensor<1x4x?x8xf32>, tensor<1xi64>) -> tensor<1x4x?x8x1xf32>
  %right = onnx.Unsqueeze %even, %stack : (tensor<1x4x?x8xf32>, tensor<1xi64>) -> tensor<1x4x?x8x1xf32>
  %pairs = onnx.Concat %left, %right {axis = 4 : i64} : (tensor<1x4x?x8x1xf32>, tensor<1x4x?x8x1xf32>) -> tensor<1x4x?x8x2xf32>
  %turned = onnx.Reshape %pairs, %flat : (tensor<1x4x?x8x2xf32>, tensor<4xi64>) -> tensor<1x4x?x16xf32>
  %a = onnx.Mul %x, %cos : (tensor<1x4x?x16xf32>, tensor<1x1x?x16xf32>) -> tensor<1x4x?x16xf32>
  %b = onnx.Mul %turned, %sin : (tensor<1x4x?x16xf32>, tensor<1x1x?x16xf32>) -> tensor<1x4x?x16xf32>
  %y = onnx.Add %a, %b : (tensor<1x4x?x16xf32>, tensor<1x4x?x16xf32>) -> tensor<1x4x?x16xf32>
  func.return %y : tensor<1x4x?x16xf32>
}

// -----

// (x2, x1) without the sign is no rotation.

// CHECK-LABEL: func.func @main
// CHECK-NOT:     speq.rotary
func.func @main(%x: tensor<1x4x?x16xf16>, %cos: tensor<1x1x?x16xf16>, %sin: tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16> {
  %first, %second = onnx.Split %x {axis = 3 : i64, num_outputs = 2 : i64} : (tensor<1x4x?x16xf16>) -> (tensor<1x4x?x8xf16>, tensor<1x4x?x8xf16>)
  %turned = onnx.Concat %second, %first {axis = 3 : i64} : (tensor<1x4x?x8xf16>, tensor<1x4x?x8xf16>) -> tensor<1x4x?x16xf16>
  %a = onnx.Mul %x, %cos : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  %b = onnx.Mul %turned, %sin : (tensor<1x4x?x16xf16>, tensor<1x1x?x16xf16>) -> tensor<1x4x?x16xf16>
  %y = onnx.Add %a, %b : (tensor<1x4x?x16xf16>, tensor<1x4x?x16xf16>) -> tensor<1x4x?x16xf16>
  func.return %y : tensor<1x4x?x16xf16>
}
