// RUN: speqc opt %s --verify-diagnostics --parsing-diagnostics --split-input-file | filecheck %s

func.func @missing_attribute(%x: tensor<4xf16>) {
  // CHECK: property 'to' expected in operation 'onnx.Cast'
  %y = onnx.Cast %x : (tensor<4xf16>) -> tensor<4xf32>
  func.return
}

// -----

func.func @wrong_attribute(%x: tensor<4xf16>) {
  // CHECK: onnx.Cast: attribute 'to' must be an integer of type i64
  %y = onnx.Cast %x {to = 1 : i32} : (tensor<4xf16>) -> tensor<4xf32>
  func.return
}

// -----

func.func @wrong_list(%x: tensor<4x2xf16>) {
  // CHECK: onnx.Transpose: attribute 'perm' must be array<i64: ...>
  %y = onnx.Transpose %x {perm = [1, 0]} : (tensor<4x2xf16>) -> tensor<2x4xf16>
  func.return
}

// -----

func.func @unknown_attribute(%x: tensor<4xf16>) {
  // CHECK: onnx.Cast: attribute 'form' is unknown (known: to, saturate, round_mode)
  %y = onnx.Cast %x {to = 1 : i64, form = 1 : i64} : (tensor<4xf16>) -> tensor<4xf32>
  func.return
}

// -----

func.func @unknown_property(%x: tensor<4xf16>) {
  // CHECK: property 'form' is not defined by the operation 'onnx.Neg'
  %y = "onnx.Neg"(%x) <{form = 1 : i64}> : (tensor<4xf16>) -> tensor<4xf16>
  func.return
}

// -----

func.func @too_few(%x: tensor<4xf16>) {
  // CHECK: onnx.MatMul: expected 2 operands, got 1
  %y = onnx.MatMul %x : (tensor<4xf16>) -> tensor<4xf16>
  func.return
}

// -----

func.func @too_many(%x: tensor<4xf16>) {
  // CHECK: onnx.Clip: expected 1 to 3 operands, got 4
  %y = onnx.Clip %x, %x, %x, %x : (tensor<4xf16>, tensor<4xf16>, tensor<4xf16>, tensor<4xf16>) -> tensor<4xf16>
  func.return
}

// -----

func.func @none() {
  // CHECK: onnx.Concat: expected at least 1 operands, got 0
  %y = onnx.Concat {axis = 0 : i64} : () -> tensor<4xf16>
  func.return
}

// -----

func.func @results(%x: tensor<4xf16>) {
  // CHECK: onnx.Neg: expected 1 results, got 2
  %y, %z = onnx.Neg %x : (tensor<4xf16>) -> (tensor<4xf16>, tensor<4xf16>)
  func.return
}

// -----

func.func @absent(%x: tensor<4xf16>) {
  %none = onnx.NoValue
  // CHECK: onnx.Add: operand 1 (B) is absent
  %y = onnx.Add %x, %none : (tensor<4xf16>, none) -> tensor<4xf16>
  func.return
}

// -----

func.func @unknown_operator(%x: tensor<4xf16>) {
  // CHECK: Operation onnx.If is not registered
  %y = onnx.If %x : (tensor<4xf16>) -> tensor<4xf16>
  func.return
}

// -----

// CHECK: digest must be 'none' or start with 'sha256:', got 'md5:00'
%w = onnx.initializer "w", "md5:00" : tensor<2x2xf16>

// -----

// CHECK: a tensor without bytes has no histogram of exponents
%w = onnx.initializer "w", "none" {exponents = array<i64: 2, 2>} : tensor<2x2xf16>

// -----

// CHECK: exponents must have 32 bins, got 2
%w = onnx.initializer "w", "sha256:00" {exponents = array<i64: 2, 2>} : tensor<2x2xf16>

// -----

// CHECK: exponents count 3 values, the tensor has 4
%w = onnx.initializer "w", "sha256:00" {exponents = array<i64: 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>} : tensor<2x2xf16>

// -----

// CHECK: value has 65 elements, at most 64 may be written
%c = onnx.Constant dense<0> : tensor<65xi64>

// -----

// CHECK: value has type tensor<2xi64>, result tensor<1xi64>
%c = "onnx.Constant"() <{value = dense<0> : tensor<2xi64>}> : () -> tensor<1xi64>

// -----

// CHECK: expected a dense value
%c = onnx.Constant 1 : i64

// -----

// CHECK: parts tell of 1 matrices, the tensor has type tensor<2x4x8xf16>
%w = onnx.initializer "w", "sha256:00" {exponents = array<i64: 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, parts = [["sha256:01"]]} : tensor<2x4x8xf16>
