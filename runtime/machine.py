"""The machine: holds caches and weights, and executes step functions of a `pe` program op by op."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.dialects.speq import FULL, CacheOp, WeightOp
from speqc.runtime.attention import KVCache
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.execute import Observer, Part, Step
from speqc.runtime.ir_values import numpy_dtype
from speqc.runtime.module_attributes import module_context, module_opset, recompute_reason
from speqc.runtime.routing import Chosen
from speqc.runtime.weights import Weight, WeightFile


class Machine:
    """A PE array with the DRAM behind it, loaded with one program and its weights.

    `length` positions are in the caches, or in the history of a program that recomputes its prefix.
    Every call extends them, `truncate` cuts them back.
    """

    def __init__(self, program: ModuleOp, file: WeightFile):
        """Load a `pe` program; raises SpeqcError where something it names is missing."""
        self.program = program
        self.context = module_context(program)
        self.weights: dict[str, Weight] = {}
        self._declared: dict[str, CacheOp] = {}
        self._steps: dict[str, Step] = {}
        self._calls: list[Call] = []
        self._routes: list[Chosen] = []
        self.length = 0
        self.recomputes = recompute_reason(program) is not None
        self._history = np.zeros(0, np.int64)
        for op in program.ops:
            if isinstance(op, WeightOp):
                self.weights[op.sym_name.data] = Weight(op, file)
            elif isinstance(op, CacheOp):
                self._declared[op.sym_name.data] = op
        self.caches = self.empty_caches()
        self._constant = functools.cache(file.read)
        for op in program.ops:
            if isinstance(op, FuncOp):
                self.add_step(op, self.weights)
        if "full" not in self._steps:
            raise SpeqcError("the program has no step function @full")
        self.vocabulary: int = self._steps["full"].columns

    def step(self, function: str) -> Step:
        """A step function; raises SpeqcError where the program has none of that name."""
        step = self._steps.get(function)
        if step is None:
            raise SpeqcError(f"the program has no step function @{function}")
        return step

    def add_step(self, function: FuncOp, weights: Mapping[str, Weight]) -> None:
        """Make a step function ready to run under its name, with these weights."""
        self._steps[function.sym_name.data] = Step(
            function, weights, self.caches, self._constant, module_opset(self.program)
        )

    def empty_caches(self) -> dict[str, KVCache]:
        """Caches of a further sequence, by the names that the program declares."""
        return {name: _cache(op, self.context) for name, op in self._declared.items()}

    def call(
        self,
        function: str,
        tokens: Sequence[int] | NDArray[np.int64],
        chunk: int | None = None,
        *,
        last_chunk: bool = False,
        observe: Observer | None = None,
    ) -> NDArray:
        """Run `tokens` through a step function, `chunk` at a time: logits [M, vocabulary].

        With `last_chunk` only the logits of the last chunk are kept and returned. `observe` sees
        every operation.

        Raises SpeqcError where the program has no such function or the context is full, ValueError
        where there is no token or no positive chunk.
        """
        step = self.step(function)
        if not len(tokens) or (chunk is not None and chunk < 1):
            raise ValueError(f"expected tokens and a positive chunk, got {len(tokens)} and {chunk}")
        self.check_room(self.length, len(tokens))
        rows = np.asarray(tokens, np.int64)
        size = chunk or len(rows)
        parts: list[NDArray] = []
        for start in range(0, len(rows), size):
            if last_chunk:
                parts.clear()
            parts.append(self._pass(function, step, rows[start : start + size], observe))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _pass(
        self, function: str, step: Step, tokens: NDArray[np.int64], observe: Observer | None
    ) -> NDArray:
        if self.recomputes:
            history = self._history[: self.length]
            logits = step.run_behind(history, tokens, observe)
            self._history = np.concatenate([history, tokens])
        else:
            logits = step.run(tokens, [Part(len(tokens), self.length, self.caches)], observe)
        chosen = step.chosen
        rows = tuple(int(count) for count in chosen.sum(1))
        self._calls.append(Call(function, len(tokens), self.length, rows))
        if function == FULL:
            del self._routes[self.length :]
            self._routes += [tuple(map(int, column)) for column in chosen.T]
        self.length += len(tokens)
        return logits

    def check_room(self, length: int, count: int) -> None:
        """Raise SpeqcError where `count` more positions behind `length` do not fit the context."""
        if length + count > self.context:
            raise SpeqcError(
                f"no room for {counted(count, 'token')} behind {counted(length, 'position')} "
                f"in the context of {self.context:,}"
            )

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on; raises ValueError where there are fewer."""
        for cache in self.caches.values():
            cache.truncate(length)
        self.length = length

    def reset(self) -> None:
        """Empty the caches and the record of calls."""
        self.truncate(0)
        self._calls.clear()
        self._routes.clear()

    def take_calls(self) -> list[Call]:
        """The passes since the last reset, in order; forgets them."""
        calls, self._calls = self._calls, []
        return calls

    @property
    def routes(self) -> list[Chosen]:
        """The experts that the full model chose at each position; empty where it has none."""
        return list(self._routes)


def _cache(op: CacheOp, capacity: int) -> KVCache:
    return KVCache(
        op.heads.value.data,
        op.key_dim.value.data,
        capacity,
        numpy_dtype(op.element_type),
        op.value_dim.value.data,
    )
