// RUN: speqc opt %s -p raise-positions --split-input-file | filecheck %s
// RUN: speqc opt %s -p raise-positions,raise-positions --split-input-file | filecheck %s

// The argument goes; the list of caches counts arguments anew.

// CHECK:       builtin.module attributes {onnx.kv_pairs = [array<i64: 1, 1>]}
// CHECK-NEXT:    func.func @main(%input_ids: tensor<1x?xi64> {{.*}}, %past: tensor<1x2x?x16xf16> {{.*}}) -> (tensor<1x?x16xf16>, tensor<1x?xi64>) {
// CHECK-NEXT:      %[[P:.*]] = speq.positions %input_ids : tensor<1x?xi64>
// CHECK:           func.return %{{.*}}, %[[P]] : tensor<1x?x16xf16>, tensor<1x?xi64>
builtin.module attributes {onnx.kv_pairs = [array<i64: 2, 1>]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %position_ids: tensor<1x?xi64> {onnx.name = "position_ids", onnx.dims = ["1", "sequence"]}, %past: tensor<1x2x?x16xf16> {onnx.name = "past", onnx.dims = ["1", "2", "past", "16"]}) -> (tensor<1x?x16xf16>, tensor<1x?xi64>) {
    %table = onnx.initializer "table", "sha256:00" : tensor<272x16xf16>
    %x = onnx.Gather %table, %input_ids : (tensor<272x16xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>
    func.return %x, %position_ids : tensor<1x?x16xf16>, tensor<1x?xi64>
  }
}

// -----

// A running sum of the mask, and a range behind the cache.

// CHECK:         %[[A:.*]] = speq.positions %input_ids : tensor<1x?xi64>
// CHECK:         %[[B:.*]] = speq.positions %input_ids : tensor<1x?xi64>
// CHECK:         %[[ROW:.*]] = onnx.Reshape %[[B]], %{{.*}} : (tensor<1x?xi64>, tensor<1xi64>) -> tensor<?xi64>
// CHECK-NOT:     onnx.CumSum
// CHECK-NOT:     onnx.Range
// CHECK:         func.return %{{.*}}, %[[A]], %[[ROW]] : tensor<1x?x16xf16>, tensor<1x?xi64>, tensor<?xi64>
builtin.module attributes {onnx.kv_pairs = [array<i64: 2, 1>]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %attention_mask: tensor<1x?xi64> {onnx.name = "attention_mask", onnx.dims = ["1", "past + sequence"]}, %past: tensor<1x2x?x16xf16> {onnx.name = "past", onnx.dims = ["1", "2", "past", "16"]}) -> (tensor<1x?x16xf16>, tensor<1x?xi64>, tensor<?xi64>) {
    %table = onnx.initializer "table", "sha256:00" : tensor<272x16xf16>
    %one = onnx.Constant dense<1> : tensor<i64>
    %axes = onnx.Constant dense<1> : tensor<1xi64>
    %end = onnx.Constant dense<9223372036854775807> : tensor<1xi64>
    %scalar = onnx.Constant dense<0> : tensor<1xi64>
    %x = onnx.Gather %table, %input_ids : (tensor<272x16xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>
    %count = onnx.CumSum %attention_mask, %one : (tensor<1x?xi64>, tensor<i64>) -> tensor<1x?xi64>
    %all = onnx.Sub %count, %one : (tensor<1x?xi64>, tensor<i64>) -> tensor<1x?xi64>
    %length = onnx.Shape %past {start = 2 : i64, end = 3 : i64} : (tensor<1x2x?x16xf16>) -> tensor<1xi64>
    %new = onnx.Slice %all, %length, %end, %axes : (tensor<1x?xi64>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x?xi64>
    %rows = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
    %total = onnx.Add %length, %rows : (tensor<1xi64>, tensor<1xi64>) -> tensor<1xi64>
    %from = onnx.Squeeze %length, %scalar : (tensor<1xi64>, tensor<1xi64>) -> tensor<i64>
    %to = onnx.Squeeze %total, %scalar : (tensor<1xi64>, tensor<1xi64>) -> tensor<i64>
    %range = onnx.Range %from, %to, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    func.return %x, %new, %range : tensor<1x?x16xf16>, tensor<1x?xi64>, tensor<?xi64>
  }
}

// -----

// A bound that comes late, behind any step that is short, is no position.

// CHECK:         %[[P:.*]] = speq.positions %input_ids : tensor<1x?xi64>
// CHECK:         %[[ROW:.*]] = onnx.Reshape %[[P]]
// CHECK:         %[[MIN:.*]] = onnx.Min %[[ROW]], %{{.*}} : (tensor<?xi64>, tensor<i64>) -> tensor<?xi64>
// CHECK:         func.return %{{.*}}, %[[MIN]]
builtin.module attributes {onnx.kv_pairs = [array<i64: 1, 2>]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %past: tensor<1x2x?x16xf16> {onnx.name = "past", onnx.dims = ["1", "2", "past", "16"]}) -> (tensor<1x?x16xf16>, tensor<?xi64>) {
    %table = onnx.initializer "table", "sha256:00" : tensor<272x16xf16>
    %one = onnx.Constant dense<1> : tensor<i64>
    %last = onnx.Constant dense<40000> : tensor<i64>
    %scalar = onnx.Constant dense<0> : tensor<1xi64>
    %x = onnx.Gather %table, %input_ids : (tensor<272x16xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>
    %length = onnx.Shape %past {start = 2 : i64, end = 3 : i64} : (tensor<1x2x?x16xf16>) -> tensor<1xi64>
    %rows = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
    %total = onnx.Add %length, %rows : (tensor<1xi64>, tensor<1xi64>) -> tensor<1xi64>
    %from = onnx.Squeeze %length, %scalar : (tensor<1xi64>, tensor<1xi64>) -> tensor<i64>
    %to = onnx.Squeeze %total, %scalar : (tensor<1xi64>, tensor<1xi64>) -> tensor<i64>
    %range = onnx.Range %from, %to, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    %bounded = onnx.Min %range, %last : (tensor<?xi64>, tensor<i64>) -> tensor<?xi64>
    func.return %x, %bounded : tensor<1x?x16xf16>, tensor<?xi64>
  }
}

// -----

// A range from 0 does not count on behind the cache.

// CHECK:         onnx.Range
// CHECK-NOT:     speq.positions
builtin.module attributes {onnx.kv_pairs = [array<i64: 1, 1>]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %past: tensor<1x2x?x16xf16> {onnx.name = "past", onnx.dims = ["1", "2", "past", "16"]}) -> (tensor<1x?x16xf16>, tensor<1x2x?x16xf16>, tensor<?xi64>) {
    %table = onnx.initializer "table", "sha256:00" : tensor<272x16xf16>
    %zero = onnx.Constant dense<0> : tensor<i64>
    %one = onnx.Constant dense<1> : tensor<i64>
    %scalar = onnx.Constant dense<0> : tensor<1xi64>
    %x = onnx.Gather %table, %input_ids : (tensor<272x16xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>
    %rows = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
    %to = onnx.Squeeze %rows, %scalar : (tensor<1xi64>, tensor<1xi64>) -> tensor<i64>
    %range = onnx.Range %zero, %to, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    func.return %x, %past, %range : tensor<1x?x16xf16>, tensor<1x2x?x16xf16>, tensor<?xi64>
  }
}
