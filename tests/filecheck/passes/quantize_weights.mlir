// RUN: speqc opt %s -p 'quantize-weights{weight-bits=4 group-size=2}' | filecheck %s
// RUN: speqc opt %s -p 'quantize-weights{weight-bits=8 head-bits=8 activation-bits=8 input-ops=Mul,Round,Clip output-ops=Mul}' | filecheck %s --check-prefix ROWS
// RUN: speqc opt %s -p 'quantize-weights{weight-bits=16}' | filecheck %s --check-prefix PLAIN
// RUN: not speqc opt %s -p 'quantize-weights{weight-bits=17}' 2>&1 | filecheck %s --check-prefix BITS
// RUN: not speqc opt %s -p 'quantize-weights{input-ops=Sqrt}' 2>&1 | filecheck %s --check-prefix OPS
// RUN: not speqc opt %s -p 'quantize-weights{group-size=-1}' 2>&1 | filecheck %s --check-prefix GROUP

// The head is what gives the logits, through whatever the vector unit does behind it.
// CHECK-DAG: speq.weight @table {{.*}}, kept = "embedding only"}
// CHECK-DAG: speq.weight @up {{.*}} {digest = "sha256:1", stored_bits = 4 : i64, group_size = 2 : i64}
// CHECK-DAG: speq.weight @gate {{.*}} {digest = "sha256:2", stored_bits = 4 : i64, group_size = 2 : i64}
// CHECK-DAG: speq.weight @head {{.*}} {digest = "sha256:3"}
// CHECK-NOT: onnx.Round

// One scale a column: groups as long as K. Rows that two products read are quantised once.
// ROWS-DAG:  speq.weight @up {{.*}}, stored_bits = 8 : i64, group_size = 2 : i64}
// ROWS-DAG:  speq.weight @head {{.*}}, stored_bits = 8 : i64, group_size = 4 : i64}
// ROWS:      %0 = onnx.Constant dense<1.270000e+02> : tensor<f16>
// ROWS-NEXT: %1 = onnx.Constant dense<-1.280000e+02> : tensor<f16>
// ROWS-NEXT: %2 = onnx.Constant dense<1.000000e+00> : tensor<f16>
// ROWS:      %3 = onnx.Mul %x, %2 :
// ROWS-NEXT: %4 = onnx.Round %3 :
// ROWS-NEXT: %5 = onnx.Clip %4, %1, %0 :
// ROWS-NEXT: %a = speq.matmul %5, %u :
// ROWS-NEXT: %6 = onnx.Mul %a, %2 :
// ROWS-NEXT: %b = speq.matmul %5, %g :
// ROWS-NEXT: %7 = onnx.Mul %b, %2 :
// ROWS-NEXT: %c = onnx.Add %6, %7 :

// PLAIN-NOT: stored_bits

// BITS:  error: weight-bits must be from 2 to 16, got 17
// OPS:   error: unknown operator 'Sqrt': choose from Abs, Add, Clip, Max, Mul, Round, Sub
// GROUP: error: group-size must not be negative, got -1

speq.weight @table from "t" : tensor<2x4xf16> {digest = "sha256:0"}
speq.weight @up from "u" : tensor<2x4xf16> {digest = "sha256:1"}
speq.weight @gate from "g" : tensor<2x4xf16> {digest = "sha256:2"}
speq.weight @head from "h" : tensor<4x8xf16> {digest = "sha256:3"}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x8xf16> {
  %x = speq.embedding @table[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x2xf16>
  %u = speq.view @up : !speq.view<2x4, full>
  %g = speq.view @gate : !speq.view<2x4, full>
  %h = speq.view @head : !speq.view<4x8, full>
  %a = speq.matmul %x, %u : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  %b = speq.matmul %x, %g : (tensor<1x?x2xf16>, !speq.view<2x4, full>) -> tensor<1x?x4xf16>
  %c = onnx.Add %a, %b : (tensor<1x?x4xf16>, tensor<1x?x4xf16>) -> tensor<1x?x4xf16>
  %d = speq.matmul %c, %h : (tensor<1x?x4xf16>, !speq.view<4x8, full>) -> tensor<1x?x8xf16>
  %e = onnx.Tanh %d : (tensor<1x?x8xf16>) -> tensor<1x?x8xf16>
  func.return %e : tensor<1x?x8xf16>
}
