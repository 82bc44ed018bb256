"""Einstein sums, as the matrix products and sums of the vector unit."""

from collections.abc import Sequence

import numpy as np

from speqc.runtime.vector_matrices import matmul
from speqc.runtime.vector_op import Array, VectorOp, arithmetic, contiguous
from speqc.runtime.vector_reductions import reduce_sum

ELLIPSIS = "..."
BROADCAST = "0123456789"
"""Labels of the dimensions that an ellipsis stands for, from the last backwards."""


def labels_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return a label for each dimension of the operands, and those of the result.

    `ranks` are the operands' numbers of dimensions. Dimensions under an ellipsis are digits, so
    that 0 is the last one of every operand.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = [_written_out(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    widest = max((sum(label.isdigit() for label in term) for term in terms), default=0)
    if arrow:
        return terms, _written_out(result, len(result.replace(ELLIPSIS, "")) + widest)
    everything = "".join(terms)
    once = sorted(label for label in set(everything) if everything.count(label) == 1)
    letters = "".join(label for label in once if not label.isdigit())
    return terms, _written_out(f"{ELLIPSIS}{letters}", widest + len(letters))


def _written_out(term: str, rank: int) -> str:
    hidden = rank - len(term.replace(ELLIPSIS, ""))
    return term.replace(ELLIPSIS, BROADCAST[:hidden][::-1])


def einsum(*operands: Array, equation: str) -> Array:
    """Return the sum of products that `equation` writes, operands combined from left to right.

    Dimensions that one operand alone has and the result has not are summed up first, in the order
    of `ReduceSum`; those of two operands in ascending order, by `MatMul`.
    """
    terms, wanted = labels_of(equation, [operand.ndim for operand in operands])
    x, term = _diagonal(operands[0], terms[0])
    for index, operand in enumerate(operands[1:], 1):
        later = set(wanted).union(*terms[index + 1 :])
        x, term = _product((x, term), _diagonal(operand, terms[index]), later)
    x, term = _summed(x, term, set(wanted))
    return contiguous(x.transpose([term.index(label) for label in wanted]))


def _diagonal(x: Array, term: str) -> tuple[Array, str]:
    """Return x with one dimension for each label, the diagonal of those that share one."""
    distinct = "".join(dict.fromkeys(term))
    numbers = [distinct.index(label) for label in term]
    return np.einsum(x, numbers, list(range(len(distinct)))), distinct


def _summed(x: Array, term: str, kept: set[str]) -> tuple[Array, str]:
    """Return x summed over the labels that nobody asks for."""
    axes = [axis for axis, label in enumerate(term) if label not in kept]
    if not axes:
        return x, term
    left = "".join(label for label in term if label in kept)
    return reduce_sum(contiguous(x), np.array(axes), keepdims=0), left


def _product(
    first: tuple[Array, str], second: tuple[Array, str], wanted: set[str]
) -> tuple[Array, str]:
    """Return the product of two operands, summed over what they share and nobody else wants."""
    a, left = _summed(*first, wanted.union(second[1]))
    b, right = _summed(*second, wanted.union(left))
    shared = [label for label in left if label in right]
    batch = [label for label in shared if label in wanted]
    inner = [label for label in shared if label not in wanted]
    rows = [label for label in left if label not in right]
    columns = [label for label in right if label not in left]
    matrix_a, sizes_a = _matrices(a, left, batch, rows, inner)
    matrix_b, sizes_b = _matrices(b, right, batch, inner, columns)
    product = matmul(matrix_a, matrix_b)
    sizes = [*product.shape[: len(batch)], *sizes_a[0], *sizes_b[1]]
    return product.reshape(sizes), "".join([*batch, *rows, *columns])


def _matrices(
    x: Array, term: str, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> tuple[Array, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return x as matrices, and the sizes that its rows and its columns are made of."""
    moved = x.transpose([term.index(label) for label in (*batch, *rows, *columns)])
    split = len(batch) + len(rows)
    high, wide = moved.shape[len(batch) : split], moved.shape[split:]
    sizes = (*moved.shape[: len(batch)], int(np.prod(high)), int(np.prod(wide)))
    return contiguous(moved.reshape(sizes)), (high, wide)


EINSUM: dict[str, VectorOp] = {"Einsum": arithmetic(einsum, 1, "product")}
