"""Writes an artifact's `weights.safetensors`, a block of columns at a time.

Memory stays constant however large the model is. Every encoded block is decoded again and compared
with its source: a file that this module completes holds every weight bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp

from speqc.dialects.pe import LoadConstantOp
from speqc.dialects.speq import WeightOp
from speqc.runtime.bsfp import BLOCK, for_each
from speqc.runtime.codebook import (
    CODEBOOK_EXPONENTS,
    CODEBOOK_LEVELS,
    CodeBook,
    load_codebook,
)
from speqc.runtime.errors import SpeqcError
from speqc.runtime.planes import DRAFT_BYTES, REST_BYTES, encode_to_planes, full_panels
from speqc.safetensors_writer import Entry, SafetensorsWriter
from speqc.tensor_store import StoredTensor

CHUNK_BLOCKS = 16
"""Blocks of 64 columns that are encoded together."""


def write_weights(
    path: Path,
    program: ModuleOp,
    tensors: Mapping[str, StoredTensor],
    advance: Callable[[int], None],
) -> int:
    """Write every weight and constant of a `pe` program, and the code book of its split weights.

    Gives how many values of split weights were decoded again and found equal. `advance` is told of
    each number of blocks done, `count_blocks` in all. Raises SpeqcError where a weight does not
    survive encoding, weights have different code books, or two tensors would have one name.
    """
    weights = [op for op in program.ops if isinstance(op, WeightOp)]
    constants = {
        op.source.data: tensors[op.source.data]
        for op in program.walk()
        if isinstance(op, LoadConstantOp)
    }
    # Wide types first, so that each tensor lies at a multiple of its item size.
    ordered = sorted(constants.values(), key=lambda tensor: -tensor.dtype.itemsize)
    book = _program_book(weights)
    parts = {} if book is None else _book_tensors(book)
    entries = [entry for op in weights for entry in _weight_entries(op)]
    entries += [Entry(name, part.dtype, part.shape) for name, part in parts.items()]
    entries += [Entry(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpeqcError(f"two tensors of the model would be stored as {twice!r}: rename one")
    with SafetensorsWriter(path, entries) as writer:
        for op in weights:
            _write_weight(writer, op, matrix(op, tensors), advance)
        for name, part in parts.items():
            writer.write(name, part)
        for tensor in ordered:
            writer.write(tensor.name, tensor.read())
    return split_values(weights)


def split_values(weights: Iterable[WeightOp]) -> int:
    """Values of the split weights: those that `write_weights` proves."""
    return sum(op.shape[0] * op.shape[1] for op in weights if op.is_split)


def count_blocks(program: ModuleOp) -> int:
    """Blocks of columns that `write_weights` goes through."""
    return sum(_blocks(op) for op in program.ops if isinstance(op, WeightOp))


def matrix(op: WeightOp, tensors: Mapping[str, StoredTensor]) -> NDArray[np.uint16]:
    """The FP16 patterns uint16[K, N] of a weight, read from the model."""
    k, n = op.shape
    bits = tensors[op.source.data].read().view(np.uint16)
    return bits.reshape(n, k).T if op.transposed is not None else bits.reshape(k, n)


def _blocks(op: WeightOp) -> int:
    return -(-op.shape[1] // BLOCK)


def _program_book(weights: Iterable[WeightOp]) -> CodeBook | None:
    names = sorted({op.codebook.data for op in weights if op.codebook is not None})
    if len(names) > 1:
        raise SpeqcError(f"an artifact has one code book, the program names {', '.join(names)}")
    return load_codebook(names[0]) if names else None


def _book_tensors(book: CodeBook) -> dict[str, NDArray]:
    return {CODEBOOK_LEVELS: book.levels, CODEBOOK_EXPONENTS: book.exponents}


def _weight_entries(op: WeightOp) -> list[Entry]:
    name, k, blocks = op.sym_name.data, op.shape[0], _blocks(op)
    if op.group_size is None:
        return [Entry(f"{name}.fp16", np.dtype(np.uint16), (blocks, k, BLOCK))]
    groups = -(-k // op.group_size.value.data)
    return [
        Entry(f"{name}.draft", np.dtype(np.uint8), (blocks, k, DRAFT_BYTES)),
        Entry(f"{name}.rest", np.dtype(np.uint8), (blocks, k, REST_BYTES)),
        Entry(f"{name}.scales", np.dtype(np.float16), (blocks, groups, BLOCK)),
    ]


def _write_weight(
    writer: SafetensorsWriter,
    op: WeightOp,
    bits: NDArray[np.uint16],
    advance: Callable[[int], None],
) -> None:
    for first in range(0, _blocks(op), CHUNK_BLOCKS):
        part = bits[:, first * BLOCK : (first + CHUNK_BLOCKS) * BLOCK]
        if op.is_split:
            _write_split(writer, op, part, first)
        else:
            writer.write(f"{op.sym_name.data}.fp16", fp16_panels(part), first)
        advance(min(CHUNK_BLOCKS, _blocks(op) - first))


def _write_split(
    writer: SafetensorsWriter, op: WeightOp, bits: NDArray[np.uint16], first: int
) -> None:
    assert op.codebook is not None and op.group_size is not None
    name, book = op.sym_name.data, load_codebook(op.codebook.data)
    shift = 0 if op.shift is None else op.shift.value.data
    planes = encode_to_planes(bits, book, op.group_size.value.data, shift)
    if not _same(full_panels(planes, book, bits.shape[1], shift), bits):
        raise SpeqcError(
            f"weight @{name} ({op.source.data}): decoding does not give its bits back; "
            "this is an error of speqc, please report it with the model"
        )
    writer.write(f"{name}.draft", planes.draft, first)
    writer.write(f"{name}.rest", planes.rest, first)
    writer.write(f"{name}.scales", planes.scales, first)


def fp16_panels(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Patterns [K, N] as panels [NB, K, 64], zero in the columns beyond N."""
    k, n = bits.shape
    panels = np.zeros((-(-n // BLOCK), k, BLOCK), np.uint16)

    def fill(block: int) -> None:
        columns = bits[:, block * BLOCK : (block + 1) * BLOCK]
        panels[block, :, : columns.shape[1]] = columns

    for_each(range(len(panels)), fill)
    return panels


def _same(panels: NDArray[np.uint16], bits: NDArray[np.uint16]) -> bool:
    """Whether panels hold exactly the patterns [K, N]."""
    differing = [False] * len(panels)

    def compare(block: int) -> None:
        columns = bits[:, block * BLOCK : (block + 1) * BLOCK]
        differing[block] = not np.array_equal(panels[block, :, : columns.shape[1]], columns)

    for_each(range(len(panels)), compare)
    return not any(differing)
