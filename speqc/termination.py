"""Signals that ask a command to end, raised in it as an exception, so that it leaves nothing."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGTERM", "SIGHUP")
"""Asked to end, and the terminal closed; not every system has the second."""


class Terminated(BaseException):
    """A signal asks the process to end: as KeyboardInterrupt, no error that a command handles."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raise_terminated() -> Iterator[None]:
    """While its context lasts, `SIGNALS` raise Terminated in the main thread.

    Signals that already have another answer keep it: `nohup` has SIGHUP ignored.
    """
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, _raise)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, _: FrameType | None) -> None:
    """Raise Terminated, once: a closing terminal signals twice, and the second would stop what
    the first has begun to clear away.
    """
    error = sys.exception()
    while error is not None:
        if isinstance(error, Terminated):
            return
        error = error.__context__
    raise Terminated(number)
