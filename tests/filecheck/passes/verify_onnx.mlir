// RUN: speqc opt %s -p verify-onnx | filecheck %s

// CHECK: func.func @main

func.func @main(%input_ids: tensor<1x?xi64>) -> tensor<1x?x16xf16> {
  %table = onnx.initializer "table", "sha256:00" : tensor<272x16xf16>
  %x = onnx.Gather %table, %input_ids : (tensor<272x16xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>
  func.return %x : tensor<1x?x16xf16>
}
