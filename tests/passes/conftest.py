"""Parsing of small modules and running of passes on them."""

from collections.abc import Callable

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.ir import Dialect
from xdsl.parser import Parser

from speqc.pipeline import DIALECTS, pass_class, resolve

RunPasses = Callable[..., ModuleOp]


@pytest.fixture(scope="session")
def context() -> Context:
    context = Context()
    for dialect in (Builtin, Func, *map(resolve, DIALECTS.values())):
        assert isinstance(dialect, Dialect)
        context.load_dialect(dialect)
    return context


@pytest.fixture
def run_passes(context: Context) -> RunPasses:
    """Parse a text, run passes on it by name, and give the verified module."""

    def run(text: str, *names: str) -> ModuleOp:
        module = Parser(context, text).parse_module()
        module.verify()
        for name in names:
            pass_class(name)().apply(context, module)
            module.verify()
        return module

    return run
