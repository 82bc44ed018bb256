"""A shape description -> its `pe` program, by way of an ONNX file without weights."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from speqc.compile import CompileOptions, lower, run_passes
from speqc.decoder_graph import AbsentTensors, decoder_model
from speqc.decoder_shape import DecoderShape
from speqc.model_folder import ModelFolder
from speqc.pipeline import LEVELS, STAGES, passes_to


def compile_shape(shape: DecoderShape, options: CompileOptions) -> ModuleOp:
    """Compile a shape as any model is; its weights are absent whatever `options` say.

    Raises SpeqcError where the target can't hold a tile, or the sizes make no decoder.
    """
    return _lowered(shape, options, LEVELS[-1])


def compile_variants(shape: DecoderShape, variants: Sequence[CompileOptions]) -> Iterator[ModuleOp]:
    """`compile_shape` for options that differ in how weights are stored.

    What the pipeline does before that is done once.
    """
    raised = _lowered(shape, variants[0], LEVELS[0])
    names = [name for stage in LEVELS for name in STAGES[stage]]
    start, stored = len(STAGES[LEVELS[0]]), names.index("split-weights")
    run_passes(raised, _passes(variants[0])[start:stored])
    for options in variants:
        module = raised.clone()
        run_passes(module, _passes(options)[stored:])
        yield module


def _passes(options: CompileOptions) -> list[ModulePass]:
    return passes_to(LEVELS[-1], options.passes(), options.instead())


def _lowered(shape: DecoderShape, options: CompileOptions, level: str) -> ModuleOp:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(decoder_model(shape, AbsentTensors()).SerializeToString())
        context = ModelFolder(context=shape.context)
        return lower(model, replace(options, weights=False), context, level).module
