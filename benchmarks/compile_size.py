"""Measure how `speqc compile` scales: time and memory for generated models of growing size.

    python benchmarks/compile_size.py FOLDER [--layers 1 4 16] [--codebooks paper sets] [--keep]

Models of Llama 3.1 8B's shapes (see `tools/make_large_model.py`) are generated into FOLDER, each is
compiled in a process of its own, and both are deleted. 16 layers are 8.0 GB of weights and need
17 GB of disk. Columns of the table:

- GB: FP16 weights of the file, in 10^9 bytes; seconds: wall time of the whole command;
- MB/s: weights over wall time; MB/CPU s: weights over processor time of all threads;
- private MB: the largest `RssAnon`, memory that is the process's own;
- resident MB: the largest `VmHWM`, which also counts pages of files mapped at that moment.

A line before the table gives the rate of encoding alone (reading, encoding, proving and writing one
weight of 4096 x 14336, wall time, kernels compiled before). Memory is read from /proc (Linux). The
load average before each run is given: beside other work, trust MB/CPU s.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr, i64

from speqc.compile import DEFAULT_GROUP_SIZES
from speqc.dialects.speq import WeightOp
from speqc.tensor_store import TensorStore
from speqc.weight_writer import write_weights

GENERATOR = Path(__file__).parent.parent / "tools" / "make_large_model.py"
HEADER = (
    "| layers | GB | code book | seconds | MB/s | MB/CPU s | private MB | resident MB | load |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Measured:
    """One compilation: wall and processor time in seconds, peak memory in bytes."""

    seconds: float
    cpu_seconds: float
    private: int
    resident: int


def main() -> None:
    """Print a row for each model and code book."""
    parser = argparse.ArgumentParser(description="Measure how compiling scales with size.")
    parser.add_argument("folder", type=Path, help="where there is room for models and artifacts")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--codebooks", nargs="+", default=["paper", "sets"])
    parser.add_argument("--keep", action="store_true", help="keep the models, use those there are")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for codebook in options.codebooks:
        rate = encoding_rate(options.folder, codebook)
        print(f"encoding alone, {codebook}: {rate:.0f} MB/s", flush=True)
    print(HEADER)
    for layers in options.layers:
        folder = options.folder / f"layers{layers}"
        if not (folder / "model.onnx").exists():
            command = [sys.executable, str(GENERATOR), str(folder), "--layers", str(layers)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        size = sum(file.stat().st_size for file in folder.iterdir())
        for codebook in options.codebooks:
            load = os.getloadavg()[0]
            with tempfile.TemporaryDirectory(dir=options.folder) as out:
                measured = compile_measured(folder / "model.onnx", Path(out) / "m.speq", codebook)
            print(row(layers, size, codebook, measured, load), flush=True)
        if not options.keep:
            shutil.rmtree(folder)


def encoding_rate(folder: Path, codebook: str) -> float:
    """MB of FP16 that are encoded, decoded, compared and written per second."""
    random = np.random.default_rng(0)
    values = random.standard_normal((4096, 14336), np.float32) * np.float32(0.02)
    tensors = TensorStore()
    digest = tensors.add("w", ir.tensor(values.astype(np.float16))).digest
    weight = WeightOp("w", "w", digest, values.shape)
    weight.codebook = StringAttr(codebook)
    weight.group_size = IntegerAttr(DEFAULT_GROUP_SIZES[codebook], i64)
    module = ModuleOp([weight])
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder) as out:
        for _ in range(3):
            start = time.perf_counter()
            write_weights(Path(out) / "w.safetensors", module, tensors, lambda blocks: None)
            seconds.append(time.perf_counter() - start)
    return 2e-6 * values.size / min(seconds)


def compile_measured(model: Path, artifact: Path, codebook: str) -> Measured:
    """Compile in a child process and watch it."""
    command = [sys.executable, "-P", "-m", "speqc", "compile", str(model), "-o", str(artifact)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--codebook", codebook], stderr=subprocess.DEVNULL)
    private = 0
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        private = max(private, private_bytes(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    _, status, usage = ended
    if status:
        raise SystemExit(f"speqc compile failed: {' '.join(command)}")
    # Linux counts ru_maxrss in KiB.
    return Measured(seconds, usage.ru_utime + usage.ru_stime, private, usage.ru_maxrss * 1024)


def private_bytes(pid: int) -> int:
    """Resident anonymous memory of a process; 0 once it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines.get("RssAnon", "0 kB").split()[0]) * 1024


def row(layers: int, size: int, codebook: str, measured: Measured, load: float) -> str:
    """A row of the table."""
    values = (
        layers,
        f"{size / 1e9:.2f}",
        f"`{codebook}`",
        f"{measured.seconds:.0f}",
        f"{size / 1e6 / measured.seconds:.0f}",
        f"{size / 1e6 / measured.cpu_seconds:.0f}",
        f"{measured.private / 1e6:.0f}",
        f"{measured.resident / 1e6:.0f}",
        f"{load:.1f}",
    )
    return f"| {' | '.join(map(str, values))} |"


if __name__ == "__main__":
    main()
