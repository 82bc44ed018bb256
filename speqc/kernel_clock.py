"""Kernels that numba compiles when they are first called: how long that took, and a word about it.

They are kept on disk beside the package (or where `NUMBA_CACHE_DIR` says), so that it happens once
for each version of speqc and each computer.
"""

import time
from functools import cache
from threading import Lock, get_ident
from typing import Any

from numba.core import event

from speqc.diagnostics import note

NOTE = "compiling kernels that were not needed before (half a minute for all of them) ..."


class _Clock(event.Listener):
    """Adds up the time of compilations; those within others, and beside others, count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = Lock()
        self._running: dict[int, int] = {}
        self._since = 0.0
        self._told = False

    def on_start(self, event: Any) -> None:
        """A compilation begins."""
        with self._lock:
            if not self._told:
                self._told = True
                note(NOTE)
            if not self._running:
                self._since = time.perf_counter()
            self._running[get_ident()] = self._running.get(get_ident(), 0) + 1

    def on_end(self, event: Any) -> None:
        """A compilation ends."""
        with self._lock:
            depth = self._running.pop(get_ident(), 1) - 1
            if depth:
                self._running[get_ident()] = depth
            if not self._running:
                self.seconds += time.perf_counter() - self._since


@cache
def _clock() -> _Clock:
    clock = _Clock()
    event.register("numba:compile", clock)
    return clock


def watch_compilation() -> None:
    """From now on, tell the user when kernels have to be compiled, and count the time."""
    _clock()


def compilation_seconds() -> float:
    """How long kernels have been compiled since `watch_compilation` was first called."""
    return _clock().seconds
