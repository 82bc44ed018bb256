"""The compiler's driver: an ONNX file in, an artifact or the IR of one level out."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64
from xdsl.dialects.func import FuncOp
from xdsl.utils.exceptions import VerifyException

from speqc.artifact import Origin, check_destination, write_artifact
from speqc.diagnostics import note, progress
from speqc.dialects.speq import FULL, WeightOp
from speqc.dump_ir import IrDump, print_module
from speqc.expert_report import routers_text
from speqc.model_folder import ModelFolder, read_model_folder
from speqc.onnx_import import Imported, import_model
from speqc.pipeline import LEVELS, PassOptions, passes_to
from speqc.program_reader import new_context
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import CONTEXT_NAME, TARGET_NAME, target_attribute
from speqc.runtime.routing import Router, routers
from speqc.runtime.target import Target
from speqc.runtime.tensor_references import has_bytes
from speqc.text import load_tokenizer
from speqc.weight_writer import count_blocks, split_values

DEFAULT_CONTEXT = 2048
"""Positions that the caches can hold where the model's files say nothing."""

DEFAULT_GROUP_SIZES: Mapping[str, int] = {"sets": 64, "paper": 128, "naive": 128}
"""For each code book the number of weights along K that share a scale."""


VERIFY = "verify-"
"""What names of legality checks begin with; the structure of the IR is checked before each."""

PROVED = "each decoded again and compared: every bit is there"

NO_WEIGHTS = (
    "without weights: only shapes are known, every weight of a product is taken to fit the code "
    "book, and the artifact can be simulated but not run"
)


@dataclass(frozen=True)
class CompileOptions:
    """What a user can choose. None: the model's own context, the code book's own group size.

    With `weights` off, shapes alone are compiled: the weights' bytes are not read, and may be
    missing.
    """

    target: Target
    codebook: str = "sets"
    group_size: int | None = None
    context: int | None = None
    allow_fp32_to_fp16: bool = False
    tokenizer: Path | None = None
    dump_ir: Path | None = None
    weights: bool = True

    def __post_init__(self):
        if self.group_size is not None and self.group_size < 1:
            raise SpeqcError(f"the group size must be at least 1, got {self.group_size}")
        if self.context is not None and self.context < 2:
            raise SpeqcError(f"the context must be at least 2, got {self.context}")

    @property
    def weights_per_scale(self) -> int:
        """The group size, chosen or by default."""
        return self.group_size or DEFAULT_GROUP_SIZES[self.codebook]

    def passes(self) -> PassOptions:
        """Options of the passes."""
        return {"split-weights": {"codebook": self.codebook, "group-size": self.weights_per_scale}}


@dataclass(frozen=True)
class Summary:
    """What a compilation did, for its report."""

    operations: int
    weights: Sequence[WeightOp]
    context: int
    seconds: float
    routers: Sequence[Router] = ()
    has_weights: bool = True

    def lines(self) -> list[str]:
        """The report, a line for each fact."""
        split = [op for op in self.weights if op.is_split]
        lines = [
            f"{self.operations} operations in two steps, context {self.context}",
            f"{len(split)} of {len(self.weights)} weights split ({split_values(split):,} values), "
            + (PROVED if self.has_weights else "by their shapes alone"),
        ]
        reasons = Counter(op.kept.data for op in self.weights if op.kept is not None)
        lines += [f"{count} kept as FP16: {reason}" for reason, count in reasons.items()]
        if self.routers:
            lines.append(f"mixture of experts: {routers_text(self.routers)}")
        return [*lines, f"compiled in {self.seconds:.1f} s"]


def lower(model: Path, options: CompileOptions, folder: ModelFolder, level: str) -> Imported:
    """Import a model and run the pipeline to `level` ("onnx", "speq" or "pe").

    Raises SpeqcError where the file can't be used or a pass can't continue.
    """
    start = time.perf_counter()
    imported = import_model(model, options.allow_fp32_to_fp16, weights=options.weights)
    module = imported.module
    module.attributes[TARGET_NAME] = target_attribute(options.target)
    context_length = options.context or folder.context or DEFAULT_CONTEXT
    module.attributes[CONTEXT_NAME] = IntegerAttr(context_length, i64)
    dump = IrDump(options.dump_ir) if options.dump_ir is not None else None
    try:
        _finish("import", module, start, dump)
        context, before = new_context(), "import"
        for step in passes_to(level, options.passes()):
            # Each stage ends with such a pass; after all passes it would take half of the time.
            if step.name.startswith(VERIFY):
                _check_structure(module, before)
            start, before = time.perf_counter(), step.name
            step.apply(context, module)
            _finish(step.name, module, start, dump)
    except SpeqcError as error:
        raise SpeqcError(f"{model}: {error}") from error
    return imported


def _check_structure(module: ModuleOp, name: str) -> None:
    try:
        module.verify()
    except VerifyException as error:
        reason = str(error).splitlines()[0]
        raise SpeqcError(f"what {name} makes of it is not legal: {reason}") from error


def _finish(name: str, module: ModuleOp, start: float, dump: IrDump | None) -> None:
    if dump is not None:
        dump.after(name, module, time.perf_counter() - start)
        _check_structure(module, name)


def emit_level(model: Path, options: CompileOptions, level: str) -> str:
    """The IR of one level ("onnx", "speq" or "pe") as text."""
    folder = read_model_folder(model, options.tokenizer)
    lowered = lower(model, options, folder, level)
    for text in lowered.notes:
        note(text)
    return print_module(lowered.module)


def compile_model(model: Path, out: Path, options: CompileOptions) -> Summary:
    """Compile the model at `model` into the artifact `out`.

    Raises SpeqcError where the model can't be used or `out` can't be written.
    """
    start = time.perf_counter()
    check_destination(out)
    folder = read_model_folder(model, options.tokenizer)
    if folder.tokenizer is not None:
        load_tokenizer(folder.tokenizer)
        if options.tokenizer is None:
            note(f"using the tokenizer {folder.tokenizer}")
    lowered = lower(model, options, folder, LEVELS[-1])
    for text in lowered.notes:
        note(text)
    if not options.weights:
        note(NO_WEIGHTS)
    program = lowered.module
    with progress("encoding weights", count_blocks(program)) as advance:
        write_artifact(out, program, lowered.tensors, _origin(lowered, options, folder), advance)
    return _summary(program, time.perf_counter() - start)


def _origin(lowered: Imported, options: CompileOptions, folder: ModelFolder) -> Origin:
    return Origin(
        files=lowered.tensors.files,
        options={
            "codebook": options.codebook,
            "group_size": options.weights_per_scale,
            "allow_fp32_to_fp16": options.allow_fp32_to_fp16,
        },
        eos_token_ids=folder.eos_token_ids,
        chat_template=folder.chat_template,
        special_tokens=folder.special_tokens,
        tokenizer=folder.tokenizer,
    )


def _summary(program: ModuleOp, seconds: float) -> Summary:
    context = program.attributes[CONTEXT_NAME]
    assert isinstance(context, IntegerAttr)
    functions = [op for op in program.ops if isinstance(op, FuncOp)]
    weights = [op for op in program.ops if isinstance(op, WeightOp)]
    count = sum(len(op.body.block.ops) for op in functions)
    full = (op for op in functions if op.sym_name.data == FULL)
    routing = [router for op in full for router in routers(op)]
    return Summary(count, weights, context.value.data, seconds, routing, has_bytes(program))
