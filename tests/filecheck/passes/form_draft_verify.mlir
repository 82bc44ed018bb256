// RUN: speqc opt %s -p 'form-draft-verify{draft-length=4 exit-threshold=0.5 prompt-chunk=16}' | filecheck %s
// RUN: speqc opt %s -p form-draft-verify | filecheck %s --check-prefix DEFAULT
// RUN: sed 's/@full/@other/' %s | not speqc opt -p form-draft-verify 2>&1 | filecheck %s --check-prefix MISSING
// RUN: not speqc opt %s -p form-draft-verify,form-draft-verify 2>&1 | filecheck %s --check-prefix TWICE
// RUN: not speqc opt %s -p 'form-draft-verify{draft-length=0}' 2>&1 | filecheck %s --check-prefix LENGTH
// RUN: not speqc opt %s -p 'form-draft-verify{exit-threshold=1.5}' 2>&1 | filecheck %s --check-prefix THRESHOLD
// RUN: not speqc opt %s -p 'form-draft-verify{prompt-chunk=0}' 2>&1 | filecheck %s --check-prefix CHUNK
// RUN: speqc opt %s -p 'form-draft-verify{draft-schedule="cost"}' | filecheck %s --check-prefix COST
// RUN: not speqc opt %s -p 'form-draft-verify{draft-schedule="best"}' 2>&1 | filecheck %s --check-prefix SCHEDULE

// DEFAULT:   speq.decode @speculative attributes {draft_length = 8 : i64, exit_threshold = 3.000000e-01 : f64}
// DEFAULT:   speq.call @full(%prompt) {chunk = 64 : i64}
// MISSING:   error: the module has no function @full
// TWICE:     error: form-draft-verify: the module already has decode programs
// LENGTH:    draft_length must be positive
// THRESHOLD: exit_threshold must lie in [0, 1]
// COST:      speq.decode @speculative attributes {draft_length = 8 : i64, exit_threshold = 3.000000e-01 : f64, draft_schedule = "cost"}
// COST:      speq.decode @autoregressive {
// SCHEDULE:  draft_schedule must be one of constant, heuristic, cost
// CHUNK:     chunk must be positive, got 0

// The draft step reads the drafts of split weights; a kept weight, and the embedding, in full.

// CHECK:      func.func @full
// CHECK:        %split = speq.view @head : !speq.view<64x272, full>
// CHECK:      func.func @draft(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
// CHECK-NEXT:   %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
// CHECK-NEXT:   %kept = speq.view @down : !speq.view<64x64, full>
// CHECK-NEXT:   %y = speq.matmul %x, %kept : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>
// CHECK-NEXT:   %split = speq.view @head : !speq.view<64x272, draft>
// CHECK-NEXT:   %logits = speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, draft>) -> tensor<1x?x272xf16>
// CHECK-NEXT:   func.return %logits : tensor<1x?x272xf16>
// CHECK-NEXT: }

// The prompt, in chunks, gives the first token; then rounds of drafting, verifying and accepting.

// CHECK-NEXT: speq.decode @speculative attributes {draft_length = 4 : i64, exit_threshold = 5.000000e-01 : f64} {
// CHECK-NEXT: ^bb{{[0-9]+}}(%prompt: tensor<1x?xi64>):
// CHECK-NEXT:   %logits = speq.call @full(%prompt) {chunk = 16 : i64} : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
// CHECK-NEXT:   %first, %probability = speq.sample %logits : tensor<1x?x272xf16>
// CHECK-NEXT:   speq.emit %first : tensor<1x1xi64>
// CHECK-NEXT:   speq.repeat(%first : tensor<1x1xi64>) {
// CHECK-NEXT:   ^bb{{[0-9]+}}(%last: tensor<1x1xi64>):
// CHECK-NEXT:     %drafted, %draft_logits = speq.draft(%last : tensor<1x1xi64>) {
// CHECK-NEXT:     ^bb{{[0-9]+}}(%token: tensor<1x1xi64>):
// CHECK-NEXT:       %[[DRAFT:.*]] = speq.call @draft(%token) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>
// CHECK-NEXT:       %next, %[[SURE:.*]] = speq.sample %[[DRAFT]] : tensor<1x1x272xf16>
// CHECK-NEXT:       speq.yield %next, %[[SURE]], %[[DRAFT]] : tensor<1x1xi64>, f32, tensor<1x1x272xf16>
// CHECK-NEXT:     } : tensor<1x?x272xf16>
// CHECK-NEXT:     %full_logits = speq.verify(%last, %drafted : tensor<1x1xi64>, tensor<1x?xi64>) {
// CHECK-NEXT:     ^bb{{[0-9]+}}(%tokens: tensor<1x?xi64>):
// CHECK-NEXT:       %[[FULL:.*]] = speq.call @full(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x272xf16>
// CHECK-NEXT:       speq.yield %[[FULL]] : tensor<1x?x272xf16>
// CHECK-NEXT:     } : tensor<1x?x272xf16>
// CHECK-NEXT:     %accepted, %[[NEXT:.*]] = speq.accept %drafted, %draft_logits, %full_logits : (tensor<1x?xi64>, tensor<1x?x272xf16>, tensor<1x?x272xf16>)
// CHECK-NEXT:     speq.truncate %accepted : tensor<1x?xi64>
// CHECK-NEXT:     speq.emit %accepted, %[[NEXT]] : tensor<1x?xi64>, tensor<1x1xi64>
// CHECK-NEXT:     speq.yield %[[NEXT]] : tensor<1x1xi64>
// CHECK-NEXT:   }
// CHECK-NEXT: }

// The other programs decode token by token; the prompt of a draft goes through the full model too.

// CHECK-NEXT: speq.decode @autoregressive {
// CHECK:        speq.call @full(%{{.*}}) {chunk = 16 : i64}
// CHECK:        speq.repeat
// CHECK:          %[[LOGITS:.*]] = speq.call @full(%{{.*}}) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>
// CHECK-NEXT:     %[[TOKEN:.*]], %{{.*}} = speq.sample %[[LOGITS]] : tensor<1x1x272xf16>
// CHECK-NEXT:     speq.emit %[[TOKEN]] : tensor<1x1xi64>
// CHECK-NEXT:     speq.yield %[[TOKEN]] : tensor<1x1xi64>
// CHECK:      speq.decode @draft_only {
// CHECK:        speq.call @full(%{{.*}}) {chunk = 16 : i64}
// CHECK:        speq.repeat
// CHECK:          speq.call @draft(%{{.*}}) : (tensor<1x1xi64>) -> tensor<1x1x272xf16>

speq.weight @head from "head" : tensor<64x272xf16> {digest = "sha256:00", codebook = "sets", group_size = 64 : i64}
speq.weight @down from "down" : tensor<64x64xf16> {digest = "sha256:02", kept = "it has Inf or NaN"}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
  %x = speq.embedding @head[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
  %kept = speq.view @down : !speq.view<64x64, full>
  %y = speq.matmul %x, %kept : (tensor<1x?x64xf16>, !speq.view<64x64, full>) -> tensor<1x?x64xf16>
  %split = speq.view @head : !speq.view<64x272, full>
  %logits = speq.matmul %y, %split : (tensor<1x?x64xf16>, !speq.view<64x272, full>) -> tensor<1x?x272xf16>
  func.return %logits : tensor<1x?x272xf16>
}
