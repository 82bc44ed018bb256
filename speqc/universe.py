"""Our dialects and passes as a plug-in of xDSL: `xdsl-opt` finds them by the entry point."""

from collections.abc import Callable
from functools import partial

from xdsl.ir import Dialect
from xdsl.universe import Universe

from speqc.pipeline import DIALECTS, PASSES, pass_class, resolve


def _dialect(reference: str) -> Dialect:
    found = resolve(reference)
    assert isinstance(found, Dialect)
    return found


def dialects() -> dict[str, Callable[[], Dialect]]:
    """A function for each dialect that imports it."""
    return {name: partial(_dialect, reference) for name, reference in DIALECTS.items()}


SPEQC_UNIVERSE = Universe(
    all_dialects=dialects(),
    all_passes={name: partial(pass_class, name) for name in PASSES},
)
