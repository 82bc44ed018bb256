// RUN: speqc opt %s -p 'form-draft-verify{draft-length=4 exit-threshold=0.5}' | filecheck %s

// CHECK: speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
// CHECK-NEXT: speq.weight @down from "down" : tensor<64x64xf16> {digest = "sha256:02", kept = "has an infinity"}
// CHECK-NEXT: func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
// CHECK-NEXT: %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %kept = speq.view @down : !speq.view<64x64, full>
// CHECK-NEXT: %y = speq.matmul %x, %kept : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %split = speq.view @head : !speq.view<64x272, full>
// CHECK-NEXT: %logits = speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
// CHECK-NEXT: func.return %logits : tensor<1x?x272xf16>
// CHECK-NEXT: }
// CHECK-NEXT: func.func @draft(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
// CHECK-NEXT: %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %kept = speq.view @down : !speq.view<64x64, full>
// CHECK-NEXT: %y = speq.matmul %x, %kept : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>
// CHECK-NEXT: %split = speq.view @head : !speq.view<64x272, draft>
// CHECK-NEXT: %logits = speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, draft>) -> tensor<1x?x272xf16>
// CHECK-NEXT: func.return %logits : tensor<1x?x272xf16>
// CHECK-NEXT: }
// CHECK-NEXT: speq.decode @speculative attributes {draft_length = 4 : i64, exit_threshold = 5.000000e-01 : f64} {
// CHECK-NEXT: ^bb{{[0-9]+}}(%prompt: tensor<1x?xi64>):
// CHECK-NEXT: %logits = speq.call @full(%prompt) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
// CHECK-NEXT: %first, %probability = speq.sample %logits : tensor<1x?x272xf16>
// CHECK-NEXT: speq.emit %first : tensor<1x1xi64>
// CHECK-NEXT: speq.repeat(%first : tensor<1x1xi64>) {
// CHECK-NEXT: ^bb{{[0-9]+}}(%last: tensor<1x1xi64>):
// CHECK-NEXT: %drafted, %draft_logits = speq.draft(%last : tensor<1x1xi64>) {
// CHECK-NEXT: ^bb{{[0-9]+}}(%token: tensor<1x1xi64>):
// CHECK-NEXT: %logits_1 = speq.call @draft(%token) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>
// CHECK-NEXT: %next, %probability_1 = speq.sample %logits_1 : tensor<1x1x272xf16>
// CHECK-NEXT: speq.yield %next, %probability_1, %logits_1 : tensor<1x1xi64>, f32, tensor<1x1x272xf16>
// CHECK-NEXT: } : tensor<1x?x272xf16>
// CHECK-NEXT: %full_logits = speq.verify(%last, %drafted : tensor<1x1xi64>, tensor<1x?xi64>) {
// CHECK-NEXT: ^bb{{[0-9]+}}(%tokens: tensor<1x?xi64>):
// CHECK-NEXT: %logits_2 = speq.call @full(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
// CHECK-NEXT: speq.yield %logits_2 : tensor<1x?x272xf16>
// CHECK-NEXT: } : tensor<1x?x272xf16>
// CHECK-NEXT: %accepted, %next_1 = speq.accept %drafted, %draft_logits, %full_logits : (tensor<1x?xi64>, tensor<1x?x272xf16>, tensor<1x?x272xf16>)
// CHECK-NEXT: speq.truncate %accepted : tensor<1x?xi64>
// CHECK-NEXT: speq.emit %accepted, %next_1 : tensor<1x?xi64>, tensor<1x1xi64>
// CHECK-NEXT: speq.yield %next_1 : tensor<1x1xi64>
// CHECK-NEXT: }
// CHECK-NEXT: }
// CHECK-NEXT: speq.decode @autoregressive {
// CHECK-NEXT: ^bb{{[0-9]+}}(%prompt_1: tensor<1x?xi64>):
// CHECK-NEXT: %logits_3 = speq.call @full(%prompt_1) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
// CHECK-NEXT: %first_1, %probability_2 = speq.sample %logits_3 : tensor<1x?x272xf16>
// CHECK-NEXT: speq.emit %first_1 : tensor<1x1xi64>
// CHECK-NEXT: speq.repeat(%first_1 : tensor<1x1xi64>) {
// CHECK-NEXT: ^bb{{[0-9]+}}(%last_1: tensor<1x1xi64>):
// CHECK-NEXT: %logits_4 = speq.call @full(%last_1) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>
// CHECK-NEXT: %next_2, %probability_3 = speq.sample %logits_4 : tensor<1x1x272xf16>
// CHECK-NEXT: speq.emit %next_2 : tensor<1x1xi64>
// CHECK-NEXT: speq.yield %next_2 : tensor<1x1xi64>
// CHECK-NEXT: }
// CHECK-NEXT: }
// CHECK-NEXT: speq.decode @draft_only {
// CHECK-NEXT: ^bb{{[0-9]+}}(%prompt_2: tensor<1x?xi64>):
// CHECK-NEXT: %logits_5 = speq.call @full(%prompt_2) {chunk = 64 : i64} : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
// CHECK-NEXT: %first_2, %probability_4 = speq.sample %logits_5 : tensor<1x?x272xf16>
// CHECK-NEXT: speq.emit %first_2 : tensor<1x1xi64>
// CHECK-NEXT: speq.repeat(%first_2 : tensor<1x1xi64>) {
// CHECK-NEXT: ^bb{{[0-9]+}}(%last_2: tensor<1x1xi64>):
// CHECK-NEXT: %logits_6 = speq.call @draft(%last_2) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>
// CHECK-NEXT: %next_3, %probability_5 = speq.sample %logits_6 : tensor<1x1x272xf16>
// CHECK-NEXT: speq.emit %next_3 : tensor<1x1xi64>
// CHECK-NEXT: speq.yield %next_3 : tensor<1x1xi64>
// CHECK-NEXT: }
// CHECK-NEXT: }

speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
speq.weight @down from "down" : tensor<64x64xf16> {digest = "sha256:02", kept = "has an infinity"}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
  %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %kept = speq.view @down : !speq.view<64x64, full>
  %y = speq.matmul %x, %kept : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>
  %split = speq.view @head : !speq.view<64x272, full>
  %logits = speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
  func.return %logits : tensor<1x?x272xf16>
}
