"""Compiling streams: its memory does not grow with the model."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.dialects.speq import WeightOp
from speqc.onnx_import import import_model
from speqc.onnx_mapping import load_model
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target
from speqc.tensor_store import TensorStore
from speqc.weight_facts import weight_facts

GENERATOR = Path(__file__).parents[2] / "tools" / "make_large_model.py"

LIMITED = """
import os, resource, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import speqc.compile
limit = int(sys.argv.pop(1))
def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
bound = used() + limit
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
from speqc.cli import main
main()
"""
"""Runs speqc in two threads with a bound on the memory that it may add to what its modules take.

Stacks of threads and the code of kernels count too: 120 to 150 MB, whatever the model.
"""


def generate(folder: Path, *options: str) -> Path:
    command = [sys.executable, str(GENERATOR), str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "model.onnx"


def small(folder: Path, head: str) -> Path:
    sizes = ("--layers=1", "--hidden=64", "--intermediate=160", "--heads=4", "--kv-heads=2")
    return generate(folder, *sizes, "--vocabulary=300", f"--head={head}")


def compile_within(limit: int, model: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-c", LIMITED, str(limit), "compile", str(model)]
    options = ["-o", str(out), "--codebook", "paper"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model with 275 MB of weights."""
    folder = tmp_path_factory.mktemp("large")
    sizes = ("--layers=2", "--hidden=2048", "--intermediate=6144", "--heads=16", "--kv-heads=4")
    return generate(folder, *sizes, "--vocabulary=10000", "--head=own")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds all memory on Linux only")
@pytest.mark.parametrize("embedded", [False, True])
def test_a_model_is_compiled_in_less_memory_than_its_weights_take(tmp_path, large, embedded):
    """All weights are never in memory at once, nor is the file where it embeds them."""
    assert large.with_name("model.onnx.data").stat().st_size > 270e6
    model = large
    if embedded:
        model = tmp_path / "model.onnx"
        onnx.save(onnx.load(large), model)
    done = compile_within(200 << 20, model, tmp_path / "out.speq")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds all memory on Linux only")
def test_the_bound_on_memory_is_one(tmp_path):
    """The limit that the test above relies on stops a program that keeps what it reads."""
    program = LIMITED.replace("from speqc.cli import main\nmain()", "bytes(200 << 20)")
    command = [sys.executable, "-P", "-c", program, str(150 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("head", ["tied", "copied"])
def test_a_head_that_is_the_embedding_is_stored_once(tmp_path, head):
    """Also where the file holds a transposed copy; the planes then give both."""
    model = small(tmp_path / "model", head)
    compile_model(model, tmp_path / "out.speq", CompileOptions(load_target("speq-64x64")))
    artifact = load_artifact(tmp_path / "out.speq")
    weights = [op for op in artifact.program.ops if isinstance(op, WeightOp)]
    large = [op for op in weights if 300 in op.shape]
    assert [op.source.data for op in large] == ["embedding.weight"]
    assert weight_facts(large[0], WeightFile(artifact.weights)).exact


def test_a_head_of_its_own_is_kept(tmp_path):
    tensors = import_model(small(tmp_path, "own")).tensors
    assert sorted(t.shape for t in tensors.values() if 300 in t.shape) == [(64, 300), (300, 64)]


def test_transposes_are_found_by_content():
    values = np.random.default_rng(1).normal(size=(70, 50)).astype(np.float16)
    swapped = values.copy()
    swapped[0, 0], swapped[0, 1] = values[0, 1], values[0, 0]
    store = TensorStore()
    first = store.add("first", ir.tensor(values))
    assert store.transpose_of(first) is None
    assert store.transpose_of(store.add("second", ir.tensor(values.T.copy()))) is first
    assert store.transpose_of(store.add("third", ir.tensor(swapped.T.copy()))) is None


def test_embedded_tensors_stay_in_the_file(tmp_path):
    """What is read is what the file's parser reads, large and small, FP16 and integers."""
    random = np.random.default_rng(2)
    arrays = {
        "large": random.normal(size=(300, 200)).astype(np.float16),
        "odd": random.integers(-9, 9, (123, 457)).astype(np.int64),
        "small": np.arange(4, dtype=np.float32),
    }
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, producer_name="x" * 300), path)
    model = load_model(path)
    assert model.producer_name == "x" * 300
    for name, array in arrays.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
        assert isinstance(tensor, ir.LazyTensor) == (name != "small")


def test_an_embedded_tensor_of_another_size_than_its_shape_is_left_to_the_reader(tmp_path):
    tensor = onnx.numpy_helper.from_array(np.zeros((300, 200), np.float16), "w")
    tensor.dims[0] = 301
    path = tmp_path / "model.onnx"
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert not isinstance(load_model(path).graph.initializers["w"].const_value, ir.LazyTensor)
