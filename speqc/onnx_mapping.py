"""Tensors that stay in their files: mapped when they are read, and no longer.

An `.onnx` file may embed its weights. Parsing would copy them into memory, so the parser is given
the file's bytes without them, and a reference to where they lie in the file instead.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from speqc.onnx_checks import check_places

SMALLEST = 1 << 16
"""Bytes from which an embedded tensor stays in the file."""

EMBEDDED = "the file itself"
"""What stands for the location of a tensor that the file embeds."""

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
"""Numbers of fields in ONNX's messages."""

ITEM_SIZES = {
    kind.value: kind.bitwidth // 8
    for kind in ir.DataType
    if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and kind.bitwidth >= 8
}
"""Bytes of an element, for types whose elements are whole bytes."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf (its encoding is described at protobuf.dev)."""


def load_model(path: Path) -> ir.Model:
    """The model in a file, without reading large tensors.

    Raises what `onnx_ir.load` raises where the file is no ONNX model, and SpeqcError for places
    of external data that are no numbers.
    """
    if path.suffix != ".onnx":
        return ir.load(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            slim, places = _without_tensors(data)
        except ValueError:
            return ir.load(path)
    proto = onnx.ModelProto.FromString(slim)
    check_places(proto)
    model = ir.from_proto(proto)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == EMBEDDED:
            if (tensor.offset, tensor.length) not in places:
                continue
            value.const_value = mapped_tensor(tensor, path)
    return model


def mapped_tensor(tensor: ir.ExternalTensor, path: Path) -> ir.TensorProtocol:
    """The same tensor, mapped on every read and unmapped with the array.

    (An `ExternalTensor` keeps its map, and with it every page that was read; it also refuses files
    with hard links, as some installers make them.)
    """
    if tensor.size == 0 or tensor.dtype.bitwidth < 8:
        return tensor
    dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
    offset, shape = tensor.offset or 0, tensor.shape.numpy()

    def read() -> ir.TensorProtocol:
        return ir.Tensor(
            np.memmap(path, dtype, "r", offset, shape), dtype=tensor.dtype, shape=tensor.shape
        )

    return ir.LazyTensor(read, tensor.dtype, tensor.shape, name=tensor.name)


class _Field(NamedTuple):
    """A field of a message: its number, where it starts and ends, and where its content starts."""

    number: int
    kind: int
    start: int
    content: int
    stop: int


def _without_tensors(data: mmap.mmap) -> tuple[bytes, set[tuple[int, int]]]:
    """The bytes of a `ModelProto` without large tensors, and offset and length of each of those."""
    places: set[tuple[int, int]] = set()
    slim = bytearray()
    for field in _fields(data, 0, len(data)):
        if field.number == MODEL_GRAPH and field.kind == BYTES:
            slim += _message(MODEL_GRAPH, _slim_graph(data, field, places))
        else:
            slim += data[field.start : field.stop]
    return bytes(slim), places


def _slim_graph(data: mmap.mmap, graph: _Field, places: set[tuple[int, int]]) -> bytes:
    slim = bytearray()
    for field in _fields(data, graph.content, graph.stop):
        if field.number == GRAPH_INITIALIZER and field.stop - field.content >= SMALLEST:
            slim += _message(GRAPH_INITIALIZER, _slim_tensor(data, field, places))
        else:
            slim += data[field.start : field.stop]
    return bytes(slim)


def _slim_tensor(data: mmap.mmap, tensor: _Field, places: set[tuple[int, int]]) -> bytes:
    """A `TensorProto` whose raw data are a reference; as it is where their size is not its shape's.

    (What is wrong with such a one is for others to say.)
    """
    rest, raw = bytearray(), []
    for field in _fields(data, tensor.content, tensor.stop):
        if field.number == TENSOR_RAW_DATA and field.kind == BYTES:
            raw.append(field)
        else:
            rest += data[field.start : field.stop]
    proto = onnx.TensorProto()
    length = raw[0].stop - raw[0].content if len(raw) == 1 else 0
    if length >= SMALLEST:
        proto.ParseFromString(bytes(rest))
    if proto.data_location != onnx.TensorProto.DEFAULT or length != _size(proto):
        return data[tensor.content : tensor.stop]
    places.add((raw[0].content, length))
    proto.data_location = onnx.TensorProto.EXTERNAL
    reference = {"location": EMBEDDED, "offset": raw[0].content, "length": length}
    for key, value in reference.items():
        proto.external_data.add(key=key, value=str(value))
    return proto.SerializeToString()


def _size(proto: onnx.TensorProto) -> int:
    """Bytes of a tensor's elements; -1 where these are not whole bytes."""
    size = ITEM_SIZES.get(proto.data_type)
    return -1 if size is None else size * prod(proto.dims)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[_Field]:
    """The fields of a message; raises ValueError where the bytes are none."""
    while start < stop:
        tag, content = _varint(data, start, stop)
        kind = tag & 7
        if kind == VARINT:
            _, end = _varint(data, content, stop)
        elif kind == BYTES:
            length, content = _varint(data, content, stop)
            end = content + length
        elif kind in (FIXED32, FIXED64):
            end = content + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError(f"unknown wire type {kind}")
        if end > stop:
            raise ValueError("a field is longer than its message")
        yield _Field(tag >> 3, kind, start, content, end)
        start = end


def _varint(data: mmap.mmap, start: int, stop: int) -> tuple[int, int]:
    """The number at `start`, and where it ends."""
    value = 0
    for place in range(start, min(stop, start + 10)):
        value |= (data[place] & 0x7F) << 7 * (place - start)
        if data[place] < 0x80:
            return value, place + 1
    raise ValueError("a number does not end")


def _message(number: int, content: bytes) -> bytes:
    """A field that holds a message."""
    size, length = bytearray(), len(content)
    while length >= 0x80:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | BYTES]) + bytes(size) + content
