"""Writes an artifact's `weights.safetensors`, a strip of columns at a time.

Each thread reads a strip from the model's file, encodes it, decodes it again, compares that with
the source, and writes it. Memory stays constant however large the model is, and a file that this
module completes holds every weight bit for bit.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp

from speqc.dialects.speq import WeightOp
from speqc.runtime.bsfp import BLOCK, for_each, processors
from speqc.runtime.codebook import (
    CODEBOOK_EXPONENTS,
    CODEBOOK_LEVELS,
    CodeBook,
    load_codebook,
)
from speqc.runtime.copy_formats import COPY_LEVELS, CopyFormat, copy_format
from speqc.runtime.copy_planes import CopyPlanes, copy_panels, copy_tensors
from speqc.runtime.errors import SpeqcError
from speqc.runtime.planes import (
    NIBBLE_PLANES,
    PLANE_BYTES,
    Planes,
    decodes_to,
    encode_panels,
    to_panels,
)
from speqc.runtime.tensor_references import constants as program_constants
from speqc.safetensors_writer import Entry, SafetensorsWriter
from speqc.tensor_store import StoredTensor

STRIPS_BYTES = 1 << 25
"""Bytes of FP16 that all threads together hold of weights, unless 64 columns are more."""

STRIP_BLOCKS = 64
"""Most blocks of 64 columns in a strip."""


Encode = Callable[
    [str, int, NDArray[np.uint16], int, CodeBook | CopyFormat, int, int], Planes | CopyPlanes
]
"""Encodes columns of a weight: (name, first, panels [NB, K, 64], n, scheme, group size, shift).

These are the n columns from `first` on. The scheme is a code book, which gives planes, or the
format of a copy, which gives that.
"""


class WeightGroup(Protocol):
    """Weights that one thread encodes, one after another, with what it has prepared for them."""

    @property
    def weights(self) -> Sequence[str]:
        """Their names."""
        ...

    def prepare(self) -> Encode:
        """How they are encoded."""
        ...


class Calibration(Protocol):
    """Another choice of codes than the nearest ones, for some of the weights."""

    def stages(self) -> Iterator[Sequence[WeightGroup]]:
        """Groups that may be encoded side by side; a stage is made when the last one is done."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the manifest says of it, once all stages are done."""
        ...


def write_weights(
    path: Path,
    program: ModuleOp,
    tensors: Mapping[str, StoredTensor],
    advance: Callable[[int], None],
    calibration: Calibration | None = None,
) -> int:
    """Write every weight and constant of a `pe` program, and what its drafts are to be read with.

    Gives how many values of split weights were decoded again and found equal. `advance` is told of
    each number of blocks done, `count_blocks` in all. Weights that a `calibration` does not name
    get their nearest codes. Raises SpeqcError where a weight does not
    survive encoding, weights have different code books or copies in different formats, or two
    tensors would have one name.
    """
    weights = [op for op in program.ops if isinstance(op, WeightOp)]
    constants = {op.source.data: tensors[op.source.data] for op in program_constants(program)}
    # Wide types first, so that each tensor lies at a multiple of its item size.
    ordered = sorted(constants.values(), key=lambda tensor: -tensor.dtype.itemsize)
    parts = _scheme_tensors(weights)
    entries = [entry for op in weights for entry in _weight_entries(op)]
    entries += [Entry(name, part.dtype, part.shape) for name, part in parts.items()]
    entries += [Entry(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpeqcError(f"two tensors of the model would be stored as {twice!r}: rename one")
    strips = {op.sym_name.data: _strips(op) for op in weights}
    lock = threading.Lock()
    with SafetensorsWriter(path, entries) as writer:

        def write(strip: Strip, encode: Encode) -> None:
            _write_strip(writer, strip, tensors, encode)
            with lock:
                advance(strip.blocks)

        for groups in () if calibration is None else calibration.stages():
            _write_groups(groups, strips, write)
        others = [strip for of_weight in strips.values() for strip in of_weight]
        for_each(range(len(others)), lambda index: write(others[index], encode_nearest))
        for name, part in parts.items():
            writer.write(name, part)
        for tensor in ordered:
            writer.write(tensor.name, tensor.read())
    return split_values(weights)


def _write_groups(
    groups: Sequence[WeightGroup],
    strips: dict[str, list["Strip"]],
    write: Callable[["Strip", Encode], None],
) -> None:
    """Write the strips of the groups' weights, and take them out of `strips`."""
    taken = [[strip for name in group.weights for strip in strips.pop(name)] for group in groups]

    def write_group(index: int) -> None:
        encode = groups[index].prepare()
        for strip in taken[index]:
            write(strip, encode)

    for_each(range(len(groups)), write_group)


def encode_nearest(
    _name: str,
    _first: int,
    panels: NDArray[np.uint16],
    n: int,
    scheme: CodeBook | CopyFormat,
    group_size: int,
    shift: int,
) -> Planes | CopyPlanes:
    """Encode as `bsfp.encode` or `copies.encode_copy`, which need to know nothing of the layer."""
    if isinstance(scheme, CopyFormat):
        return copy_panels(panels, n, scheme, group_size, shift)
    return encode_panels(panels, n, scheme, group_size, shift)


def split_values(weights: Iterable[WeightOp]) -> int:
    """Values of the split weights: those that `write_weights` proves."""
    return sum(op.shape[0] * op.shape[1] for op in weights if op.is_split)


def count_blocks(program: ModuleOp) -> int:
    """Blocks of columns that `write_weights` goes through."""
    return sum(_blocks(op) for op in program.ops if isinstance(op, WeightOp))


@dataclass(frozen=True)
class Strip:
    """Some blocks of columns of a weight, which one thread reads, encodes, proves and writes."""

    weight: WeightOp
    first: int
    blocks: int

    def read(self, tensors: Mapping[str, StoredTensor]) -> NDArray[np.uint16]:
        """The FP16 patterns uint16[K, columns], from the model; a view of its file if possible."""
        op = self.weight
        start, stop = self.first * BLOCK, (self.first + self.blocks) * BLOCK
        part = None if op.part is None else op.part.value.data
        tensor = tensors[op.source.data]
        if op.transposed is not None:
            return tensor.read_rows(start, stop, part).view(np.uint16).T
        return tensor.read_columns(start, stop, part).view(np.uint16)


def _strips(op: WeightOp) -> list[Strip]:
    """The strips of a weight: as wide as memory allows, since a file is read fastest along rows."""
    total, block_bytes = _blocks(op), 2 * BLOCK * op.shape[0]
    step = min(STRIP_BLOCKS, max(1, STRIPS_BYTES // processors() // block_bytes))
    return [Strip(op, first, min(step, total - first)) for first in range(0, total, step)]


def _blocks(op: WeightOp) -> int:
    return -(-op.shape[1] // BLOCK)


def _scheme_tensors(weights: Sequence[WeightOp]) -> dict[str, NDArray]:
    """The tensors that say what the bits of drafts mean."""
    book = _program_book(weights)
    parts = {} if book is None else _book_tensors(book)
    formats = sorted({op.copy.data for op in weights if op.copy is not None})
    if len(formats) > 1:
        raise SpeqcError(f"an artifact has copies in one format, not in {', '.join(formats)}")
    if formats:
        parts[COPY_LEVELS] = copy_format(formats[0]).levels
    return parts


def _program_book(weights: Iterable[WeightOp]) -> CodeBook | None:
    books = {(op.codebook.data, op.level_set) for op in weights if op.codebook is not None}
    if len(books) > 1:
        names = sorted(" ".join(filter(None, book)) for book in books)
        raise SpeqcError(f"an artifact has one code book, the program names {', '.join(names)}")
    return load_codebook(*books.pop()) if books else None


def _book_tensors(book: CodeBook) -> dict[str, NDArray]:
    return {CODEBOOK_LEVELS: book.levels, CODEBOOK_EXPONENTS: book.exponents}


def _weight_entries(op: WeightOp) -> list[Entry]:
    name, k, blocks = op.sym_name.data, op.shape[0], _blocks(op)
    plain = Entry(f"{name}.fp16", np.dtype(np.uint16), (blocks, k, BLOCK))
    if op.group_size is None:
        return [plain]
    if op.copy is not None:
        form, size = copy_format(op.copy.data), op.group_size.value.data
        parts = copy_tensors(k, blocks, form, size)
        return [plain, *(Entry(f"{name}.{end}", *of) for end, of in parts.items())]
    groups = -(-k // op.group_size.value.data)
    return [
        *(
            Entry(f"{name}.{plane}", np.dtype(np.uint8), (blocks, k, PLANE_BYTES))
            for plane in NIBBLE_PLANES
        ),
        Entry(f"{name}.scales", np.dtype(np.float16), (blocks, groups, BLOCK)),
    ]


def _write_strip(
    writer: SafetensorsWriter,
    strip: Strip,
    tensors: Mapping[str, StoredTensor],
    encode: Encode,
) -> None:
    bits = strip.read(tensors)
    panels, n = to_panels(bits), bits.shape[1]
    if strip.weight.is_split:
        _write_split(writer, strip, panels, n, encode)
        return
    writer.write(f"{strip.weight.sym_name.data}.fp16", panels, strip.first)
    if strip.weight.copy is not None:
        _write_copy(writer, strip, panels, n, encode)


def _write_split(
    writer: SafetensorsWriter, strip: Strip, panels: NDArray[np.uint16], n: int, encode: Encode
) -> None:
    op = strip.weight
    assert op.codebook is not None and op.group_size is not None
    name, book = op.sym_name.data, load_codebook(op.codebook.data, op.level_set)
    shift = 0 if op.shift is None else op.shift.value.data
    first = strip.first * BLOCK
    planes = encode(name, first, panels, n, book, op.group_size.value.data, shift)
    assert isinstance(planes, Planes)
    if not decodes_to(planes, book, panels, n, shift):
        raise SpeqcError(
            f"weight @{name} ({op.source.data}): decoding does not give its bits back; "
            "this is an error of speqc, please report it with the model"
        )
    for plane, nibbles in zip(NIBBLE_PLANES, planes.nibbles, strict=True):
        writer.write(f"{name}.{plane}", nibbles, strip.first)
    writer.write(f"{name}.scales", planes.scales, strip.first)


def _write_copy(
    writer: SafetensorsWriter, strip: Strip, panels: NDArray[np.uint16], n: int, encode: Encode
) -> None:
    """Write the copy that stands beside a weight's FP16 patterns."""
    op = strip.weight
    assert op.copy is not None and op.group_size is not None
    shift = 0 if op.shift is None else op.shift.value.data
    name, form = op.sym_name.data, copy_format(op.copy.data)
    first = strip.first * BLOCK
    planes = encode(name, first, panels, n, form, op.group_size.value.data, shift)
    assert isinstance(planes, CopyPlanes)
    for end, part in planes.tensors.items():
        writer.write(f"{name}.{end}", part, strip.first)
