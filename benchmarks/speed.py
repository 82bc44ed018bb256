"""Measure compile time and memory, decoding speed beside other runtimes, and simulation speed.

    python benchmarks/speed.py MODEL.onnx [--hugging-face DIR] [--json FILE]

Everything runs in one go on the machine at hand: `speqc compile` in a process of its own (wall time
and peak resident memory), each decoding mode of the machine, onnxruntime on the same file, and,
with the folder of the Hugging Face model, Transformers in FP32. All continue the same text
greedily. Each rate is the median of three runs behind a warm-up, and counts new tokens over the
whole run, prompt included. Needs `pip install 'speqc[export]'`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

PROMPT = """Once upon a time there was a small town by the sea. Every morning the fishermen went out
in their boats, and every evening they came home and told"""
REPEATS = 3


def main() -> None:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description="Measure speqc beside other runtimes.")
    parser.add_argument("model", type=Path, help="an ONNX model with its tokenizer beside it")
    parser.add_argument("--hugging-face", type=Path, help="folder (or GGUF file) of the same model")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prompt = prompt_tokens(options.model.parent / "tokenizer.json")
    results = {"machine": f"{platform.machine()} x {psutil.cpu_count()}"}
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "model.speq"
        results |= measure_compile(options.model, artifact)
        results |= measure_machine(artifact, prompt, options.new_tokens)
        results |= measure_simulation(artifact)
    results |= measure_onnxruntime(options.model, prompt, options.new_tokens)
    if options.hugging_face:
        results |= measure_transformers(options.hugging_face, prompt, options.new_tokens)
    for name, value in results.items():
        print(f"{name:48} {value if isinstance(value, str) else format(value, '.4g')}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure_compile(model: Path, artifact: Path) -> dict[str, float]:
    """Wall time and peak resident memory of `speqc compile`."""
    start = time.perf_counter()
    command = [sys.executable, "-P", "-m", "speqc", "compile", str(model), "-o", str(artifact)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = watch_memory(process)
    if process.wait():
        raise SystemExit(f"speqc compile failed: {' '.join(command)}")
    return {
        "compile seconds": time.perf_counter() - start,
        "compile peak resident MB": peak / 1e6,
    }


def watch_memory(process: "subprocess.Popen[bytes]") -> int:
    """The largest resident set of a process while it runs, in bytes."""
    peak = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    return peak


def measure_machine(artifact: Path, prompt: Sequence[int], new_tokens: int) -> dict[str, float]:
    """Tokens per second of each mode of the machine, and the acceptance rate."""
    from speqc.artifact import load_artifact
    from speqc.runtime.decode import MODES, DecodeOptions, decode
    from speqc.runtime.machine import Machine
    from speqc.runtime.weights import WeightFile

    loaded = load_artifact(artifact)
    machine = Machine(loaded.program, WeightFile(loaded.weights))
    options = DecodeOptions(new_tokens)
    rounds = decode(machine, "speculative", prompt, options).rounds
    accepted = sum(entry.accepted for entry in rounds) / sum(entry.drafted for entry in rounds)

    def run(mode: str) -> Callable[[], None]:
        return lambda: void(decode(machine, mode, prompt, options))

    rates = {f"speqc {mode} tokens/s": new_tokens / median_seconds(run(mode)) for mode in MODES}
    return rates | {"speqc acceptance rate": accepted}


def measure_simulation(artifact: Path) -> dict[str, float]:
    """Milliseconds to time one step, without computing values."""
    from speqc.artifact import load_artifact
    from speqc.runtime.program_timing import ProgramTimer

    program = load_artifact(artifact).program
    timer = ProgramTimer(program)

    def run(function: str, rows: int) -> Callable[[], None]:
        return lambda: void(timer.time(function, rows, 512))

    return {
        "simulate a draft step, ms": 1e3 * median_seconds(run("draft", 1)),
        "simulate a full step of 9 rows, ms": 1e3 * median_seconds(run("full", 9)),
    }


def measure_onnxruntime(model: Path, prompt: Sequence[int], new_tokens: int) -> dict[str, float]:
    """Greedy tokens per second of onnxruntime on the same file, its optimisations on."""
    from speqc.oracle import OnnxRuntimeDecoder

    decoder = OnnxRuntimeDecoder(model, optimize=True)
    seconds = median_seconds(lambda: void(decoder.greedy(prompt, new_tokens)))
    return {"onnxruntime tokens/s": new_tokens / seconds}


def measure_transformers(source: Path, prompt: Sequence[int], new_tokens: int) -> dict[str, float]:
    """Greedy tokens per second of Transformers in FP32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    gguf = {}
    if source.suffix == ".gguf":
        gguf = {"gguf_file": source.name, "quantization_config": GgufConfig(dequantize=True)}
    folder = source.parent if gguf else source
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf).eval()
    tokens = torch.tensor([prompt])

    def run() -> None:
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )

    return {"transformers FP32 tokens/s": new_tokens / median_seconds(run)}


def prompt_tokens(tokenizer: Path) -> Sequence[int]:
    """The tokens of the prompt."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer)).encode(PROMPT).ids


def median_seconds(run: Callable[[], None]) -> float:
    """Median wall time of `run` behind a warm-up."""
    run()
    times: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def void(_: object) -> None:
    """Drop a result."""


if __name__ == "__main__":
    main()
