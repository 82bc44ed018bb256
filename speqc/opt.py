"""`speqc opt`: xDSL's optimizer driver with our dialects and passes."""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

from xdsl.universe import XDSL_UNIVERSE
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError
from xdsl.xdsl_opt_main import xDSLOptMain

from speqc.pipeline import PASSES
from speqc.runtime.errors import SpeqcError
from speqc.runtime.near_names import did_you_mean
from speqc.universe import SPEQC_UNIVERSE


class SpeqcOptMain(xDSLOptMain):
    """`xdsl-opt` that knows xDSL's own dialects and passes and ours, and no other plug-in's."""

    def register_all_dialects(self) -> None:
        """Register xDSL's dialects and ours; each is imported when first needed."""
        for universe in (XDSL_UNIVERSE, SPEQC_UNIVERSE):
            for name, factory in universe.all_dialects.items():
                self.ctx.register_dialect(name, factory)

    def register_all_passes(self) -> None:
        """Register xDSL's passes and ours."""
        for universe in (XDSL_UNIVERSE, SPEQC_UNIVERSE):
            for name, factory in universe.all_passes.items():
                self.register_pass(name, factory)

    def register_all_targets(self) -> None:
        """Register xDSL's output formats."""
        self.available_targets.update(XDSL_UNIVERSE.all_targets)

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        """Take xDSL's options, under our command's name."""
        arg_parser.prog = "speqc opt"
        super().register_all_arguments(arg_parser)

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


def _suggestion(error: str) -> str:
    """A pass of ours whose name is near to one that an error names in quotes, or nothing."""
    names = re.findall(r"'([^']+)'", error)
    hint = next(filter(None, (did_you_mean(name, PASSES) for name in names)), "")
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
