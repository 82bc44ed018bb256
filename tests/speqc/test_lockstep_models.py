"""Sequences in lock-step get the bits that each of them gets alone, in models of many kinds."""

from pathlib import Path

import expert_models
import numpy as np
import onnx
import pytest
from onnx_models import decoder

from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.runtime.lockstep import Lockstep
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target

CORPUS = Path(__file__).parents[1] / "data" / "corpus" / "onnx"

MODELS = {
    "grouped queries": "qwen3/genai-dml",
    "sliding window": "mistral/optimum",
    "learned positions": "gpt2/torchscript-kv-eager",
    "experts": None,
}


@pytest.mark.parametrize("kind", MODELS)
def test_ragged_sequences(kind: str, tmp_path: Path) -> None:
    place = MODELS[kind]
    model = tmp_path / "model.onnx"
    if place is None:
        onnx.save(decoder(last=expert_models.mask), model)
    else:
        model = CORPUS / place / "model.onnx"
    out = tmp_path / "model.speq"
    compile_model(model, out, CompileOptions(load_target("speq-64x64"), context=64))
    artifact = load_artifact(out)
    check(Machine(artifact.program, WeightFile(artifact.weights)))


def check(machine: Machine) -> None:
    """Different pasts, different numbers of rows, and one more row of each behind those."""
    lockstep = Lockstep(machine)
    random = np.random.default_rng(0)
    pasts, rows, following = (
        [random.integers(0, machine.vocabulary, length).tolist() for length in lengths]
        for lengths in ((1, 3, 17, 9), (2, 1, 3, 1), (1, 1, 1, 1))
    )
    for function in ("draft", "full"):
        branches = [lockstep.branch() for _ in pasts]
        lockstep.prefill(branches, pasts, chunk=4)
        first = lockstep.call(function, branches, rows)
        second = lockstep.call(function, branches, following)
        for place, past in enumerate(pasts):
            machine.reset()
            machine.call("full", past)
            assert first[place].tobytes() == machine.call(function, rows[place]).tobytes()
            assert second[place].tobytes() == machine.call(function, following[place]).tobytes()
