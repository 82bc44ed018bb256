"""Opens an ONNX file, or says in one line why it can't be used.

Nothing but the graph is loaded: large tensors are mapped when they are read. A path in a file
may name nothing outside the file's folder.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError
from onnx_ir.external_data import set_base_dir

from speqc.artifact import is_artifact
from speqc.onnx_checks import (
    check_format,
    check_inputs,
    check_operators,
    check_opset,
    check_signatures,
    check_tensor,
    check_tensors,
    check_weights,
)
from speqc.onnx_conversions import convert_weights
from speqc.onnx_decoder import check_decoder
from speqc.onnx_functions import inline_functions
from speqc.onnx_mapping import load_model, mapped_tensor
from speqc.onnx_missing import forget_weights, may_be_missing, missing_tensor
from speqc.onnx_quiet import first_cause, quiet
from speqc.runtime.errors import SpeqcError

FILES_KEY = "speqc.files"
"""Where a model's `meta` keeps the paths of the files it was read from."""

LONGEST_NAME = 250
"""Characters of a path of external data; many file systems allow no more in a name."""

LFS_POINTER = b"version https://git-lfs"


def open_model(
    path: str | Path, supported: Collection[str] | None = None, *, weights: bool = True
) -> ir.Model:
    """The model at `path`, its functions inlined, checked to be a decoder that we can compile.

    `supported` names the operators of the default domain that may occur, by default those that the
    machine or a pass knows. With `weights` off, files of external data may be missing, and the
    weights of products are never read. Raises SpeqcError, naming the file and the node or tensor.
    """
    path = Path(path)
    try:
        model = _load(path)
        check_format(model)
        _check_names(model.graph)
        check_inputs(model.graph)
        check_opset(model)
        files = _map_external_data(model, path.parent, weights=weights)
        model.meta[FILES_KEY] = (path, *files) if weights else (path,)
        common.RemoveInitializersFromInputsPass()(model)
        inline_functions(model)
        check_operators(model.graph, supported)
        check_signatures(model.graph)
        check_tensors(model.graph)
        convert_weights(model.graph)
        check_weights(model.graph)
        check_decoder(model)
        if not weights:
            forget_weights(model)
    except SpeqcError as error:
        raise SpeqcError(f"{path}: {error}") from error
    return model


def source_files(model: ir.Model) -> tuple[Path, ...]:
    """The files of a model that `open_model` opened: the `.onnx` file and its external data.

    The `.onnx` file alone where it was opened without its weights.
    """
    return model.meta.get(FILES_KEY, ())


def _load(path: Path) -> ir.Model:
    if not path.exists():
        raise SpeqcError("no such file")
    if path.is_dir():
        if is_artifact(path):
            raise SpeqcError("is a speqc artifact, compiled already; give the .onnx file")
        raise SpeqcError("is a folder; give the .onnx file in it")
    if not path.is_file():
        raise SpeqcError("is not a file but a pipe or device; give the .onnx file")
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise SpeqcError("is empty")
    if start == LFS_POINTER:
        raise SpeqcError("is a Git LFS pointer, not the model; fetch it with 'git lfs pull'")
    try:
        with quiet():
            model = load_model(path)
    except DecodeError as error:
        raise SpeqcError("is no ONNX file, or is truncated") from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SpeqcError(f"is not valid ONNX: {first_cause(error)}") from error
    if not len(model.graph):
        raise SpeqcError("holds no graph; it is no ONNX file, or is truncated")
    return model


def _check_names(graph: ir.Graph) -> None:
    """Every value that is read must be made, none by way of itself; names must be text."""
    for node in graph:
        texts = (node.op_type, node.domain, node.name or "", *(v.name or "" for v in node.outputs))
        if not all(isinstance(text, str) for text in texts):
            raise SpeqcError(f"the names of a node are no text ({texts}); the file is damaged")
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        known.update(node.outputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                raise SpeqcError(
                    f"node '{node.name}' ({node.op_type}) reads '{value.name}', which is neither "
                    "an input nor an initializer nor the output of a node"
                )
    for value in graph.outputs:
        if value not in known:
            raise SpeqcError(f"output '{value.name}' is not made by any node")
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise SpeqcError(f"initializer '{name}' has no data")
    try:
        graph.sort()
    except ValueError as error:
        name = _node_of_cycle(graph)
        raise SpeqcError(f"graph '{graph.name}' has a cycle through node '{name}'") from error


def _node_of_cycle(graph: ir.Graph) -> str | None:
    """The name of a node that reads, by way of others, what it makes."""
    waiting = set(graph)
    while ready := {node for node in waiting if waiting.isdisjoint(node.predecessors())}:
        waiting -= ready
    node, seen = next(node for node in graph if node in waiting), set()
    while node not in seen:
        seen.add(node)
        node = next(before for before in node.predecessors() if before in waiting)
    return node.name


def _map_external_data(model: ir.Model, folder: Path, *, weights: bool) -> list[Path]:
    """Check external tensors and let them be mapped on every read; returns their files.

    With `weights` off, a missing file is an error for small tensors alone.
    """
    set_base_dir(model.graph, folder)
    files: dict[str, Path] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        check_tensor(tensor, f"tensor '{tensor.name}'")
        location = str(tensor.location)
        if not weights and may_be_missing(tensor) and not (folder / location).exists():
            value.const_value = missing_tensor(tensor, value.name)
            continue
        if location not in files:
            files[location] = _safe_path(folder, location, tensor.name)
        _check_extent(tensor, files[location])
        value.const_value = mapped_tensor(tensor, files[location])
    return list(files.values())


def _safe_path(folder: Path, location: str, name: str) -> Path:
    """The file that `location` names, which must lie in `folder`, links followed."""
    path = folder / location
    what = f"tensor '{name}': external data file '{location[:LONGEST_NAME]}'"
    if not location:
        raise SpeqcError(f"tensor '{name}': its external data have no location")
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise SpeqcError(f"{what} is outside the model's folder; refused")
    if len(location) > LONGEST_NAME or not path.exists():
        raise SpeqcError(f"{what} is missing; put it beside the .onnx file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise SpeqcError(
            f"{what} is a link out of the model's folder; refused (copy the model with its data)"
        )
    if not path.is_file():
        raise SpeqcError(f"{what} is not a file")
    return path


def _check_extent(tensor: ir.ExternalTensor, path: Path) -> None:
    """The bytes of a tensor must lie in its file, as many as its shape takes."""
    offset, size = tensor.offset or 0, path.stat().st_size
    length = tensor.nbytes if tensor.length is None else tensor.length
    if length != tensor.nbytes:
        raise SpeqcError(
            f"tensor '{tensor.name}': external data have {length} bytes, its shape "
            f"{list(tensor.shape.numpy())} of {tensor.dtype} takes {tensor.nbytes}"
        )
    if offset < 0 or offset + length > size:
        raise SpeqcError(
            f"tensor '{tensor.name}': bytes {offset} to {offset + length} of '{path.name}' are "
            f"beyond its {size} bytes; the file is truncated or is not this model's"
        )
