"""The command line: `speqc COMMAND`. Each command's work stands in a module of its own.

Nothing heavy is imported before a command runs: `speqc --help` has to answer at once.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from speqc import __version__
from speqc.cli_bench import bench
from speqc.diagnostics import ReportingGroup, report
from speqc.runtime.errors import SpeqcError

AUTO = "auto"
DEFAULT_TARGET = "speq-64x64"
DEMO_PROMPT = "And the LORD spake unto Moses, saying,"


class FiniteRange(click.FloatRange):
    """A range of numbers that NaN and infinity do not lie in."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number that a text stands for."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class LengthOrAuto(click.IntRange):
    """A draft length, or `AUTO`."""

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The length or word that a text stands for."""
        return value if value == AUTO else super().convert(value, param, ctx)


class NumberList(click.ParamType):
    """Numbers with commas between, each of which another type takes."""

    name = "list"

    def __init__(self, each: click.ParamType):
        self.each = each

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The numbers that a text lists."""
        if isinstance(value, tuple):
            return value
        return tuple(self.each.convert(part.strip(), param, ctx) for part in value.split(","))


def expect_existing(path: Path) -> None:
    """Raise SpeqcError where there is nothing: before a command imports for seconds."""
    if not path.exists():
        raise SpeqcError(f"{path}: there is no such file or folder")


def expect_artifact(path: Path) -> None:
    """Raise SpeqcError where there is nothing, or a model that is not compiled, as early."""
    expect_existing(path)
    if path.suffix == ".onnx" and not path.is_dir():
        raise SpeqcError(f"{path}: is no artifact yet: compile it first: speqc compile {path}")


def expect_source(name: str) -> None:
    """Raise SpeqcError where a name is neither an artifact's path nor a shape, as early."""
    from speqc.runtime.near_names import did_you_mean
    from speqc.shape_files import is_shape, shipped_shapes

    if is_shape(name):
        return
    if Path(name).exists():
        expect_artifact(Path(name))
        return
    known = shipped_shapes()
    hint = did_you_mean(name, known)
    raise SpeqcError(
        f"{name}: there is no such artifact, and no such shape (known: {', '.join(known)})"
        + (f"; {hint}" if hint else "")
    )


FILE = click.Path(path_type=Path)
CODEBOOK = click.Choice(["sets", "paper", "naive"])
LEVELS = click.Choice(["free", "m2", "m1", "fp4", "pow2"])
BSFP = "bsfp"
DRAFT_FORMAT = click.Choice([BSFP, "int4", "mxfp4", "nvfp4"])
LEVELS_HELP = "Draft levels of 'sets': any, with few mantissa bits, FP4 E2M1, powers of two."
TARGET_HELP = "Target by name (see 'speqc targets'), or the path of a .toml file."
JSON_HELP = "Write the report as JSON to a file, or to standard output (-)."
TRACE_HELP = "Write what each unit does when, for Perfetto (JSON)."
TRACE_STEPS_HELP = "Passes that the trace shows block by block, from the prompt's last."


def trace_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a trace to a command that times a run."""
    steps = click.option(
        "--trace-steps",
        type=click.IntRange(min=0),
        default=16,
        show_default=True,
        help=TRACE_STEPS_HELP,
    )
    trace = click.option("--trace", "trace_to", metavar="FILE", help=TRACE_HELP)
    return trace(steps(command))


@click.group(cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="speqc")
def main() -> None:
    """Compile a language model for bit-shared self-speculative decoding, and simulate it."""


@main.command("compile")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="The artifact; default: MODEL.speq here.")
@click.option("--target", default=DEFAULT_TARGET, show_default=True, help=TARGET_HELP)
@click.option(
    "--codebook",
    type=CODEBOOK,
    default="sets",
    show_default=True,
    help="How an exponent is split between draft and rest.",
)
@click.option("--levels", type=LEVELS, help=f"{LEVELS_HELP}  [default: free]")
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    help="Weights along K that share a scale; default: 64 (sets, int4), 128 (paper, naive).",
)
@click.option(
    "--draft-format",
    type=DRAFT_FORMAT,
    default=BSFP,
    show_default=True,
    help="What drafts read: a slice of the FP16 bits, or a 4-bit copy beside them.",
)
@click.option(
    "--draft-views",
    metavar="PATTERN=BITS,...|auto",
    default="",
    help="Weights that drafts read in 8, 12 or 16 bits, as head=12,layers.20-29.down=8; auto: "
    "those that make it fastest.",
)
@click.option(
    "--max-draft-bits",
    type=FiniteRange(min=0),
    help="With --draft-views auto: instead the nearest draft within so many bits of a weight.",
)
@click.option("--tokenizer", type=FILE, help="Default: the tokenizer.json beside the model.")
@click.option(
    "--context",
    type=click.IntRange(min=2),
    help="Positions that the caches can hold; default: the model's own, else 2048.",
)
@click.option(
    "--allow-fp32-to-fp16", is_flag=True, help="Round FP32 weights that FP16 does not hold exactly."
)
@click.option(
    "--calibration",
    metavar="FILE|self",
    help="Choose draft codes by what layers are given on this text, or on the model's own.",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    help="Tokens that a calibration reads, about.  [default: 12288]",
)
@click.option(
    "--no-weights",
    is_flag=True,
    help="Compile shapes alone, to simulate: weights are not read and may be missing.",
)
@click.option(
    "--baseline",
    metavar="NAME|FILE",
    help="With --no-weights: another scheme, to time beside ours (see 'speqc bench baselines').",
)
@click.option("--dump-ir", type=FILE, metavar="DIR", help="Write IR after each pass, and times.")
@click.option(
    "--emit",
    type=click.Choice(["onnx", "speq", "pe"]),
    help="Print the IR of this level and stop.",
)
def compile_command(
    model: Path,
    output: Path | None,
    target: str,
    codebook: str,
    levels: str | None,
    group_size: int | None,
    draft_format: str,
    draft_views: str,
    max_draft_bits: float | None,
    tokenizer: Path | None,
    context: int | None,
    allow_fp32_to_fp16: bool,
    calibration: str | None,
    calibration_tokens: int | None,
    no_weights: bool,
    baseline: str | None,
    dump_ir: Path | None,
    emit: str | None,
) -> None:
    """Compile MODEL, an ONNX file, into an artifact."""
    if emit is not None and output is not None:
        raise click.UsageError("--emit prints to standard output and writes no artifact")
    if emit is not None and draft_views == "auto":
        raise click.UsageError("--draft-views auto measures with weights: leave out --emit")
    if max_draft_bits is not None and draft_views != "auto":
        raise click.UsageError("--max-draft-bits needs --draft-views auto")
    if no_weights and draft_views == "auto":
        raise click.UsageError("--draft-views auto measures with weights: leave out --no-weights")
    if emit is not None and calibration is not None:
        raise click.UsageError("--emit prints IR, which holds no codes: leave out --calibration")
    if calibration_tokens is not None and calibration is None:
        raise click.UsageError("--calibration-tokens needs --calibration")
    if baseline is not None and not no_weights:
        raise click.UsageError("--baseline is timed, never computed: add --no-weights")
    if baseline is not None and (levels, group_size) != (None, None):
        raise click.UsageError("--baseline has groups of its own: leave out --levels, --group-size")
    if draft_format != BSFP:
        _refuse_splitting_options(draft_format)
    expect_existing(model)
    from speqc.target_files import load_target

    machine = load_target(target)
    from speqc.baseline_files import load_baseline
    from speqc.compile import CompileOptions, compile_model, emit_level

    options = CompileOptions(
        machine,
        codebook,
        group_size,
        context,
        allow_fp32_to_fp16,
        tokenizer,
        dump_ir,
        weights=not no_weights,
        levels=levels,
        draft_views=draft_views,
        max_draft_bits=max_draft_bits,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        baseline=None if baseline is None else load_baseline(baseline),
        draft_format=draft_format,
    )
    if emit is not None:
        click.echo(emit_level(model, options, emit), nl=False)
        return
    out = output or Path(model.with_suffix(".speq").name)
    for line in compile_model(model, out, options).lines():
        report(line)
    report(f"wrote {out}")


SPLITTING = ("codebook", "levels", "draft_views", "max_draft_bits", "baseline")
"""Parameters of `compile` that say how weights are split, or that they are not drafted."""


def _refuse_splitting_options(draft_format: str) -> None:
    """Raise an error where a copy is to be read, and an option says how weights are split."""
    context = click.get_current_context()
    for parameter in SPLITTING:
        if context.get_parameter_source(parameter) == ParameterSource.COMMANDLINE:
            name = parameter.replace("_", "-")
            raise click.UsageError(
                f"--draft-format {draft_format} reads a copy and splits no weight: leave out "
                f"--{name}"
            )


@main.command("run")
@click.argument("artifact", type=FILE)
@click.option("--prompt", help="The text to continue.")
@click.option("--token-ids", metavar="1,2,3", help="The tokens to continue, instead of a text.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option(
    "-n",
    "--new-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="At most.",
)
@click.option("--no-stop", is_flag=True, help="Continue behind the model's end-of-text tokens.")
@click.option(
    "--mode",
    type=click.Choice(["speculative", "autoregressive", "draft"]),
    default="speculative",
    show_default=True,
)
@click.option(
    "--draft-length",
    type=LengthOrAuto(),
    metavar="N|auto",
    help="Most tokens drafted in a round; auto: length and threshold by --measured.",
)
@click.option(
    "--exit-threshold",
    type=FiniteRange(0, 1),
    help="Stop drafting when the draft's top probability falls under this.",
)
@click.option(
    "--draft-schedule",
    type=click.Choice(["constant", "heuristic", "cost"]),
    help="How lengths change: never, by +2 and -1 as rounds go, by what a token is worth.",
)
@click.option(
    "--measured", type=FILE, metavar="EVAL.json", help="For auto: what 'speqc eval --json' wrote."
)
@click.option("--prompt-chunk", type=click.IntRange(min=1), help="Prompt tokens fed at a time.")
@click.option(
    "--temperature",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="0: greedy.",
)
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="0: the whole vocabulary.")
@click.option("--top-p", type=FiniteRange(0, 1, min_open=True), default=1.0)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of sampling.")
@click.option(
    "--check", is_flag=True, help="Also decode autoregressively; exit 1 if a logit bit differs."
)
@click.option(
    "--compare",
    type=FILE,
    metavar="MODEL.onnx",
    help="Instead of decoding, compare each value on the prompt with this file's; exit 1 if one "
    "differs.",
)
@click.option("--verbose", is_flag=True, help="With --compare, list all values.")
@click.option("--json", "json_to", metavar="FILE|-", help=JSON_HELP)
@trace_options
@click.pass_context
def run_command(
    context: click.Context,
    artifact: Path,
    prompt: str | None,
    token_ids: str | None,
    chat: bool,
    new_tokens: int,
    no_stop: bool,
    mode: str,
    draft_length: int | str | None,
    exit_threshold: float | None,
    draft_schedule: str | None,
    measured: Path | None,
    prompt_chunk: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    check: bool,
    compare: Path | None,
    verbose: bool,
    json_to: str | None,
    trace_to: str | None,
    trace_steps: int,
) -> None:
    """Continue a prompt with ARTIFACT on the simulated machine."""
    if (prompt is None) == (token_ids is None):
        raise click.UsageError("give either --prompt or --token-ids")
    if chat and prompt is None:
        raise click.UsageError("--chat needs --prompt")
    if verbose and compare is None:
        raise click.UsageError("--verbose needs --compare")
    expect_artifact(artifact)
    if compare is not None:
        _refuse_decoding_options(context)
        expect_existing(compare)
        from speqc.run import Prompt
        from speqc.run_compare import run_compare

        asked = Prompt(prompt, token_ids, chat)
        run_compare(artifact, compare, asked, verbose=verbose, json_to=json_to)
        return
    _check_drafting(mode, draft_length, exit_threshold, draft_schedule, measured)
    _check_auto(artifact, draft_length, draft_schedule, measured)
    from speqc.run import Prompt, run
    from speqc.runtime.decode import DecodeOptions
    from speqc.runtime.sampling import SamplingOptions
    from speqc.trace import TraceOptions

    options = DecodeOptions(
        new_tokens,
        draft_length if isinstance(draft_length, int) else None,
        exit_threshold,
        SamplingOptions(temperature, top_k, top_p, seed),
        prompt_chunk,
        draft_schedule=draft_schedule,
    )
    wanted = Prompt(prompt, token_ids, chat)
    trace = None if trace_to is None else TraceOptions(trace_to, trace_steps)
    stop = not no_stop
    run(
        artifact,
        wanted,
        mode,
        options,
        stop=stop,
        check=check,
        json_to=json_to,
        trace=trace,
        measured=measured,
    )


def _check_drafting(mode: str, *values: object) -> None:
    """Raise an error where a `DRAFTING` option has a value and nothing is drafted."""
    if mode == "speculative":
        return
    for option, value in zip(DRAFTING, values, strict=True):
        if value is not None:
            raise click.UsageError(f"{option}: nothing is drafted in --mode {mode}")


def _check_auto(
    artifact: Path,
    draft_length: int | str | None,
    schedule: str | None,
    measured: Path | None,
) -> None:
    """Raise an error where auto and what it was measured by do not go together."""
    if draft_length != AUTO:
        if measured is not None:
            raise click.UsageError("--measured needs --draft-length auto")
        return
    if schedule not in (None, "constant"):
        raise click.UsageError(f"--draft-length auto excludes --draft-schedule {schedule}")
    if measured is None:
        raise SpeqcError(
            f"--draft-length auto: needs measurements: 'speqc eval {artifact} --json EVAL.json', "
            "then add --measured EVAL.json"
        )
    expect_existing(measured)


DRAFTING = ("--draft-length", "--exit-threshold", "--draft-schedule", "--measured")
"""Options of `run` on how tokens are drafted."""

COMPARE_TAKES = frozenset(
    {"artifact", "prompt", "token_ids", "chat", "compare", "verbose", "json_to"}
)
"""Parameters of `run` that say something where nothing is decoded."""


def _refuse_decoding_options(context: click.Context) -> None:
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if parameter.name not in COMPARE_TAKES and given == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--compare decodes nothing: leave out {parameter.opts[-1]}")


@main.command("simulate")
@click.argument("source", metavar="ARTIFACT|SHAPE")
@click.option("--prompt-length", type=click.IntRange(min=1), help="Tokens of the prompt.")
@click.option("--new-tokens", type=click.IntRange(min=1), help="Tokens decoded after it.")
@click.option(
    "--acceptance",
    type=FiniteRange(0, 1),
    help="Probability that a drafted token is accepted, independent of the others.",
)
@click.option("--replay", type=FILE, metavar="RUN.json", help="Time the rounds of a recorded run.")
@click.option(
    "--draft-length",
    type=LengthOrAuto(),
    metavar="N|auto",
    help="With --acceptance; auto: the best, also of a run to --replay.",
)
@click.option(
    "--fixed-context", is_flag=True, help="Keep the cache at the prompt's length while decoding."
)
@click.option("--ops", "by_op", is_flag=True, help="List a pass of each phase op by op, too.")
@click.option("--target", help=f"Instead of the artifact's own. {TARGET_HELP}")
@click.option("--codebook", type=CODEBOOK, help="Of a shape; default: sets.")
@click.option("--levels", type=LEVELS, help="Of a shape, as for 'compile'.")
@click.option("--group-size", type=click.IntRange(min=1), help="Of a shape, as for 'compile'.")
@click.option("--draft-format", type=DRAFT_FORMAT, help="Of a shape, as for 'compile'.")
@click.option("--json", "json_to", metavar="FILE|-", help=JSON_HELP)
@trace_options
def simulate_command(
    source: str,
    prompt_length: int | None,
    new_tokens: int | None,
    acceptance: float | None,
    replay: Path | None,
    draft_length: int | str | None,
    fixed_context: bool,
    by_op: bool,
    target: str | None,
    codebook: str | None,
    levels: str | None,
    group_size: int | None,
    draft_format: str | None,
    json_to: str | None,
    trace_to: str | None,
    trace_steps: int,
) -> None:
    """Time decoding with an artifact, or a model's SHAPE, without computing a value.

    A SHAPE is a name such as llama-2-7b or the path of a .toml file; it is compiled first. With
    --acceptance, the expected time of speculative decoding; with --replay, the time of a recorded
    run; else the time of plain decoding.
    """
    if replay is not None and acceptance is not None:
        raise click.UsageError("--acceptance and --replay exclude each other")
    if draft_length == AUTO and acceptance is None and replay is None:
        raise click.UsageError("--draft-length auto needs --acceptance or --replay")
    if isinstance(draft_length, int) and acceptance is None:
        raise click.UsageError("--draft-length needs --acceptance")
    expect_source(source)
    if replay is None and (prompt_length is None or new_tokens is None):
        raise click.UsageError("give --prompt-length and --new-tokens, or a run to --replay")
    from speqc.simulate import Source, simulate
    from speqc.trace import TraceOptions

    simulate(
        Source(source, target, codebook, group_size, levels, draft_format),
        prompt_length,
        new_tokens,
        acceptance=acceptance,
        replay=replay,
        draft_length=draft_length if isinstance(draft_length, int) else None,
        auto=draft_length == AUTO,
        json_to=json_to,
        fixed_context=fixed_context,
        by_op=by_op,
        trace=None if trace_to is None else TraceOptions(trace_to, trace_steps),
    )


@main.command("eval")
@click.argument("artifacts", type=FILE, nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--prompts",
    "source",
    default="all",
    show_default=True,
    metavar="SET|FILE.jsonl",
    help="text, code, math, dialogue, all of these, or a file.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Prompts of each set, at most.")
@click.option("--chat", is_flag=True, help="Put each prompt into the model's chat template.")
@click.option(
    "-n",
    "--new-tokens",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Of each prompt, at most.",
)
@click.option("--no-stop", is_flag=True, help="Continue behind the model's end-of-text tokens.")
@click.option(
    "--max-draft-length",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Tokens that are drafted from each position, at most.",
)
@click.option(
    "--draft-lengths",
    type=NumberList(click.IntRange(min=1)),
    metavar="1,2,...",
    help="Of the settings; default: every length.",
)
@click.option(
    "--thresholds",
    type=NumberList(FiniteRange(0, 1)),
    metavar="P,P,...",
    default="0.2,0.3,0.4,0.5,0.6,0.7,0.8",
    show_default=True,
    help="Exit thresholds of the settings. Low ones take long.",
)
@click.option("--target", help=f"Instead of the artifact's own. {TARGET_HELP}")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the halves and of the noise.",
)
@click.option("--json", "json_to", metavar="FILE|-", help=JSON_HELP)
@click.option(
    "--csv",
    "csv_to",
    metavar="FILE|-",
    help="Write a line for each setting to a file, or to standard output (-).",
)
@click.option(
    "--plot", "plot_to", metavar="FILE.png", help="Draw speedup and acceptance (matplotlib)."
)
def eval_command(
    artifacts: tuple[Path, ...],
    source: str,
    limit: int | None,
    chat: bool,
    new_tokens: int,
    no_stop: bool,
    max_draft_length: int,
    draft_lengths: tuple[int, ...] | None,
    thresholds: tuple[float, ...],
    target: str | None,
    seed: int,
    json_to: str | None,
    csv_to: str | None,
    plot_to: str | None,
) -> None:
    """Measure over many prompts how near ARTIFACT's draft is, and which settings are fastest.

    Several, which must be of one model, are compared on the same prompts.
    """
    for artifact in artifacts:
        expect_artifact(artifact)
    if len(artifacts) > 1 and plot_to is not None:
        raise click.UsageError("--plot draws one artifact: leave it out, or give one")
    from speqc.evaluate import EvalOptions, Outputs, evaluate
    from speqc.evaluate_several import evaluate_several

    options = EvalOptions(
        new_tokens,
        max_draft_length,
        draft_lengths,
        thresholds,
        limit,
        chat,
        not no_stop,
        target,
        seed,
    )
    outputs = Outputs(json_to, csv_to, plot_to)
    first, *others = list(artifacts)
    if others:
        evaluate_several(artifacts, source, options, outputs)
    else:
        evaluate(first, source, options, outputs)


@main.command("report")
@click.argument("artifact", type=FILE)
@click.option("-o", "--output", type=FILE, help="The page; default: ARTIFACT.html here.")
@click.option(
    "--run", "recorded", type=FILE, metavar="RUN.json", help="Show the rounds of a recorded run."
)
@click.option(
    "--prompt-length",
    type=click.IntRange(min=1),
    help="Cached positions of the steps shown; default: the run's prompt, else 128.",
)
@click.option(
    "--ir", type=FILE, metavar="DIR", help="Show the IR after each pass: a folder of --dump-ir."
)
def report_command(
    artifact: Path,
    output: Path | None,
    recorded: Path | None,
    prompt_length: int | None,
    ir: Path | None,
) -> None:
    """Show ARTIFACT on one HTML page: passes, timeline, roofline, acceptance, weights."""
    expect_artifact(artifact)
    for path in (recorded, ir):
        if path is not None:
            expect_existing(path)
    from speqc.html_report import ReportOptions, write_report

    out = output or Path(artifact.resolve().with_suffix(".html").name)
    write_report(artifact, out, ReportOptions(recorded, prompt_length, ir))


@main.command("inspect")
@click.argument("path", type=FILE)
@click.option("--program", is_flag=True, help="Print the program of an artifact instead.")
@click.option("--json", "json_to", metavar="FILE|-", help=JSON_HELP)
def inspect_command(path: Path, program: bool, json_to: str | None) -> None:
    """Show what PATH holds: an ONNX file, or an artifact."""
    if program and json_to is not None:
        raise click.UsageError("--program and --json exclude each other")
    expect_existing(path)
    from speqc.inspect_model import inspect

    inspect(path, program=program, json_to=json_to)


main.add_command(bench)


@main.command("targets")
def targets_command() -> None:
    """List the known targets: their values, and where these come from."""
    from speqc.show_targets import show_targets

    show_targets()


@main.command("demo")
@click.option("--prompt", default=DEMO_PROMPT, show_default=True, help="A text to continue.")
@click.option("-n", "--new-tokens", type=click.IntRange(min=1), default=120, show_default=True)
@click.option("--temperature", type=FiniteRange(min=0), default=0.6, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
def demo_command(prompt: str, new_tokens: int, temperature: float, seed: int) -> None:
    """Compile and run the model that comes with speqc."""
    from speqc.demo import demo
    from speqc.runtime.sampling import SamplingOptions

    demo(prompt, new_tokens, SamplingOptions(temperature, seed=seed))


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def opt(arguments: tuple[str, ...]) -> None:
    """Run passes over an IR file: an xdsl-opt with speqc's dialects and passes."""
    from speqc.opt import main as run_opt

    run_opt(arguments)
