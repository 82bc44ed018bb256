"""An independent judge: onnxruntime on the original file, decoding greedily with a KV cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speqc.runtime.errors import SpeqcError

RELATIVE_TOLERANCE = 0.01
"""Logits of two FP16 computations agree within this share of the largest one."""


class OnnxRuntimeDecoder:
    """Greedy decoding of a decoder model with past/present inputs and outputs.

    Optimisations are off, so that each operator is computed as the file says.
    """

    def __init__(self, path: Path, optimize: bool = False):
        """Open the model; raises SpeqcError where onnxruntime is not installed."""
        try:
            import onnxruntime
        except ImportError:
            raise SpeqcError("onnxruntime is not installed: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_mem_reuse = False
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        inputs = self._session.get_inputs()
        self._names = {entry.name for entry in inputs}
        self._empty = {entry.name: _empty_cache(entry) for entry in inputs if _is_cache(entry.name)}
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        """Forget all positions."""
        self._cache = dict(self._empty)
        self.length = 0

    def call(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [M, vocabulary] of `tokens` behind the positions so far."""
        total = self.length + len(tokens)
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.length, total)[None],
        }
        feeds = {name: value for name, value in feeds.items() if name in self._names}
        results = dict(
            zip(self._outputs, self._session.run(None, feeds | self._cache), strict=True)
        )
        for name in self._cache:
            self._cache[name] = np.asarray(results[name.replace("past_key_values", "present")])
        self.length = total
        return np.asarray(results["logits"])[0].astype(np.float32)

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> tuple[list[int], NDArray]:
        """Tokens of a greedy continuation and the logits [new_tokens, V] they were taken from."""
        self.reset()
        tokens: list[int] = []
        rows: list[NDArray] = []
        step = list(prompt)
        while len(tokens) < new_tokens:
            row = self.call(step)[-1]
            rows.append(row)
            tokens.append(int(row.argmax()))
            step = tokens[-1:]
        return tokens, np.stack(rows)


class Difference(NamedTuple):
    """The first token that is not the oracle's.

    `margin` is by how much the oracle prefers its own, `tolerance` up to which margin two FP16
    computations may disagree.
    """

    place: int
    token: int
    expected: int
    margin: float
    tolerance: float

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding alone may decide between the two tokens."""
        return self.margin <= self.tolerance

    def __str__(self) -> str:
        return (
            f"token {self.place} is {self.token}, the oracle's is {self.expected} by a margin of "
            f"{self.margin:.4f} (tolerance {self.tolerance:.4f})"
        )


def first_difference(
    tokens: Sequence[int], oracle_tokens: Sequence[int], oracle_logits: NDArray
) -> Difference | None:
    """Where `tokens` leave the oracle's; None where they do not. ValueError for unlike lengths.

    From there on the two texts are different ones, so nothing later is compared. The tolerance is
    RELATIVE_TOLERANCE of the oracle's largest logit at that place, in magnitude.
    """
    for place, (token, expected) in enumerate(zip(tokens, oracle_tokens, strict=True)):
        if token != expected:
            row = oracle_logits[place]
            margin = float(row[expected] - row[token])
            tolerance = RELATIVE_TOLERANCE * float(np.abs(row).max())
            return Difference(place, token, expected, margin, tolerance)
    return None


def first_real_difference(
    tokens: Sequence[int], oracle_tokens: Sequence[int], oracle_logits: NDArray
) -> str | None:
    """Where `tokens` leave the oracle's, in words; None where they do not, or at a near tie."""
    difference = first_difference(tokens, oracle_tokens, oracle_logits)
    return None if difference is None or difference.is_near_tie else str(difference)


def _is_cache(name: str) -> bool:
    return name.startswith("past_key_values")


def _empty_cache(entry: Any) -> NDArray:
    dtype = np.float16 if entry.type == "tensor(float16)" else np.float32
    shape = [size if isinstance(size, int) else 0 for size in entry.shape]
    return np.zeros([1, *shape[1:]], dtype)
