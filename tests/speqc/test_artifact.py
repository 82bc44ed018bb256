import json
import re
import shutil
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, ModuleOp, StringAttr, i64

from speqc.artifact import check_destination, load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.dialects.speq import WeightOp
from speqc.onnx_import import import_model
from speqc.runtime.codebook import load_codebook
from speqc.runtime.errors import SpeqcError
from speqc.runtime.planes import NIBBLE_PLANES, encode_panels, full_panels
from speqc.runtime.weights import WeightFile
from speqc.safetensors_writer import DTYPE_NAMES, Entry, SafetensorsWriter
from speqc.target_files import load_target
from speqc.tensor_store import TensorStore, file_digest
from speqc.weight_facts import draft_snr_db, weight_facts
from speqc.weight_writer import Strip, write_weights

FILES = ("program.mlir", "weights.safetensors", "manifest.json", "tokenizer.json")


@pytest.fixture
def options() -> CompileOptions:
    return CompileOptions(load_target("speq-64x64"))


@pytest.fixture
def copy(kjv: Path, tmp_path: Path) -> Path:
    """An artifact of one's own, to damage."""
    return shutil.copytree(kjv, tmp_path / "copy.speq")


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def with_manifest(path: Path, change) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def with_program(path: Path, change) -> None:
    """Edit the program and vouch for it."""
    file = path / "program.mlir"
    file.write_text(change(file.read_text()))
    entry = {"bytes": file.stat().st_size, "digest": f"sha256:{file_digest(file)}"}
    with_manifest(path, lambda manifest: manifest["files"].update({"program.mlir": entry}))


def expect_refusal(path: Path, message: str) -> None:
    with pytest.raises(SpeqcError, match=message) as caught:
        load_artifact(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_files_of_an_artifact(kjv, model):
    assert sorted(contents(kjv)) == sorted(FILES)
    manifest = json.loads((kjv / "manifest.json").read_text())
    assert manifest["source"] == {"model.onnx": f"sha256:{file_digest(model)}"}
    assert manifest["lossless"]["verified"] is True
    for name, entry in manifest["files"].items():
        assert entry["digest"] == f"sha256:{file_digest(kjv / name)}"
    artifact = load_artifact(kjv)
    assert artifact.context == manifest["context"] == 1024
    assert artifact.proved_positions == manifest["proved_positions"] >= 1024
    assert artifact.eos_token_ids == {0}
    assert artifact.tokenizer == kjv / "tokenizer.json"
    assert str(model) not in (kjv / "manifest.json").read_text()


def test_the_same_input_gives_the_same_bytes(kjv, model, options, tmp_path):
    again = tmp_path / "other-name.speq"
    compile_model(model, again, options)
    assert contents(again) == contents(kjv)


def test_the_safetensors_library_reads_every_weight_bit_for_bit(kjv, model):
    tensors = load_file(kjv / "weights.safetensors")
    source = import_model(model).tensors
    book = load_codebook("sets")
    np.testing.assert_array_equal(tensors["codebook.levels"], book.levels)
    np.testing.assert_array_equal(tensors["codebook.exponents"], book.exponents)
    used = {"codebook.levels", "codebook.exponents"}
    weights = [op for op in load_artifact(kjv).program.ops if isinstance(op, WeightOp)]
    for op in weights:
        name = op.sym_name.data
        parts = {f"{name}.{part}" for part in (*NIBBLE_PLANES, "scales")}
        assert parts <= tensors.keys()
        used |= parts
        planes = WeightFile(kjv / "weights.safetensors").planes(op)
        panels = full_panels(planes, book, op.shape[1])
        restored = panels.transpose(1, 0, 2).reshape(op.shape[0], -1)[:, : op.shape[1]]
        strip = Strip(op, 0, len(planes.draft))
        np.testing.assert_array_equal(restored, strip.read(source))
    for name in tensors.keys() - used:
        np.testing.assert_array_equal(tensors[name], source[name].read())


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    expect_refusal(
        copy, "not a speqc artifact" if name == "manifest.json" else f"{name} is missing"
    )


@pytest.mark.parametrize("name", ["program.mlir", "weights.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused(copy, name):
    file = copy / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    expect_refusal(copy, f"{name} is damaged: its digest")
    file.write_bytes(data[:-1])
    expect_refusal(copy, f"{name} is damaged: it has {len(data) - 1} bytes")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "tar"}', '{"format": null}', "\xff"]
)
def test_a_foreign_folder_is_refused(copy, text):
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    expect_refusal(copy, "not a speqc artifact")


def test_files_that_are_no_folder_are_refused(model, tmp_path):
    expect_refusal(model, "not a speqc artifact")
    expect_refusal(tmp_path / "x", "no such artifact")


def test_another_version_is_refused(copy):
    with_manifest(copy, lambda manifest: manifest.update(version=1))
    expect_refusal(copy, "format version 1, this speqc reads version 3: compile the model again")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.pop("text"),
        lambda manifest: manifest["files"].pop("weights.safetensors"),
        lambda manifest: manifest["files"].update({"../secret": {"bytes": 1, "digest": ""}}),
        lambda manifest: manifest["files"].update({"program.mlir": "sha256:0"}),
        lambda manifest: manifest["text"].update(eos_token_ids=["0"]),
        lambda manifest: manifest["text"].update(chat_template=5),
    ],
)
def test_a_damaged_manifest_is_refused(copy, change):
    with_manifest(copy, change)
    expect_refusal(copy, r"manifest\.json is damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], r"program\.mlir:\d+:\d+: "),
        (lambda text: text.replace("pe.gemm", "pe.nonsense", 1), "pe.nonsense is not registered"),
        (lambda text: text.replace("speq.context = 1024", "speq.context = 0"), "speq.context"),
        (
            lambda text: re.sub(
                "speq.proved_positions = [0-9]+", "speq.proved_positions = 9", text
            ),
            "the caches hold 1,024 positions, the program is proved for 9 only",
        ),
        (lambda text: text.replace("vector_lanes = 64", "vector_lanes = 0"), "vector_lanes"),
        (lambda text: text.replace("@linear {", "@nowhere {", 1), "@nowhere"),
    ],
)
def test_an_illegal_program_is_refused(copy, change, message):
    with_program(copy, change)
    expect_refusal(copy, f"not a program that this speqc can run: .*{message}")


def test_an_artifact_may_be_replaced_and_nothing_else(copy, tmp_path):
    check_destination(copy)
    check_destination(tmp_path / "new.speq")
    file, folder = tmp_path / "file.speq", tmp_path / "folder.speq"
    file.write_text("mine")
    folder.mkdir()
    for path in (file, folder):
        with pytest.raises(SpeqcError, match="exists and is no speqc artifact"):
            check_destination(path)
    with pytest.raises(SpeqcError, match="does not exist"):
        check_destination(tmp_path / "nowhere" / "x.speq")


def test_a_compilation_replaces_an_artifact_as_a_whole(copy, kjv, model, options):
    (copy / "program.mlir").write_text("old")
    (copy / "left-over").write_text("old")
    compile_model(model, copy, options)
    assert contents(copy) == contents(kjv)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_failed_compilation_leaves_nothing_behind(copy, model, options, monkeypatch, tmp_path):
    before = contents(copy)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("speqc.artifact.write_weights", fail)
    for path in (copy, tmp_path / "new.speq"):
        with pytest.raises(KeyboardInterrupt):
            compile_model(model, path, options)
    assert contents(copy) == before
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_an_artifact_that_cannot_be_replaced_stays(copy, model, options, monkeypatch):
    before, rename = contents(copy), Path.rename

    def fail(path, target):
        if path.suffix == ".part":
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(SpeqcError, match="disk full"):
        compile_model(model, copy, options)
    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def store(**arrays: np.ndarray) -> TensorStore:
    tensors = TensorStore()
    for name, array in arrays.items():
        tensors.add(name, ir.tensor(array))
    return tensors


def weight(shape, *, codebook=None, transposed=False, digest="sha256:0", name="w") -> WeightOp:
    op = WeightOp(name, "tensor", digest, shape, transposed=transposed)
    if codebook is not None:
        op.codebook, op.group_size = StringAttr(codebook), IntegerAttr(32, i64)
    return op


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.05, (70, 2100)).astype(np.float16)


@pytest.mark.parametrize("codebook", [None, "sets", "naive", "paper"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_written_in_blocks_and_proved(tmp_path, values, codebook, transposed):
    """More columns than are encoded at a time, and not a multiple of the block."""
    tensors = store(tensor=values.T.copy() if transposed else values)
    digest = tensors["tensor"].digest
    op = weight(values.shape, codebook=codebook, transposed=transposed, digest=digest)
    op.exponents = DenseArrayBase.from_list(i64, [0] * 32)
    steps: list[int] = []
    path = tmp_path / "weights.safetensors"
    proved = values.size if codebook else 0
    assert write_weights(path, ModuleOp([op]), tensors, steps.append) == proved
    assert sum(steps) == 33
    facts = weight_facts(op, WeightFile(path))
    assert facts.exact
    assert (facts.codebook, facts.shape) == (codebook, values.shape)
    if codebook is None:
        assert facts.draft_snr_db is None
    else:
        assert facts.draft_snr_db is not None and facts.draft_snr_db > 6
    op.digest = StringAttr("sha256:1")
    assert not weight_facts(op, WeightFile(path)).exact


def test_a_weight_that_does_not_survive_is_an_error(tmp_path, values, monkeypatch):
    def damaged(*arguments):
        planes = encode_panels(*arguments)
        planes.low[-1, 3, 4] ^= 1
        return planes

    monkeypatch.setattr("speqc.weight_writer.encode_panels", damaged)
    module = ModuleOp([weight(values.shape, codebook="sets")])
    with pytest.raises(SpeqcError, match=r"weight @w \(tensor\): decoding does not give its bits"):
        write_weights(tmp_path / "w", module, store(tensor=values), lambda steps: None)


def test_two_code_books_are_an_error(tmp_path, values):
    books = [weight(values.shape, codebook=name, name=name) for name in ("sets", "paper")]
    with pytest.raises(SpeqcError, match="one code book, the program names paper, sets"):
        write_weights(tmp_path / "w", ModuleOp(books), store(tensor=values), lambda steps: None)


def test_two_tensors_of_one_name_are_an_error(tmp_path, values):
    module = ModuleOp([weight(values.shape), weight(values.shape)])
    with pytest.raises(SpeqcError, match=r"two tensors .* 'w\.fp16'"):
        write_weights(tmp_path / "w", module, store(tensor=values), lambda steps: None)


def test_draft_snr_is_signal_over_error():
    """Weights 1 and 3 drafted as 1 and 2: 10 log10((1 + 9) / (0 + 1)) = 10 dB."""
    full = np.zeros((1, 2, 64), np.float16)
    full[0, :, 0] = [1, -3]
    draft = np.zeros((1, 2, 64), np.float16)
    draft[0, :, 0] = [2, -4]
    scales = np.full((1, 1, 64), -0.5, np.float16)
    bits = full.view(np.uint16), draft.view(np.uint16)
    assert draft_snr_db(*bits, scales, 64) == pytest.approx(10)
    assert draft_snr_db(bits[0], bits[0], np.ones_like(scales), 64) is None
    full[0, 0, 1] = np.inf
    assert draft_snr_db(*bits, scales, 64) is None


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
    dtypes=st.lists(st.sampled_from(list(DTYPE_NAMES)), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_library_reads_what_the_writer_writes(tmp_path_factory, shapes, dtypes, seed):
    random = np.random.default_rng(seed)
    arrays = {
        f"tensor {place}": random.integers(0, 2, shape).astype(dtype)
        for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    path = tmp_path_factory.mktemp("writer") / "x.safetensors"
    entries = [Entry(name, array.dtype, array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(path, entries) as writer:
        for name, array in reversed(arrays.items()):
            cut = len(array) // 2 if array.shape else 0
            writer.write(name, array)
            if cut:
                writer.write(name, array[cut:], cut)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0
    assert path.stat().st_size == 8 + header + sum(entry.size for entry in entries)
    loaded = load_file(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded[name], array)
        assert prod(array.shape) == array.size
