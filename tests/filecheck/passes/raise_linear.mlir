// RUN: speqc opt %s -p raise-linear --split-input-file | filecheck %s

// A table that embeds tokens and, transposed, gives logits is one weight. The MLP's weights get
// names from their nodes, since the file's names say nothing.

// CHECK:       builtin.module attributes {onnx.opset = 20 : i64} {
// CHECK-NEXT:    speq.weight @model.embed from "model.embed.weight" : tensor<64x272xf16> {digest = "sha256:e", transposed}
// CHECK-NEXT:    speq.weight @model.mlp.up from "val_7" : tensor<64x128xf16> {digest = "sha256:u", exponents = array<i64: 8192, 0,
// CHECK-SAME:      zeros = 5 : i64}
// CHECK-NEXT:    speq.weight @linear_3 from "onnx::MatMul_21" : tensor<128x64xf16> {digest = "sha256:d"}
// CHECK-NEXT:    func.func @full(%input_ids: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
// CHECK-NEXT:      %[[X:.*]] = speq.embedding @model.embed[%input_ids] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT:      %[[UP:.*]] = speq.view @model.mlp.up : !speq.view<64x128, full>
// CHECK-NEXT:      %[[A:.*]] = speq.matmul %[[X]], %[[UP]] : (tensor<1x?x64xf16>, !speq.view<64x128, full>) -> tensor<1x?x128xf16>
// CHECK-NEXT:      %[[DOWN:.*]] = speq.view @linear_3 : !speq.view<128x64, full>
// CHECK-NEXT:      %[[B:.*]] = speq.matmul %[[A]], %[[DOWN]] : (tensor<1x?x128xf16>, !speq.view<128x64, full>) -> tensor<1x?x64xf16>
// CHECK-NEXT:      %[[HEAD:.*]] = speq.view @model.embed : !speq.view<64x272, full>
// CHECK-NEXT:      %[[C:.*]] = speq.matmul %[[B]], %[[HEAD]] : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
// CHECK-NEXT:      func.return %[[C]] : tensor<1x?x272xf16>
builtin.module attributes {onnx.opset = 20 : i64, onnx.input_names = ["input_ids"], onnx.output_names = ["logits"]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %unused: tensor<1x?xi64> {onnx.name = "token_type_ids", onnx.dims = ["1", "sequence"]}) -> tensor<1x?x272xf16> {
    %e = onnx.initializer "model.embed.weight", "sha256:e" : tensor<272x64xf16>
    %u = onnx.initializer "val_7", "sha256:u" {exponents = array<i64: 8192, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, zeros = 5 : i64} : tensor<64x128xf16>
    %d = onnx.initializer "onnx::MatMul_21", "sha256:d" : tensor<128x64xf16>
    %x = onnx.Gather %e, %input_ids {axis = 0 : i64} : (tensor<272x64xf16>, tensor<1x?xi64>) -> tensor<1x?x64xf16>
    %a = onnx.MatMul %x, %u : (tensor<1x?x64xf16>, tensor<64x128xf16>) -> tensor<1x?x128xf16> loc("/model/mlp/up/MatMul")
    %b = onnx.MatMul %a, %d : (tensor<1x?x128xf16>, tensor<128x64xf16>) -> tensor<1x?x64xf16> loc("node_linear_3")
    %t = onnx.Transpose %e {perm = array<i64: 1, 0>} : (tensor<272x64xf16>) -> tensor<64x272xf16>
    %c = onnx.MatMul %b, %t : (tensor<1x?x64xf16>, tensor<64x272xf16>) -> tensor<1x?x272xf16>
    func.return %c : tensor<1x?x272xf16>
  }
}

// -----

// FP32 activations by FP16 weights that the file casts; a product of rank 2 with a bias; the table
// transposed in the file.

// CHECK:         speq.weight @table from "table" : tensor<64x272xf16> {digest = "sha256:e"}
// CHECK-NEXT:    speq.weight @w from "w" : tensor<64x272xf16> {digest = "sha256:w", transposed}
// CHECK:           %[[E:.*]] = speq.embedding @table[%input_ids] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT:      %[[X:.*]] = onnx.Cast %[[E]] {to = 1 : i64} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf32>
// CHECK:           %[[FLAT:.*]] = onnx.Reshape %[[X]], %{{.*}} : (tensor<1x?x64xf32>, tensor<2xi64>) -> tensor<?x64xf32>
// CHECK:           %[[ROWS:.*]] = onnx.Reshape %[[FLAT]], %{{.*}} : (tensor<?x64xf32>, tensor<3xi64>) -> tensor<1x?x64xf32>
// CHECK:           %[[Y:.*]] = speq.matmul %[[ROWS]], %{{.*}} : (tensor<1x?x64xf32>, !speq.view<64x272, full>) -> tensor<1x?x272xf32>
// CHECK:           %[[BACK:.*]] = onnx.Reshape %[[Y]], %{{.*}} : (tensor<1x?x272xf32>, tensor<2xi64>) -> tensor<?x272xf32>
// CHECK-NEXT:      onnx.Add %[[BACK]], %{{.*}} : (tensor<?x272xf32>, tensor<272xf32>) -> tensor<?x272xf32>
func.func @main(%input_ids: tensor<1x?xi64>) -> tensor<1x?x272xf32> {
  %e = onnx.initializer "table", "sha256:e" : tensor<64x272xf16>
  %w = onnx.initializer "w", "sha256:w" : tensor<272x64xf16>
  %bias = onnx.initializer "bias", "sha256:b" : tensor<272xf32>
  %flat = onnx.Constant dense<[-1, 64]> : tensor<2xi64>
  %rows = onnx.Constant dense<[1, -1, 272]> : tensor<3xi64>
  %e32 = onnx.Cast %e {to = 1 : i64} : (tensor<64x272xf16>) -> tensor<64x272xf32>
  %table = onnx.Transpose %e32 : (tensor<64x272xf32>) -> tensor<272x64xf32>
  %w32 = onnx.Cast %w {to = 1 : i64} : (tensor<272x64xf16>) -> tensor<272x64xf32>
  %x = onnx.Gather %table, %input_ids : (tensor<272x64xf32>, tensor<1x?xi64>) -> tensor<1x?x64xf32>
  %x2 = onnx.Reshape %x, %flat : (tensor<1x?x64xf32>, tensor<2xi64>) -> tensor<?x64xf32>
  %y2 = onnx.Gemm %x2, %w32, %bias {transB = 1 : i64} : (tensor<?x64xf32>, tensor<272x64xf32>, tensor<272xf32>) -> tensor<?x272xf32>
  %y = onnx.Reshape %y2, %rows : (tensor<?x272xf32>, tensor<3xi64>) -> tensor<1x?x272xf32>
  func.return %y : tensor<1x?x272xf32>
}

// -----

// Products of computed tensors, and tables read by position, stay as they are.

// CHECK:         onnx.Gather %positions, %{{.*}} : (tensor<128x64xf16>, tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK:         onnx.MatMul %{{.*}} : (tensor<1x8x1xf32>, tensor<1x1x?xf32>) -> tensor<1x8x?xf32>
func.func @main(%input_ids: tensor<1x?xi64>, %t: tensor<1x1x?xf32>) -> (tensor<1x?x64xf16>, tensor<1x8x?xf32>) {
  %table = onnx.initializer "table", "sha256:e" : tensor<272x64xf16>
  %positions = onnx.initializer "positions", "sha256:p" : tensor<128x64xf16>
  %frequencies = onnx.Constant dense<1.0> : tensor<1x8x1xf32>
  %p = speq.positions %input_ids : tensor<1x?xi64>
  %x = onnx.Gather %table, %input_ids : (tensor<272x64xf16>, tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %y = onnx.Gather %positions, %p : (tensor<128x64xf16>, tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %z = onnx.Add %x, %y : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
  %angles = onnx.MatMul %frequencies, %t : (tensor<1x8x1xf32>, tensor<1x1x?xf32>) -> tensor<1x8x?xf32>
  func.return %z, %angles : tensor<1x?x64xf16>, tensor<1x8x?xf32>
}
