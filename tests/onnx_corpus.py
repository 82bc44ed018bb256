"""A corpus of exported models: where it lies, and what a compiled model of it must do.

A corpus is a folder with `onnx/FAMILY/EXPORTER/`, each holding a model, `ort.npz` (`logits`, a row
of onnxruntime's for each step) and the tokens that were fed: `facts.json` there, or `ref.json` in
`hf/FAMILY/`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speqc.artifact import load_artifact
from speqc.check import compare
from speqc.compile import CompileOptions, compile_model
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target

COMPACT = Path(__file__).parent / "data" / "corpus"
"""The part of the corpus that stands in the repository."""

VARIABLE = "SPEQC_CORPUS"
"""Environment variable with the path of a corpus."""

BESIDE = Path(__file__).parents[2] / "shared" / "onnx"
"""Where a corpus may lie beside the project."""

MODELS = ("model.onnx", "decode.onnx")
"""Names of a pair's file; exporters that split a model call the step over a cache `decode`."""

NEW_TOKENS, DRAFT_LENGTH, CHUNK = 12, 3, 5
"""What the check decodes: a chunk and a length at which rows meet in many ways."""


@dataclass(frozen=True)
class Case:
    """One model: `tokens` are fed behind `prompt`, `logits` [steps, V] are onnxruntime's.

    `noise` is by how much FP16 moves the family's logits in Transformers.
    """

    family: str
    exporter: str
    model: Path
    prompt: list[int]
    tokens: list[int]
    noise: float
    logits: NDArray[np.float32]

    def __str__(self) -> str:
        return f"{self.family}-{self.exporter}"

    @property
    def tolerance(self) -> float:
        """By how much two FP16 computations of a logit may differ."""
        return max(6 * self.noise, 0.01 * float(np.abs(self.logits).max()))


def corpus_folder() -> Path | None:
    """The full corpus: where the variable says, or beside the project; None without one."""
    folder = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else BESIDE
    return folder if (folder / "onnx").is_dir() else None


def read_cases(folder: Path) -> Iterator[Case]:
    """The models of a corpus that onnxruntime could run."""
    for logits in sorted(folder.glob("onnx/*/*/ort.npz")):
        place = logits.parent
        family, exporter = place.parts[-2:]
        facts = place / "facts.json"
        if not facts.exists():
            facts = folder / "hf" / family / "ref.json"
        values = json.loads(facts.read_text("utf-8"))
        model = next(place / name for name in MODELS if (place / name).exists())
        yield Case(
            family,
            exporter,
            model,
            values["prompt"],
            values["tokens"],
            values["fp16_noise"],
            np.load(logits)["logits"].astype(np.float32),
        )


def check_case(case: Case, out: Path) -> str:
    """Compile a model into `out`, and check it; raises AssertionError, SpeqcError or CheckFailed.

    Returns the largest difference from onnxruntime's logits, as a share of what is tolerated.
    """
    compile_model(case.model, out, CompileOptions(load_target("speq-64x64")))
    artifact = load_artifact(out)
    machine = Machine(artifact.program, WeightFile(artifact.weights))
    share = _compare_with_onnxruntime(case, machine)
    plain = decode(
        machine, "autoregressive", case.prompt, DecodeOptions(NEW_TOKENS), keep_logits=True
    )
    options = DecodeOptions(NEW_TOKENS, DRAFT_LENGTH, exit_threshold=0.0, prompt_chunk=CHUNK)
    compare(decode(machine, "speculative", case.prompt, options, keep_logits=True), plain)
    return f"{share:.2f}"


def _compare_with_onnxruntime(case: Case, machine: Machine) -> float:
    machine.reset()
    rows, fed = [], case.prompt
    for token in case.tokens:
        rows.append(machine.call("full", fed)[-1].astype(np.float32))
        fed = [token]
    found = np.stack(rows)
    error = np.abs(found - case.logits).max(axis=-1)
    worst = int(error.argmax())
    assert error[worst] <= case.tolerance, (
        f"step {worst}: a logit differs by {error[worst]:.4f}, more than {case.tolerance:.4f}"
    )
    steps = np.arange(len(rows))
    ours, theirs = found.argmax(axis=-1), case.logits.argmax(axis=-1)
    margins = case.logits[steps, theirs] - case.logits[steps, ours]
    assert (margins <= case.tolerance).all(), f"greedy tokens differ: {ours} and {theirs}"
    return float(error[worst]) / case.tolerance
