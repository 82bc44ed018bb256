import json
import re
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Dialect
from xdsl.parser import Parser

import speqc.passes
from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, Summary, compile_model, emit_level
from speqc.dialects.speq import WeightOp
from speqc.dump_ir import IrDump, print_module
from speqc.model_folder import read_model_folder
from speqc.opt import SpeqcOptMain
from speqc.pipeline import DIALECTS, LEVELS, PASSES, STAGES, pass_class, passes_to, resolve
from speqc.program_reader import new_context
from speqc.runtime.errors import SpeqcError
from speqc.target_files import load_target
from speqc.universe import SPEQC_UNIVERSE

TARGET = load_target("speq-64x64")


@pytest.fixture(scope="module")
def dumps(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dumped") / "ir"
    emit_level(model, CompileOptions(TARGET, dump_ir=folder), "pe")
    return folder


def parse(text: str) -> ModuleOp:
    module = Parser(new_context(), text).parse_module()
    module.verify()
    return module


def declared_passes() -> set[str]:
    """Names that the files of the passes package give to passes."""
    folder = Path(str(speqc.passes.__file__)).parent
    found = (
        re.findall(r'^    name = "([a-z-]+)"$', file.read_text(), re.M)
        for file in folder.glob("*.py")
    )
    return {name for names in found for name in names}


@pytest.mark.parametrize("name", PASSES)
def test_each_entry_of_the_pass_registry_is_that_pass(name):
    found = pass_class(name)
    assert found.name == name
    assert found.__name__.removesuffix("Pass").lower() == name.replace("-", "")
    assert PASSES[name].startswith(f"speqc.passes.{name.replace('-', '_')}:")
    # One that is no frozen dataclass loses its options.
    assert is_dataclass(found) and found.__dataclass_params__.frozen


def test_the_registry_has_every_pass():
    assert PASSES.keys() == declared_passes()
    assert SPEQC_UNIVERSE.all_passes.keys() == PASSES.keys()


def test_each_entry_of_the_dialect_registry_is_that_dialect():
    for name, reference in DIALECTS.items():
        found = resolve(reference)
        assert isinstance(found, Dialect)
        assert found.name == name


def test_pass_names_of_others_are_no_passes():
    with pytest.raises(KeyError):
        pass_class("no-such-pass")


def test_stages_add_up_and_take_options():
    names = [step.name for step in passes_to("pe", {})]
    assert names == [name for level in LEVELS for name in STAGES[level]]
    assert passes_to("onnx", {}) == [pass_class("verify-onnx")()]
    with pytest.raises(ValueError, match="no_such"):
        passes_to("pe", {"split-weights": {"no-such": 1}})


def test_dumps_are_numbered_by_pass(dumps):
    names = ["import", *(step.name for step in passes_to("pe", {}))]
    files = sorted(file.name for file in dumps.glob("*.mlir"))
    assert files[0] == "00-import.mlir"
    timings = json.loads((dumps / "timings.json").read_text())
    assert [entry["pass"] for entry in timings] == names
    changed = [number for number, entry in enumerate(timings) if entry["changed"]]
    assert files == [f"{number:02d}-{names[number]}.mlir" for number in changed]
    assert all(entry["seconds"] >= 0 for entry in timings)


def test_any_single_pass_runs_on_the_dump_before_it(dumps, tmp_path):
    """The driver of `speqc opt`, on each dump, with the pass that made the next one."""
    files = sorted(dumps.glob("*.mlir"))
    out = tmp_path / "out.mlir"
    for before, after in pairwise(files):
        name = after.stem[3:]
        SpeqcOptMain(args=[str(before), "-p", name, "-o", str(out), "--print-debuginfo"]).run()
        assert print_module(parse(out.read_text())) == after.read_text(), name


def test_dumps_hold_names_but_no_weights(dumps):
    for file in dumps.glob("*.mlir"):
        text = file.read_text()
        assert "dense_resource" not in text
        longest = max((len(found) for found in re.findall(r"dense<\[(.*?)\]>", text)), default=0)
        assert longest < 2000
        assert text.count("sha256:") > 20
        assert " loc(unknown)" not in text


def test_names_of_nodes_reach_the_program(kjv, dumps):
    def names(text: str) -> set[str]:
        return set(re.findall(r'loc\("(.*?)"\)', text))

    program = names((kjv / "program.mlir").read_text())
    imported = names((dumps / "00-import.mlir").read_text())
    assert program
    assert program <= imported
    gemms = re.findall(r"pe\.gemm .*", (kjv / "program.mlir").read_text())
    assert all('loc("' in line for line in gemms)


@pytest.mark.parametrize("level", LEVELS)
def test_emit_prints_one_level_and_stops(invoke, model, level, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("compile", model, "--emit", level)
    assert result.exit_code == 0, result.stderr
    module = parse(result.stdout)
    kinds = {op.name.split(".")[0] for op in module.walk()}
    allowed = {
        "onnx": {"onnx"},
        "speq": {"onnx", "speq"},
        "pe": {"pe", "speq"},
    }[level]
    assert kinds == allowed | {"builtin", "func"}
    assert list(tmp_path.iterdir()) == []


def test_compile_writes_beside_us_and_says_what_it_did(invoke, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("compile", model)
    assert (result.exit_code, result.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.speq"]
    for fragment in (
        "note: using the tokenizer",
        "weights split",
        "compiled in",
        "wrote model.speq",
    ):
        assert fragment in result.stderr
    load_artifact(tmp_path / "model.speq")


def test_groups_that_do_not_divide_k_are_said_once(model, tmp_path, invoke):
    shapes = ("compile", model, "--no-weights", "-o", tmp_path / "x.speq")
    (line,) = (
        line
        for line in invoke(*shapes, "--group-size", 96).stderr.splitlines()
        if "last group is shorter" in line
    )
    # The products' K are 256 and 512: 96 divides neither.
    assert re.search(r"^note: .* in (\d+) of \1 weights: 96 does not divide K \(of @\w", line)
    assert "shorter" not in invoke(*shapes, "--group-size", 128).stderr


@pytest.mark.parametrize(("codebook", "group_size"), [("sets", 64), ("paper", 128), ("naive", 128)])
def test_each_code_book_has_its_own_group_size(model, tmp_path, codebook, group_size):
    options = CompileOptions(TARGET, codebook)
    compile_model(model, tmp_path / "x.speq", options)
    artifact = load_artifact(tmp_path / "x.speq")
    weights = [op for op in artifact.program.ops if isinstance(op, WeightOp)]
    assert {op.codebook and op.codebook.data for op in weights} == {codebook}
    assert {op.group_size and op.group_size.value.data for op in weights} == {group_size}
    assert artifact.manifest["options"]["codebook"] == codebook
    assert artifact.manifest["options"]["group_size"] == group_size


def test_only_split_weights_count_as_compared():
    split, kept = WeightOp("a", "a", "sha256:0", (3, 5)), WeightOp("b", "b", "sha256:0", (7, 11))
    split.codebook, kept.kept = StringAttr("sets"), StringAttr("an embedding")
    lines = Summary(1, [split, kept], 8, 1.0).lines()
    assert lines[1].startswith("1 of 2 weights split (15 values), each decoded again")
    assert lines[2] == "1 kept as FP16: an embedding"


def test_a_model_of_which_nothing_is_stored_for_drafts_is_not_said_to_be_split():
    kept = WeightOp("b", "b", "sha256:0", (7, 11))
    kept.kept = StringAttr("it has Inf or NaN")
    lines = Summary(1, [kept], 8, 1.0).lines()
    assert lines[1] == "1 weight stored as FP16 alone, which drafts read in full"
    assert lines[2] == "1 kept as FP16: it has Inf or NaN"


def test_options_reach_the_artifact(invoke, model, tmp_path):
    tokenizer = tmp_path / "other.json"
    tokenizer.write_text(model.with_name("tokenizer.json").read_text() + "\n")
    out = tmp_path / "x.speq"
    arguments = ("--group-size", "32", "--context", "77", "--tokenizer", tokenizer)
    result = invoke("compile", model, "-o", out, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "using the tokenizer" not in result.stderr
    artifact = load_artifact(out)
    assert artifact.context == 77
    assert artifact.manifest["options"]["group_size"] == 32
    assert (out / "tokenizer.json").read_text() == tokenizer.read_text()


def test_bad_input_is_one_line_and_leaves_nothing(invoke, model, tmp_path):
    out = tmp_path / "x.speq"
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    short = tmp_path / "short.onnx"
    short.write_bytes(model.read_bytes()[:100_000])
    taken = tmp_path / "taken"
    taken.write_text("mine")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    before = sorted(tmp_path.iterdir())
    for arguments, fragment in (
        ((tmp_path / "none.onnx", "-o", out), "none.onnx"),
        ((text, "-o", out), "text.onnx"),
        ((short, "-o", out), "short.onnx"),
        ((model, "-o", taken), "exists and is no speqc artifact"),
        ((model, "-o", tmp_path / "nowhere" / "x.speq"), "does not exist"),
        ((model, "-o", out, "--tokenizer", broken), "not a tokenizer.json"),
        ((model, "-o", out, "--tokenizer", tmp_path / "none.json"), "no such tokenizer"),
    ):
        result = invoke("compile", *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        line = result.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        assert "internal error" not in line
        assert fragment in line
        assert sorted(tmp_path.iterdir()) == before


def test_a_dump_numbers_only_what_changed(tmp_path):
    dump = IrDump(tmp_path / "a" / "b")
    module = ModuleOp([])
    dump.after("import", module, 1.0)
    dump.after("nothing", module, 0.25)
    dump.after("again", parse("func.func private @f()"), 0.5)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {
        "00-import.mlir",
        "02-again.mlir",
        "timings.json",
    }


def write(folder: Path, **files: object) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder / "model.onnx"


def test_a_folder_without_files_says_nothing(tmp_path):
    found = read_model_folder(tmp_path / "model.onnx")
    assert (found.tokenizer, found.context, found.eos_token_ids) == (None, None, ())
    assert (found.chat_template, found.special_tokens) == (None, {})


@pytest.mark.parametrize(
    ("config", "settings", "context"),
    [
        ({"max_position_embeddings": 512}, {"model_max_length": 99}, 512),
        ({"n_positions": 64}, {}, 64),
        ({}, {"model_max_length": 99}, 99),
        ({}, {"model_max_length": 10**30}, None),
    ],
)
def test_the_context_of_a_model(tmp_path, config, settings, context):
    model = write(tmp_path, config=config, tokenizer_config=settings)
    assert read_model_folder(model).context == context


def test_end_of_text_tokens_of_a_model(tmp_path, model):
    both = write(tmp_path, generation_config={"eos_token_id": [2, 7]}, config={"eos_token_id": 5})
    assert read_model_folder(both).eos_token_ids == (2, 7)
    one = write(tmp_path, generation_config={}, config={"eos_token_id": 5})
    assert read_model_folder(one).eos_token_ids == (5,)
    write(tmp_path, config={}, tokenizer_config={"eos_token": {"content": "<|endoftext|>"}})
    found = read_model_folder(one, model.with_name("tokenizer.json"))
    assert found.eos_token_ids == (0,)
    assert found.special_tokens == {"eos_token": "<|endoftext|>"}


def test_chat_templates_of_a_model(tmp_path):
    model = write(tmp_path, tokenizer_config={"chat_template": "a"})
    assert read_model_folder(model).chat_template == "a"
    named = [{"name": "tools", "template": "b"}, {"name": "default", "template": "c"}]
    write(tmp_path, tokenizer_config={"chat_template": named})
    assert read_model_folder(model).chat_template == "c"
    (tmp_path / "chat_template.jinja").write_text("d")
    assert read_model_folder(model).chat_template == "d"


def test_damaged_files_beside_a_model_are_errors(tmp_path):
    model = write(tmp_path, config=[])
    with pytest.raises(SpeqcError, match=r"config\.json: expected a JSON object"):
        read_model_folder(model)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpeqcError, match=r"config\.json: cannot be read as JSON"):
        read_model_folder(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": 5},
        {"chat_template": {"default": "a"}},
        {"chat_template": [{"x": 1}]},
        {"chat_template": ["a"]},
        {"chat_template": [{"name": "default", "template": 5}]},
        {"eos_token": 5},
        {"eos_token": {"content": 5}},
        {"eos_token": {"text": "a"}},
    ],
)
def test_settings_of_the_wrong_type_are_errors(tmp_path, settings):
    with pytest.raises(SpeqcError, match=r"tokenizer_config\.json: .*expected"):
        read_model_folder(write(tmp_path, tokenizer_config=settings))


def test_a_chat_template_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(SpeqcError, match=r"chat_template\.jinja: cannot be read as UTF-8"):
        read_model_folder(tmp_path / "model.onnx")
