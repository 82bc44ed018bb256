"""A shape description -> its `pe` program, by way of an ONNX file without weights."""

import tempfile
from dataclasses import replace
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from speqc.compile import CompileOptions, lower
from speqc.decoder_graph import AbsentTensors, decoder_model
from speqc.decoder_shape import DecoderShape
from speqc.model_folder import ModelFolder
from speqc.pipeline import LEVELS


def compile_shape(shape: DecoderShape, options: CompileOptions) -> ModuleOp:
    """Compile a shape as any model is; its weights are absent whatever `options` say.

    Raises SpeqcError where the target can't hold a tile, or the sizes make no decoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(decoder_model(shape, AbsentTensors()).SerializeToString())
        context = ModelFolder(context=shape.context)
        return lower(model, replace(options, weights=False), context, LEVELS[-1]).module
