// RUN: speqc opt %s -p elide-mode-switches | filecheck %s

// A switch stays where it changes the mode; what else happens in between does not matter.

// CHECK-LABEL: func.func @full
// CHECK-NEXT:    pe.mode full
// CHECK-NEXT:    %x = "test.op"() : () -> tensor<1xf16>
// CHECK-NEXT:    pe.mode draft
// CHECK-NEXT:    pe.mode full
// CHECK-NEXT:    func.return
func.func @full() {
  pe.mode full
  pe.mode full
  %x = "test.op"() : () -> tensor<1xf16>
  pe.mode full
  pe.mode draft
  pe.mode draft
  pe.mode full
  func.return
}

// Another step may have left the array in any mode: the first switch stays.

// CHECK-LABEL: func.func @again
// CHECK-NEXT:    pe.mode full
// CHECK-NEXT:    func.return
func.func @again() {
  pe.mode full
  func.return
}
