"""Dense tensors as text that reads back as the same bits."""

import numpy as np
from xdsl.dialects.builtin import AnyDenseElement, DenseIntOrFPElementsAttr
from xdsl.printer import Printer


def print_dense(printer: Printer, value: DenseIntOrFPElementsAttr[AnyDenseElement]) -> None:
    """Print `dense<[1, 2]> : tensor<2xi64>`.

    Infinities and NaN are printed as the tensor's bytes: xDSL prints a single one as a hexadecimal
    number, and then reads that as an integer.
    """
    if np.isfinite(value.get_values()).all():
        printer.print_attribute(value)
        return
    printer.print_string(f'dense<"0x{value.data.data.hex().upper()}"> : ')
    printer.print_attribute(value.type)
