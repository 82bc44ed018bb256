// RUN: speqc opt %s -p 'elide-mode-switches' | filecheck %s

// CHECK: func.func @full() {
// CHECK-NEXT: pe.mode full
// CHECK-NEXT: %x = "test.op"() : () -> tensor<1xf16>
// CHECK-NEXT: pe.mode draft
// CHECK-NEXT: pe.mode full
// CHECK-NEXT: func.return
// CHECK-NEXT: }
// CHECK-NEXT: func.func @draft() {
// CHECK-NEXT: pe.mode draft
// CHECK-NEXT: func.return
// CHECK-NEXT: }

func.func @full() {
  pe.mode full
  pe.mode full
  %x = "test.op"() : () -> tensor<1xf16>
  pe.mode draft
  pe.mode draft
  pe.mode full
  func.return
}
func.func @draft() {
  pe.mode draft
  func.return
}
