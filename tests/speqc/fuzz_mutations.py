"""Small valid models, and damage done to their files: to fields of the protobuf, or to bytes.

A case is a number: the same seed and number always give the same files.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper
from onnx_models import HIDDEN, VOCABULARY, decoder, fused_decoder, quantized, save

MODEL, DATA = "model.onnx", "model.onnx.data"

Files = dict[str, bytes]
"""Contents by file name."""

INTEGERS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 65, 80, 127)
INTEGERS += (255, 4096, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-7, 0.5, 65504.0, 3e38, float("inf"), float("nan"))
TEXTS = ("", ".", "..", "/", "/dev/zero", "../model.onnx", "a\nb", "\0", "é", "-1", "x" * 3000)
"""Values that code tends to forget, of sizes, of numbers, and of names, paths and entries."""

LARGEST_STEP = 3
"""The most mutations in one file."""


def case(seed: int, number: int) -> Files:
    """The files of one case: a valid model, mutated one to three times."""
    random = Random(f"{seed}:{number}")
    files = dict(random.choice(seeds()))
    mutate = mutate_bytes if random.random() < 0.2 else mutate_fields
    for _ in range(random.randint(1, LARGEST_STEP)):
        files = mutate(files, random)
    return files


@cache
def seeds() -> tuple[Files, ...]:
    """Valid models of every form that the importer knows, as their files."""
    return (
        _files(decoder()),
        _files(decoder(), external=True),
        _files(decoder(caches=False, opset=15)),
        _files(decoder(element_type=TensorProto.FLOAT)),
        _files(_with_function(decoder())),
        _files(quantized(decoder(opset=21)), external=True),
        _files(fused_decoder()),
        _files(fused_decoder(), external=True),
    )


def _files(model: onnx.ModelProto, external: bool = False) -> Files:
    with TemporaryDirectory() as folder:
        save(model, Path(folder), external)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its last sum in a function, as exporters of modules write it."""
    body = [helper.make_node("Add", ["a", "b"], ["sum"])]
    opset = helper.make_opsetid("", 20)
    domain = "org.example"
    model.functions.append(helper.make_function(domain, "Sum", ["a", "b"], ["sum"], body, [opset]))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    node = next(node for node in model.graph.node if node.output[0] == "residual_0")
    node.op_type, node.domain = "Sum", domain
    return model


def mutate_bytes(files: Files, random: Random) -> Files:
    """Flip, overwrite, cut off, insert or move some bytes of one of the files."""
    name = random.choice([MODEL, MODEL, MODEL, *files])
    data = bytearray(files[name])
    if not data:
        return files
    start = random.randrange(len(data))
    stop = min(len(data), start + random.choice((1, 2, 8, 64, 512)))
    match random.choice(("flip", "overwrite", "cut", "remove", "insert", "splice")):
        case "flip":
            data[start] ^= 1 << random.randrange(8)
        case "overwrite":
            data[start:stop] = random.randbytes(stop - start)
        case "cut":
            del data[start:]
        case "remove":
            del data[start:stop]
        case "insert":
            data[start:start] = random.randbytes(stop - start)
        case "splice":
            other = random.choice(seeds())[MODEL]
            place = random.randrange(len(other))
            data[start:stop] = other[place : place + random.choice((1, 8, 64, 512))]
    return {**files, name: bytes(data)}


def mutate_fields(files: Files, random: Random) -> Files:
    """Change one field of the model's protobuf; bytes of one that has no nodes any more."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(files[MODEL])
    except DecodeError:
        return mutate_bytes(files, random)
    if not model.graph.node:
        return mutate_bytes(files, random)
    special = (_rewire, _rename_operator, _resize, _point_elsewhere)
    mutation = random.choice(special) if random.random() < 0.5 else _change_a_field
    mutation(model, random)
    return {**files, MODEL: model.SerializeToString()}


def _rewire(model: onnx.ModelProto, random: Random) -> None:
    """Let a node read another value, or nothing, or have its inputs in another order."""
    node = random.choice(model.graph.node)
    if not node.input:
        return
    position = random.randrange(len(node.input))
    match random.choice(("other", "other", "none", "swap", "drop", "add")):
        case "other":
            node.input[position] = random.choice(_value_names(model))
        case "none":
            node.input[position] = ""
        case "swap":
            node.input[:] = random.sample(list(node.input), len(node.input))
        case "drop":
            del node.input[position]
        case "add":
            node.input.append(random.choice(_value_names(model)))


def _value_names(model: onnx.ModelProto) -> list[str]:
    made = [name for node in model.graph.node for name in node.output]
    given = [value.name for value in (*model.graph.input, *model.graph.initializer)]
    return [*made, *given] or [""]


def _rename_operator(model: onnx.ModelProto, random: Random) -> None:
    """Make a node one of another operator, standard or in use elsewhere."""
    node = random.choice(model.graph.node)
    if random.random() < 0.8:
        node.op_type, node.domain = random.choice(_standard_operators()), ""
    else:
        other = random.choice(model.graph.node)
        node.op_type, node.domain = other.op_type, other.domain


@cache
def _standard_operators() -> tuple[str, ...]:
    found = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    return tuple(sorted(found))


def _resize(model: onnx.ModelProto, random: Random) -> None:
    """Give a tensor, an input or an output other dimensions; a tensor perhaps with other data."""
    values = [*model.graph.input, *model.graph.output]
    if random.random() < 0.5 and model.graph.initializer:
        tensor = random.choice(model.graph.initializer)
        dims = list(tensor.dims)
        random.choice((_change_one, _permute))(dims, random)
        tensor.dims[:] = dims
        if random.random() < 0.5 and 0 <= _product(dims) < 1 << 16:
            tensor.raw_data = random.randbytes(_product(dims) * _item_size(tensor.data_type))
    elif values:
        shape = random.choice(values).type.tensor_type.shape
        if shape.dim:
            dim = random.choice(shape.dim)
            if random.random() < 0.5:
                dim.dim_value = random.choice(INTEGERS)
            else:
                dim.dim_param = random.choice(("batch", "sequence", "past", "total", "x", *TEXTS))


def _change_one(dims: list[int], random: Random) -> None:
    if not dims or random.random() < 0.2:
        dims.insert(random.randint(0, len(dims)), 1)
    else:
        position = random.randrange(len(dims))
        dims[position] = random.choice((*INTEGERS, HIDDEN, VOCABULARY, dims[position] * 2))


def _permute(dims: list[int], random: Random) -> None:
    random.shuffle(dims)


def _product(dims: list[int]) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product


def _item_size(data_type: int) -> int:
    try:
        return helper.tensor_dtype_to_np_dtype(data_type).itemsize
    except (KeyError, TypeError, ValueError):
        return 1


def _point_elsewhere(model: onnx.ModelProto, random: Random) -> None:
    """Change an entry that says where external data lie, or make data external."""
    tensors = model.graph.initializer
    if not tensors:
        return
    external = [tensor for tensor in tensors if tensor.external_data]
    tensor = random.choice(external or tensors)
    if not external or random.random() < 0.1:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=MODEL)
    entry = random.choice(tensor.external_data)
    if random.random() < 0.2:
        entry.key = random.choice(("location", "offset", "length", "checksum", "basepath", ""))
    else:
        entry.value = random.choice((*TEXTS, *map(str, INTEGERS), MODEL, DATA, f"./{DATA}"))


def _change_a_field(model: onnx.ModelProto, random: Random) -> None:
    """Choose a kind of field, then one such field of the model, and change it."""
    places: dict[str, list[tuple[Message, FieldDescriptor]]] = {}
    for message in _messages(model):
        for field in message.DESCRIPTOR.fields:
            places.setdefault(field.full_name, []).append((message, field))
    used = [place for place in places.values() if any(_is_set(*one) for one in place)]
    chosen = used if random.random() < 0.85 else list(places.values())
    message, field = random.choice(random.choice(chosen))
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, random)
    elif field.message_type is not None:
        _change_message(message, field, random)
    elif _is_set(message, field) and random.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), random))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from _messages(inner)


def _is_set(message: Message, field: FieldDescriptor) -> bool:
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    return message.HasField(field.name)


def _change_list(items: Any, field: FieldDescriptor, random: Random) -> None:
    """Remove, repeat, exchange, add or change an item."""
    is_message = field.message_type is not None
    position = random.randrange(len(items)) if len(items) else 0
    action = random.choice(("remove", "repeat", "exchange", "add", "change", "change"))
    if action == "add" or not len(items):
        if is_message:
            items.add()
        else:
            items.append(_scalar(field, None, random))
    elif action == "remove":
        del items[position]
    elif action == "repeat":
        if is_message:
            items.add().CopyFrom(items[position])
        else:
            items.append(items[position])
    elif is_message:
        items[position].CopyFrom(items[random.randrange(len(items))])
    elif action == "exchange":
        items[position] = items[random.randrange(len(items))]
    else:
        items[position] = _scalar(field, items[position], random)


def _change_message(message: Message, field: FieldDescriptor, random: Random) -> None:
    if message.HasField(field.name) and random.random() < 0.7:
        message.ClearField(field.name)
    else:
        getattr(message, field.name).SetInParent()


def _scalar(field: FieldDescriptor, old: Any, random: Random) -> Any:
    """Another value of a field that is no message."""
    kinds = FieldDescriptor
    makers: dict[int, Callable[[], Any]] = {
        kinds.CPPTYPE_STRING: lambda: _text(field, old, random),
        kinds.CPPTYPE_FLOAT: lambda: random.choice(NUMBERS),
        kinds.CPPTYPE_DOUBLE: lambda: random.choice(NUMBERS),
        kinds.CPPTYPE_ENUM: lambda: random.choice(field.enum_type.values).number,
        kinds.CPPTYPE_INT32: lambda: random.choice([n for n in INTEGERS if abs(n) < 2**31]),
        kinds.CPPTYPE_UINT64: lambda: random.choice([n for n in INTEGERS if n >= 0]),
        kinds.CPPTYPE_INT64: lambda: random.choice((*INTEGERS, (old or 0) + 1, (old or 0) - 1)),
    }
    return makers[field.cpp_type]()


def _text(field: FieldDescriptor, old: str | bytes | None, random: Random) -> str | bytes:
    if field.type == FieldDescriptor.TYPE_STRING:
        return random.choice((*TEXTS, f"{old}_", "tokens", "scores", "mask", "com.microsoft"))
    data = bytes(old or b"") if not isinstance(old, str) else b""
    return random.choice((b"", data[:-1], data + b"\0", data[::-1], random.randbytes(len(data))))
