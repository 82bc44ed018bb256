"""Reads a `pe` program: text in, a verified module out."""

from pathlib import Path

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser
from xdsl.utils.exceptions import DiagnosticException, ParseError

from speqc.opt import describe_ir_error
from speqc.pipeline import pass_class
from speqc.runtime.errors import SpeqcError
from speqc.universe import SPEQC_UNIVERSE


def new_context() -> Context:
    """A context that knows what IR of ours is made of."""
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Func)
    for name, factory in SPEQC_UNIVERSE.all_dialects.items():
        context.register_dialect(name, factory)
    return context


def read_program(path: Path) -> ModuleOp:
    """Parse and check the file at `path`; raises SpeqcError where it is no legal `pe` program."""
    context = new_context()
    try:
        program = Parser(context, path.read_text("utf-8"), str(path)).parse_module()
        program.verify()
        pass_class("verify-pe")().apply(context, program)
    except (ParseError, DiagnosticException, UnicodeDecodeError) as error:
        reason = describe_ir_error(error, path.name)
        raise SpeqcError(f"{path}: not a program that this speqc can run: {reason}") from error
    except SpeqcError as error:
        raise SpeqcError(f"{path}: not a program that this speqc can run: {error}") from error
    return program
