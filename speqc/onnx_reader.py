"""Opens an ONNX file, or says in one line why it can't be used.

Nothing but the graph is loaded: external data are mapped when a tensor is read. A path in a file
may name nothing outside the file's folder.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError

from speqc.onnx_checks import check_operators, check_opset, check_signatures, check_weights
from speqc.onnx_decoder import check_decoder
from speqc.onnx_quiet import first_cause, quiet
from speqc.runtime.errors import SpeqcError

FILES_KEY = "speqc.files"
"""Where a model's `meta` keeps the paths of the files it was read from."""

LFS_POINTER = b"version https://git-lfs"


def open_model(path: str | Path, supported: Collection[str] | None = None) -> ir.Model:
    """The model at `path`, its functions inlined, checked to be a decoder that we can compile.

    `supported` names the operators of the default domain that may occur, by default those that the
    machine or a pass knows. Raises SpeqcError, naming the file and the node or tensor.
    """
    path = Path(path)
    try:
        model = _load(path)
        _check_names(model.graph)
        check_opset(model)
        files = _map_external_data(model, path.parent)
        model.meta[FILES_KEY] = (path, *files)
        common.RemoveInitializersFromInputsPass()(model)
        common.InlinePass()(model)
        check_operators(model.graph, supported)
        check_signatures(model.graph)
        check_weights(model.graph)
        check_decoder(model)
    except SpeqcError as error:
        raise SpeqcError(f"{path}: {error}") from error
    return model


def source_files(model: ir.Model) -> tuple[Path, ...]:
    """The files of a model that `open_model` opened: the `.onnx` file and its external data."""
    return model.meta.get(FILES_KEY, ())


def _load(path: Path) -> ir.Model:
    if not path.exists():
        raise SpeqcError("no such file")
    if path.is_dir():
        raise SpeqcError("is a folder; give the .onnx file in it")
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise SpeqcError("is empty")
    if start == LFS_POINTER:
        raise SpeqcError("is a Git LFS pointer, not the model; fetch it with 'git lfs pull'")
    try:
        with quiet():
            model = ir.load(path)
    except DecodeError as error:
        raise SpeqcError("is no ONNX file, or is truncated") from error
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
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
        raise SpeqcError(f"graph '{graph.name}' has a cycle") from error


def _map_external_data(model: ir.Model, folder: Path) -> list[Path]:
    """Check external tensors and let them be mapped on every read; returns their files."""
    files: dict[str, Path] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if location not in files:
            files[location] = _safe_path(folder, location, tensor.name)
        _check_extent(tensor, files[location])
        value.const_value = _mapped(tensor, files[location])
    return list(files.values())


def _safe_path(folder: Path, location: str, name: str) -> Path:
    """The file that `location` names, which must lie in `folder`, links followed."""
    path = folder / location
    what = f"tensor '{name}': external data file '{location}'"
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise SpeqcError(f"{what} is outside the model's folder; refused")
    if not path.exists():
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


def _mapped(tensor: ir.ExternalTensor, path: Path) -> ir.TensorProtocol:
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
