"""The ONNX file behind an artifact, and the values of its inner tensors, by onnxruntime.

The file is run as it is: the names of the wanted tensors are appended to its outputs, optimisations
are off, and external data stay where they are. Functions are inlined, since their tensors have no
name outside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from speqc.onnx_decoder import find_logits
from speqc.onnx_reader import open_model, source_files
from speqc.onnx_simplify import simplify
from speqc.onnx_state import FLOATS, find_kv_pairs, find_token_input
from speqc.onnx_symbols import PAST, SEQUENCE
from speqc.runtime.errors import SpeqcError
from speqc.tensor_store import file_digest

DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's name for the folder of external data of a model that it gets as bytes."""


@dataclass(frozen=True)
class Original:
    """An ONNX file, read as the importer reads it.

    Attributes:
        path: the file.
        model: the simplified model, whose nodes a program names.
        values: names of all values that nodes of the file make.
    """

    path: Path
    model: ir.Model
    values: frozenset[str]

    @property
    def logits(self) -> str:
        """The output that holds the logits."""
        return self.model.graph.outputs[find_logits(self.model)].name or ""


def read_original(path: Path, digests: Mapping[str, str]) -> Original:
    """Read the model at `path`.

    `digests` are those of the files that the artifact was compiled from, by name. Raises SpeqcError
    where the file can't be used, or is another one.
    """
    model = open_model(path)
    compiled = set(digests.values())
    for file in source_files(model):
        if f"sha256:{file_digest(file)}" not in compiled:
            raise SpeqcError(
                f"{path}: is not the model that the artifact was compiled from ({file.name} has "
                "another digest): give that one, or compile this one"
            )
    values = frozenset(v.name for node in model.graph for v in node.outputs if v.name)
    return Original(path, simplify(model), values)


class OriginalValues:
    """Runs the file on tokens behind no positions and gives inner tensors, some at a time."""

    def __init__(self, original: Original, names: Iterable[str], tokens: Sequence[int]):
        """Prepare to give the values `names`; raises SpeqcError where onnxruntime can't run it."""
        self._runtime = import_onnxruntime()
        self._path = original.path
        outputs = {value.name for value in original.model.graph.outputs}
        extended = _with_outputs(original.path, [name for name in names if name not in outputs])
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_reuse = False
        options.add_session_config_entry(DATA_FOLDER, str(original.path.resolve().parent))
        try:
            self._session = self._runtime.InferenceSession(
                extended, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise self._failed(error) from error
        self._feeds = _feeds(original, self._session.get_inputs(), tokens)

    def read(self, names: Sequence[str]) -> dict[str, NDArray]:
        """The values of that name."""
        options = self._runtime.RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            found = self._session.run(list(names), self._feeds, options)
        except Exception as error:
            raise self._failed(error) from error
        return dict(zip(names, map(np.asarray, found), strict=True))

    def _failed(self, error: Exception) -> SpeqcError:
        return SpeqcError(f"{self._path}: onnxruntime can't run it: {error}")


def import_onnxruntime() -> Any:
    """The module; SpeqcError where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise SpeqcError("onnxruntime is not installed: pip install onnxruntime") from None
    return onnxruntime


def _with_outputs(path: Path, names: Iterable[str]) -> bytes:
    """The file's bytes with more outputs.

    Serialized messages that are put end to end are merged, lists being joined: so nothing of a
    file without functions is parsed or copied but once.
    """
    added = [onnx.ValueInfoProto(name=name) for name in names]
    suffix = onnx.ModelProto(graph=onnx.GraphProto(output=added)).SerializeToString()
    model = ir.load(path)
    if not model.functions:
        return path.read_bytes() + suffix
    common.InlinePass()(model)
    return ir.to_proto(model).SerializeToString() + suffix


def _feeds(original: Original, inputs: Sequence[Any], tokens: Sequence[int]) -> dict[str, NDArray]:
    """Inputs for tokens in an empty cache: positions from 0, and a mask that admits all."""
    graph = original.model.graph
    values = {value.name: value for value in graph.inputs}
    found = find_token_input(graph)
    pasts = {graph.inputs[pair.past_input].name for pair in find_kv_pairs(original.model)}
    feeds = {}
    for entry in inputs:
        value = values[entry.name]
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.int64)
        sizes = _sizes(original, value, len(tokens))
        if found is not None and entry.name == found.name:
            feeds[entry.name] = np.array([tokens], dtype)
        elif entry.name in pasts or not value.uses():
            feeds[entry.name] = np.zeros(sizes, dtype)
        elif "position" in entry.name:
            feeds[entry.name] = np.broadcast_to(np.arange(len(tokens)), sizes).astype(dtype)
        elif "mask" in entry.name and value.dtype not in FLOATS:
            feeds[entry.name] = np.ones(sizes, dtype)
        else:
            raise SpeqcError(
                f"{original.path}: input '{entry.name}': it is not known what it is for"
            )
    return feeds


def _sizes(original: Original, value: ir.Value, tokens: int) -> list[int]:
    """The shape of an input for so many tokens behind none."""
    symbols = {SEQUENCE: tokens, PAST: 0}
    sizes = []
    for dim in value.shape or ():
        terms = [term.strip() for term in str(dim).split("+")]
        if not all(term in symbols or term.isdecimal() for term in terms):
            raise SpeqcError(f"{original.path}: input '{value.name}': its size {dim} is not known")
        sizes.append(sum(symbols[term] if term in symbols else int(term) for term in terms))
    return sizes
