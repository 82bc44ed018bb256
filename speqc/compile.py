"""The compiler's driver: an ONNX file in, an artifact or the IR of one level out."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64
from xdsl.dialects.func import FuncOp
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import VerifyException

from speqc.artifact import Origin, check_destination, write_artifact
from speqc.auto_views import AUTO
from speqc.baseline_files import Baseline
from speqc.calibrate import Calibration, calibrated, vocabulary
from speqc.calibration_report import calibration_lines
from speqc.calibration_text import SELF, CalibrationText, read_calibration
from speqc.calibration_text import TOKENS as CALIBRATION_TOKENS
from speqc.compile_views import AutoViews
from speqc.diagnostics import note, progress, recompute_note
from speqc.dialects.speq import FULL, WeightOp
from speqc.dump_ir import IrDump, print_module
from speqc.expert_report import routers_text
from speqc.kernel_clock import watch_compilation
from speqc.model_folder import ModelFolder, read_model_folder
from speqc.onnx_import import Imported, import_model
from speqc.passes.split_weights import BSFP, check_draft_format
from speqc.pipeline import LEVELS, PassOptions, passes_to, place_of
from speqc.program_reader import new_context
from speqc.runtime.codebook import check_codebook
from speqc.runtime.copy_formats import copy_group_size
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import (
    CONTEXT_NAME,
    TARGET_NAME,
    module_context,
    proved_positions,
    recompute_reason,
    target_attribute,
)
from speqc.runtime.routing import Router, routers
from speqc.runtime.target import Target
from speqc.runtime.tensor_references import has_bytes
from speqc.text import load_tokenizer
from speqc.view_report import view_choice_lines
from speqc.weight_writer import count_blocks, split_values

DEFAULT_CONTEXT = 2048
"""Positions that the caches can hold where the model's files say nothing."""

DEFAULT_CODEBOOK = "sets"

DEFAULT_GROUP_SIZES: Mapping[str, int] = {"sets": 64, "paper": 128, "naive": 128}
"""For each code book the number of weights along K that share a scale."""


RAISED = "speq"
"""The level from which on nothing more is learnt of the model by evaluating it."""

RECOMPUTE = "recompute-prefix"
"""The pass that takes the place of `raise-attention` in models that get no caches."""

RECOGNISED = "verify-speq"
"""The check behind what recognises a graph's parts; where that fails, a step may recompute."""

CHOOSE_VIEWS = "choose-views"
"""The pass that sets views, behind which `--draft-views auto` has a program lowered again."""

VERIFY = "verify-"
"""What names of legality checks begin with; the structure of the IR is checked before each."""

PROVED = "each decoded again and compared: every bit is there"

COPIED = "each beside its FP16 bits, which stand as they are"

NO_WEIGHTS = (
    "without weights: only shapes are known, every weight of a product is taken to fit the code "
    "book, and the artifact can be simulated but not run"
)


@dataclass(frozen=True)
class CompileOptions:
    """What a user can choose. None: the model's own context, the code book's own group size.

    With `weights` off, shapes alone are compiled: the weights' bytes are not read, and may be
    missing. With a `baseline`, a program to be timed beside the drafted one, and only timed.
    """

    target: Target
    codebook: str = DEFAULT_CODEBOOK
    group_size: int | None = None
    context: int | None = None
    allow_fp32_to_fp16: bool = False
    tokenizer: Path | None = None
    dump_ir: Path | None = None
    weights: bool = True
    levels: str | None = None
    baseline: Baseline | None = None
    calibration: str | None = None
    calibration_tokens: int | None = None
    draft_views: str = ""
    max_draft_bits: float | None = None
    draft_format: str = BSFP

    def __post_init__(self):
        check_codebook(self.codebook, self.levels)
        check_draft_format(self.draft_format)
        if self.draft_format != BSFP:
            self._check_copy()
        if self.draft_views == AUTO and not self.weights:
            raise SpeqcError("--draft-views auto measures drafts: leave out --no-weights")
        if self.max_draft_bits is not None and self.draft_views != AUTO:
            raise SpeqcError("--max-draft-bits limits what --draft-views auto chooses: add that")
        if self.calibration is not None and not self.weights:
            raise SpeqcError("--calibration chooses codes for weights: leave out --no-weights")
        if self.group_size is not None and self.group_size < 1:
            raise SpeqcError(f"the group size must be at least 1, got {self.group_size}")
        if self.context is not None and self.context < 2:
            raise SpeqcError(f"the context must be at least 2, got {self.context}")

    def _check_copy(self) -> None:
        """Raise SpeqcError where an option says how weights are split: with a copy none is."""
        given = {
            "codebook": self.codebook != DEFAULT_CODEBOOK,
            "levels": self.levels is not None,
            "draft-views": bool(self.draft_views),
            "baseline": self.baseline is not None,
        }
        for name, is_given in given.items():
            if is_given:
                raise SpeqcError(
                    f"--draft-format {self.draft_format} reads a copy of the weights, and splits "
                    f"none: leave out --{name}"
                )
        copy_group_size(self.draft_format, self.group_size)

    @property
    def weights_per_scale(self) -> int:
        """The group size, chosen or by default."""
        if self.draft_format != BSFP:
            return copy_group_size(self.draft_format, self.group_size)
        return self.group_size or DEFAULT_GROUP_SIZES[self.codebook]

    @property
    def tokens_to_calibrate(self) -> int:
        """Tokens that a calibration reads at most, chosen or by default."""
        return self.calibration_tokens or CALIBRATION_TOKENS

    def passes(self) -> PassOptions:
        """Options of the passes."""
        split = {"codebook": self.codebook, "group-size": self.weights_per_scale}
        if self.levels is not None:
            split["levels"] = self.levels
        if self.draft_format != BSFP:
            copied = {"draft-format": self.draft_format, "group-size": self.weights_per_scale}
            return {"split-weights": copied}
        if self.baseline is None:
            views = "" if self.draft_views == AUTO else self.draft_views
            return {"split-weights": split, CHOOSE_VIEWS: {"draft-views": views}}
        return {"quantize-weights": self.baseline.pass_options()}

    def instead(self) -> Mapping[str, str]:
        """Passes that run in the place of others: a baseline's weights are not split."""
        return {} if self.baseline is None else {"split-weights": "quantize-weights"}


@dataclass(frozen=True)
class Summary:
    """What a compilation did, for its report."""

    operations: int
    weights: Sequence[WeightOp]
    context: int
    seconds: float
    routers: Sequence[Router] = ()
    has_weights: bool = True
    calibration: Mapping[str, Any] | None = None
    view_choice: Mapping[str, Any] | None = None

    def lines(self) -> list[str]:
        """The report, a line for each fact."""
        lines = [
            f"{self.operations} operations in two steps, context {self.context}",
            self._stored(),
        ]
        reasons = Counter(op.kept.data for op in self.weights if op.kept is not None)
        lines += [f"{count} kept as FP16: {reason}" for reason, count in reasons.items()]
        if self.routers:
            lines.append(f"mixture of experts: {routers_text(self.routers)}")
        lines += calibration_lines(self.calibration)
        lines += view_choice_lines(self.view_choice)
        return [*lines, f"compiled in {self.seconds:.1f} s"]

    def _stored(self) -> str:
        copied = [op for op in self.weights if op.copy is not None]
        total, shapes = counted(len(self.weights), "weight"), "by their shapes alone"
        if copied:
            how = COPIED if self.has_weights else shapes
            (name,) = {op.copy.data for op in copied if op.copy is not None}
            return f"{len(copied)} of {total} copied in {name} for drafts, {how}"
        if all(op.kept is not None for op in self.weights):
            return f"{total} stored as FP16 alone, which drafts read in full"
        split = [op for op in self.weights if op.is_split]
        how = PROVED if self.has_weights else shapes
        return f"{len(split)} of {total} split ({split_values(split):,} values), {how}"


def lower(
    model: Path,
    options: CompileOptions,
    folder: ModelFolder,
    level: str,
    when_raised: Callable[[ModuleOp, IrDump | None], None] | None = None,
) -> Imported:
    """Import a model and run the pipeline to `level` ("onnx", "speq" or "pe").

    `when_raised` sees the module at level "speq", and where its IR is dumped.
    Raises SpeqcError where the file can't be used or a pass can't continue.
    """
    start = time.perf_counter()
    dump = IrDump(options.dump_ir) if options.dump_ir is not None else None
    imported = import_model(model, options.allow_fp32_to_fp16, weights=options.weights)
    module = imported.module
    module.attributes[TARGET_NAME] = target_attribute(options.target)
    context_length = options.context or folder.context or DEFAULT_CONTEXT
    module.attributes[CONTEXT_NAME] = IntegerAttr(context_length, i64)
    try:
        _finish("import", module, start, dump)
        choices = options.passes(), options.instead()
        passes, raised = passes_to(level, *choices), len(passes_to(RAISED, *choices))
        recognised = place_of(RECOGNISED, passes) + 1
        fresh = module.clone()
        try:
            run_passes(module, passes[:recognised], dump)
        except SpeqcError as error:
            if recognised > len(passes):
                raise
            module = _recompute(fresh, str(error), choices, dump)
            imported = replace(imported, module=module)
            imported.notes.append(recompute_note(str(error)))
        run_passes(module, passes[recognised:raised], dump)
        if LEVELS.index(level) >= LEVELS.index(RAISED):
            imported.notes.extend(_fit_context(module, options.context))
            if when_raised is not None:
                when_raised(module, dump)
        run_passes(module, passes[raised:], dump)
    except SpeqcError as error:
        raise SpeqcError(f"{model}: {error}") from error
    return imported


def _recompute(
    module: ModuleOp,
    reason: str,
    choices: tuple[PassOptions, Mapping[str, str]],
    dump: IrDump | None,
) -> ModuleOp:
    """Raise a module that can't be given caches, for the `reason` given, to a step without any.

    Raises SpeqcError, which tells both reasons, where that can't be done either.
    """
    if dump is not None:
        dump.restart()
    _finish("import", module, time.perf_counter(), dump)
    options, instead = choices
    options = {**options, RECOMPUTE: {"reason": reason}}
    passes = passes_to(RAISED, options, {**instead, "raise-attention": RECOMPUTE})
    try:
        run_passes(module, passes[: place_of(RECOGNISED, passes) + 1], dump)
    except SpeqcError as error:
        both = f"{reason}; nor can each step recompute its prefix: {error}"
        raise SpeqcError(reason if str(error) == reason else both) from error
    return module


def run_passes(module: ModuleOp, passes: Sequence[ModulePass], dump: IrDump | None = None) -> None:
    """Run passes on a module, which legality checks among them find whole.

    Raises SpeqcError where a pass can't continue, or leaves what is not legal.
    """
    context, before = new_context(), "import"
    for step in passes:
        # Each stage ends with such a pass; after all passes it would take half of the time.
        if step.name.startswith(VERIFY):
            _check_structure(module, before)
        start, before = time.perf_counter(), step.name
        step.apply(context, module)
        _finish(step.name, module, start, dump)


def _fit_context(module: ModuleOp, wanted: int | None) -> list[str]:
    """Take a context back to what is proved, with a note; SpeqcError where a user wants more."""
    context, proved = module_context(module), proved_positions(module)
    if proved is None or context <= proved:
        return []
    known = f"{proved:,} positions, up to which the model's masks and tables could be evaluated"
    if wanted is not None:
        raise SpeqcError(f"a context of {wanted:,} is more than {known}: give a smaller --context")
    module.attributes[CONTEXT_NAME] = IntegerAttr(proved, i64)
    return [f"the context of {context:,} is cut to {known}"]


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
    if options.baseline is not None and options.weights:
        raise SpeqcError("a baseline is timed, never computed: add --no-weights")
    check_destination(out)
    watch_compilation()
    folder = read_model_folder(model, options.tokenizer)
    if folder.tokenizer is not None:
        load_tokenizer(folder.tokenizer)
        if options.tokenizer is None:
            note(f"using the tokenizer {folder.tokenizer}")
    auto = _auto_views(options, folder) if options.draft_views == AUTO else None
    lowered = lower(model, options, folder, LEVELS[-1], None if auto is None else auto.keep)
    for text in lowered.notes:
        note(text)
    if not options.weights:
        note(NO_WEIGHTS)
    program = lowered.module
    if options.group_size is not None and (text := _short_groups(program, options.group_size)):
        note(text)
    origin = _origin(lowered, options, folder)
    steps = count_blocks(program)
    if auto is not None:
        steps += auto.prepare(program, _text(program, options, folder))
    with (
        _calibration(lowered, options, folder, out) as calibration,
        progress("encoding weights", steps) as advance,
    ):
        choose = None if auto is None else partial(auto.choose, advance=advance)
        write_artifact(out, program, lowered.tensors, origin, advance, calibration, choose)
        facts = None if calibration is None else calibration.facts()
    summary = _summary(program, time.perf_counter() - start)
    return replace(summary, calibration=facts, view_choice=None if auto is None else auto.facts)


def _short_groups(program: ModuleOp, group_size: int) -> str | None:
    """What to say of columns that are no whole number of groups; None where all are."""
    weights = [op for op in program.ops if isinstance(op, WeightOp) and op.group_size is not None]
    short = [op for op in weights if op.shape[0] % group_size]
    if not short:
        return None
    name, rows = short[0].sym_name.data, short[0].shape[0]
    return (
        f"the last group is shorter in {len(short)} of {counted(len(weights), 'weight')}: "
        f"{group_size} does not divide K (of @{name}: {rows})"
    )


def _auto_views(options: CompileOptions, folder: ModelFolder) -> AutoViews:
    def relower(raised: ModuleOp, views: str, dump: IrDump | None) -> None:
        chosen = replace(options, draft_views=views, max_draft_bits=None)
        passes = passes_to(LEVELS[-1], chosen.passes())
        run_passes(raised, passes[place_of(CHOOSE_VIEWS, passes) :], dump)

    return AutoViews(relower, options.max_draft_bits, frozenset(folder.eos_token_ids))


def _calibration(
    lowered: Imported, options: CompileOptions, folder: ModelFolder, out: Path
) -> AbstractContextManager[Calibration | None]:
    """The calibration that the options ask for, at work while its context lasts."""
    if options.calibration is None:
        return nullcontext()
    program = lowered.module
    text = _text(program, options, folder)
    return calibrated(program, lowered.tensors, text, frozenset(folder.eos_token_ids), out)


def _text(program: ModuleOp, options: CompileOptions, folder: ModelFolder) -> CalibrationText:
    """The text of the calibration; the model's own where views are chosen without one.

    Raises SpeqcError where a model that recomputes its prefix would have to write it.
    """
    context, known = module_context(program), vocabulary(program)
    source = options.calibration or SELF
    text = read_calibration(source, folder, options.tokens_to_calibrate, context, known)
    if text.written and recompute_reason(program) is not None:
        asked = "--draft-views auto" if options.calibration is None else f"--calibration {source}"
        raise SpeqcError(
            f"{asked}: a model that recomputes its prefix writes too slowly: give a text file, or "
            "token ids, as --calibration"
        )
    return text


def _origin(lowered: Imported, options: CompileOptions, folder: ModelFolder) -> Origin:
    return Origin(
        files=lowered.tensors.files,
        options={
            **_scheme(options),
            "group_size": options.weights_per_scale,
            **({"draft_views": options.draft_views} if options.draft_views else {}),
            **({} if options.baseline is None else {"baseline": options.baseline.name}),
            **({} if options.calibration is None else _calibration_options(options)),
            "allow_fp32_to_fp16": options.allow_fp32_to_fp16,
        },
        eos_token_ids=folder.eos_token_ids,
        chat_template=folder.chat_template,
        special_tokens=folder.special_tokens,
        tokenizer=folder.tokenizer,
    )


def _scheme(options: CompileOptions) -> Mapping[str, str]:
    """What a draft reads of a weight."""
    if options.draft_format != BSFP:
        return {"draft_format": options.draft_format}
    levels = {"levels": options.levels or "free"} if options.codebook == "sets" else {}
    return {"codebook": options.codebook, **levels}


def _calibration_options(options: CompileOptions) -> Mapping[str, object]:
    assert options.calibration is not None
    source = options.calibration
    name = source if source == SELF else Path(source).name
    return {"calibration": name, "calibration_tokens": options.tokens_to_calibrate}


def _summary(program: ModuleOp, seconds: float) -> Summary:
    context = program.attributes[CONTEXT_NAME]
    assert isinstance(context, IntegerAttr)
    functions = [op for op in program.ops if isinstance(op, FuncOp)]
    weights = [op for op in program.ops if isinstance(op, WeightOp)]
    count = sum(len(op.body.block.ops) for op in functions)
    full = (op for op in functions if op.sym_name.data == FULL)
    routing = [router for op in full for router in routers(op)]
    return Summary(count, weights, context.value.data, seconds, routing, has_bytes(program))
