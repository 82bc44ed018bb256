// RUN: speqc opt %s | filecheck %s
// RUN: speqc opt %s | speqc opt | filecheck %s

// Infinities and NaN are printed as bytes: xDSL reads a single hexadecimal number as an integer.

// CHECK: %inf = onnx.Constant dense<"0x00FC"> : tensor<f16>
%inf = onnx.Constant dense<"0x00FC"> : tensor<f16>
// CHECK-NEXT: %pair = onnx.Constant dense<"0x0000803F0000807F"> : tensor<2xf32>
%pair = onnx.Constant dense<"0x0000803F0000807F"> : tensor<2xf32>
// CHECK-NEXT: %nan = onnx.Constant dense<"0x0000C07F"> : tensor<f32>
%nan = onnx.Constant dense<"0x0000C07F"> : tensor<f32>
