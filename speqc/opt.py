"""`speqc opt`: xDSL's optimizer driver with our dialects and passes."""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

from xdsl.dialects.builtin import ModuleOp
from xdsl.universe import XDSL_UNIVERSE
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError
from xdsl.xdsl_opt_main import xDSLOptMain

from speqc.diagnostics import note
from speqc.dump_ir import NO_LOCATION
from speqc.pipeline import LEVELS, PASSES, STAGES
from speqc.runtime.errors import SpeqcError
from speqc.runtime.near_names import did_you_mean
from speqc.universe import SPEQC_UNIVERSE

RAISED = STAGES["speq"].index("split-weights")
"""How many passes of the second level raise what the first one has."""

LOWERED = frozenset(STAGES["speq"][RAISED:]) - {"verify-speq"} | {"quantize-weights"}
"""Passes that need a program of the second level."""


class SpeqcOptMain(xDSLOptMain):
    """`xdsl-opt` that knows xDSL's own dialects and passes and ours, and no other plug-in's."""

    def register_all_dialects(self) -> None:
        """Register xDSL's dialects and ours; each is imported when first needed."""
        for universe in (XDSL_UNIVERSE, SPEQC_UNIVERSE):
            for name, factory in universe.all_dialects.items():
                self.ctx.register_dialect(name, factory)

    def register_all_passes(self) -> None:
        """Register our passes, which the help then lists first, and xDSL's."""
        for universe in (SPEQC_UNIVERSE, XDSL_UNIVERSE):
            for name, factory in universe.all_passes.items():
                if name not in self.available_passes:
                    self.register_pass(name, factory)

    def register_all_targets(self) -> None:
        """Register xDSL's output formats."""
        self.available_targets.update(XDSL_UNIVERSE.all_targets)

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        """Take xDSL's options, under our command's name."""
        arg_parser.prog = "speqc opt"
        super().register_all_arguments(arg_parser)
        arg_parser.add_argument(
            "--no-locations",
            action="store_true",
            help="Leave out the names of ONNX nodes; without it, they are printed as in dumps.",
        )
        arg_parser.epilog = f"Passes of speqc (the others are xDSL's): {', '.join(PASSES)}."

    def apply_passes(self, prog: ModuleOp) -> None:
        """Run the passes, and say of ours which ones find nothing on the level of the IR."""
        level = level_of(prog)
        for step in self.pipeline.passes:
            expected = expected_levels(step.name)
            if level is not None and expected and level not in expected:
                note(
                    f"{step.name} is for IR of the level {expected[0]}, and this is {level}: it "
                    "finds nothing, or the wrong things "
                    f"('speqc compile MODEL --emit {expected[0]}' prints that level)"
                )
            elif expected:
                level = "pe" if step.name == "lower-to-pe" else max(expected, key=LEVELS.index)
        super().apply_passes(prog)

    def output_resulting_program(self, prog: ModuleOp) -> str:
        """The text of a program, with locations as in dumps unless an option says otherwise."""
        if self.args.print_debuginfo or self.args.no_locations:
            return super().output_resulting_program(prog)
        self.args.print_debuginfo = True
        try:
            text = super().output_resulting_program(prog)
            return text.replace(NO_LOCATION, "").removesuffix("\n")
        finally:
            self.args.print_debuginfo = False

    def prepare_input(self) -> tuple[list[tuple[IO[bytes], int]], str]:
        """Open the file; raises SpeqcError where its name does not tell its format."""
        try:
            return super().prepare_input()
        except ValueError as error:
            file = self.get_input_name()
            raise SpeqcError(f"{file}: {error}: name it .mlir, or give --frontend mlir") from error


def main(arguments: Sequence[str]) -> None:
    """Run the driver on `arguments`, as given on the command line after `speqc opt`.

    Raises:
        SystemExit: for `--help`, and with code 2 for wrong options.
        SpeqcError: the text does not parse or verify, a pass or option of a pass is unknown.
        OSError: the file can't be read.
    """
    try:
        driver = SpeqcOptMain("Run passes over IR of speqc's dialects", list(arguments))
    except (ArgSpecParseError, ValueError) as error:
        raise SpeqcError(f"-p: {error}{_suggestion(str(error))}") from error
    try:
        driver.run()
    except (ParseError, DiagnosticException, UnicodeDecodeError) as error:
        raise SpeqcError(describe_ir_error(error, driver.get_input_name())) from error


def level_of(module: ModuleOp) -> str | None:
    """The level of the pipeline that a module is at, by its operations; None where none tells."""
    dialects = {op.name.partition(".")[0] for op in module.walk()}
    return next((level for level in reversed(LEVELS) if level in dialects), None)


def expected_levels(name: str) -> tuple[str, ...]:
    """The levels that a pass of ours works on; none for others."""
    if name in LOWERED or name == "lower-to-pe":
        return ("speq",)
    if name in PASSES and name not in STAGES["pe"]:
        # Passes that raise work on what the ones before them left: ONNX operators among ours.
        return ("onnx",) if name == "verify-onnx" else ("onnx", "speq")
    return ("pe",) if name in STAGES["pe"] else ()


def _suggestion(error: str) -> str:
    """A pass whose name is near to one that an error names in quotes, or nothing."""
    names = re.findall(r"'([^']+)'", error)
    known = [*PASSES, *XDSL_UNIVERSE.all_passes]
    hint = next(filter(None, (did_you_mean(name, known) for name in names)), "")
    return f"; {hint}" if hint else ""


def describe_ir_error(error: Exception, file: str) -> str:
    """What is wrong with a text of IR, and where, without the text."""
    if isinstance(error, ParseError):
        return f"{error.span.get_location()}: {error.msg}"
    for text in getattr(error, "__notes__", []):
        for operation, underline in pairwise(text.splitlines()):
            if re.fullmatch(r" *\^+-+", underline):
                return f"{file}: {error}, in: {operation.strip()}"
    return f"{file}: {error}"
