import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from xdsl.dialects.func import FuncOp

from speqc.artifact import load_artifact
from speqc.calibrate import Calibration
from speqc.calibration_text import (
    FIRST_TOKENS,
    SELF,
    SELF_LENGTH,
    CalibrationText,
    read_calibration,
    text_digest,
)
from speqc.cli import main
from speqc.dialects.speq import FULL, WeightOp
from speqc.model_folder import ModelFolder, read_model_folder
from speqc.runtime.errors import SpeqcError
from speqc.runtime.head_inputs import HeadInputs
from speqc.runtime.input_moments import InputMoments, batches, groups, weight_name
from speqc.runtime.likely_tokens import LEAST
from speqc.runtime.lockstep import Lockstep
from speqc.runtime.machine import Machine
from speqc.runtime.self_text import write_text
from speqc.runtime.weights import WeightFile

KJV = Path(str(files("speqc").joinpath("models", "kjv")))
MODEL = KJV / "model.onnx"
FOLDER = read_model_folder(MODEL)
CONTEXT, VOCABULARY = 1024, 4096


def compiled(out: Path, *options: str):
    arguments = ["compile", str(MODEL), "-o", str(out), *options]
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "kjv.speq"
    assert compiled(out).exit_code == 0
    return out


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "kjv.speq"
    result = compiled(out, "--calibration", "self", "--calibration-tokens", "800")
    assert result.exit_code == 0, result.output
    assert "every bit is there" in result.output and "calibrated on self" in result.output
    return out


def machine_of(path: Path) -> Machine:
    artifact = load_artifact(path)
    return Machine(artifact.program, WeightFile(artifact.weights))


def full_step(machine: Machine) -> FuncOp:
    functions = [op for op in machine.program.ops if isinstance(op, FuncOp)]
    return next(op for op in functions if op.sym_name.data == FULL)


def split_names(machine: Machine) -> list[str]:
    return [
        op.sym_name.data for op in machine.program.ops if isinstance(op, WeightOp) and op.is_split
    ]


def test_calibration_keeps_every_bit_and_improves_every_layer(plain, calibrated):
    before, after = machine_of(plain), machine_of(calibrated)
    assert before.weights.keys() == after.weights.keys()
    for name, weight in before.weights.items():
        assert np.array_equal(weight.full(), after.weights[name].full())
    facts = load_artifact(calibrated).manifest["calibration"]
    assert facts["output_snr_db"].keys() == set(split_names(after))
    for ratio in facts["output_snr_db"].values():
        assert ratio["after"] > ratio["before"] + 1


def test_the_calibrated_draft_is_nearer_to_the_full_model(plain, calibrated):
    ids = read_ids("And it came to pass in those days, that")
    distances = []
    for path in (plain, calibrated):
        machine = machine_of(path)
        full = machine.call("full", ids).astype(np.float64)
        machine.reset()
        distances.append(np.square(machine.call("draft", ids) - full).mean())
    assert distances[1] < 0.7 * distances[0]


def read_ids(text: str) -> list[int]:
    from speqc.text import encode, load_tokenizer

    assert FOLDER.tokenizer is not None
    return encode(load_tokenizer(FOLDER.tokenizer), text)


def test_the_same_input_gives_the_same_bytes(calibrated, tmp_path, monkeypatch):
    # One thread and other pieces of work than the first time.
    monkeypatch.setattr("speqc.runtime.bsfp.processors", lambda: 1)
    monkeypatch.setattr("speqc.weight_writer.STRIP_BLOCKS", 2)
    again = tmp_path / "again.speq"
    assert compiled(again, "--calibration", "self", "--calibration-tokens", "800").exit_code == 0
    for file in calibrated.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_inspect_shows_the_calibration(calibrated):
    result = CliRunner().invoke(main, ["inspect", str(calibrated)])
    assert result.exit_code == 0
    assert "calibrated on self" in result.output and "gains" in result.output
    shown = CliRunner().invoke(main, ["inspect", str(calibrated), "--json", "-"])
    assert json.loads(shown.stdout)["calibration"]["source"] == "self"


def test_written_text_is_that_of_each_sequence_alone(plain):
    lockstep = Lockstep(machine_of(plain))
    prompts = [[5, 6, 7], [9], [100, 3]]
    together = write_text(lockstep, prompts, 800, 24, seed=4)
    assert all(len(text) <= 24 for text in together)
    # Sequence 1 continues the second prompt with its own random numbers.
    again = write_text(lockstep, prompts, 800, 24, seed=4)
    other = write_text(lockstep, prompts, 800, 24, seed=5)
    assert together == again != other
    starts = {tuple(text[:1]) for text in together}
    assert starts == {(5,), (9,), (100,)}


def test_stop_tokens_end_a_text(plain):
    lockstep = Lockstep(machine_of(plain))
    texts = write_text(lockstep, [[5]], 300, 30, stop_tokens=frozenset(range(0, 4096, 3)))
    assert any(len(text) < 30 for text in texts)
    for text in texts:
        assert all(token % 3 for token in text[1:-1])


def test_moments_are_those_of_the_inputs_of_each_group(plain):
    machine = machine_of(plain)
    found = groups(full_step(machine), split_names(machine))
    # Queries, keys and values share an input, so do gate and up; all weights are there once.
    assert sorted(name for group in found for name in group.weights) == sorted(split_names(machine))
    sizes = [len(group.weights) for group in found]
    assert sizes.count(3) == sizes.count(2) == (len(found) - 1) // 4
    seen = []

    def watch(op, operands, results):
        if op.name == "pe.gemm":
            seen.append((op, operands[0].reshape(-1, operands[0].shape[-1])))
        return results

    ids = np.arange(7)
    machine.call("full", ids, observe=watch)
    machine.reset()
    moments = InputMoments(found)
    for part in (ids[:3], ids[3:]):
        machine.call("full", part, observe=moments.observe)
        moments.flush(1)
    for group, sums in zip(found, moments.take(), strict=True):
        (site,) = group.sites
        x = next(rows for op, rows in seen if op.input is site[0]).astype(np.float64)
        assert sums.rows == 7
        assert np.allclose(sums.matrix(), x.T @ x, rtol=1e-3, atol=1e-3 * np.square(x).mean())


def test_rows_that_do_not_count_are_left_out(plain):
    machine = machine_of(plain)
    found = groups(full_step(machine), split_names(machine))
    every, some = InputMoments(found), InputMoments(found)
    head = HeadInputs(full_step(machine))
    ids = np.arange(5)
    some.leave_out([0, 3])
    head.leave_out([0, 3])
    seen = {}

    def watch(op, operands, results):
        for observer in (every, some, head):
            observer.observe(op, operands, results)
        if op.name == "pe.gemm" and weight_name(op) == head.weight:
            seen["x"] = operands[0].reshape(5, -1).astype(np.float32)
        return results

    machine.call("full", ids, observe=watch)
    assert [sums.rows for sums in every.take()] == [5] * len(found)
    assert [sums.rows for sums in some.take()] == [3] * len(found)
    likely = head.take()
    assert likely is not None and np.array_equal(likely.inputs.T, seen["x"][[1, 2, 4]])


def test_the_head_is_known_and_its_likely_tokens(plain):
    machine = machine_of(plain)
    head = HeadInputs(full_step(machine))
    assert head.weight == "model.lm_head"
    logits = machine.call("full", np.arange(9), observe=head.observe)
    likely = head.take()
    assert likely is not None
    assert len(likely.starts) == logits.shape[1] + 1
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    found = np.zeros(p.shape, bool)
    for token in range(p.shape[1]):
        found[likely.rows[likely.starts[token] : likely.starts[token + 1]], token] = True
    clear = np.abs(p / LEAST - 1) > 1e-3
    assert np.array_equal(found[clear], (p >= LEAST)[clear]) and clear.mean() > 0.99


def test_the_head_is_judged_where_tokens_were_likely(plain):
    text = CalibrationText("ids", [[5, 9, 2, 7, 1, 3]], False, 50, 6)
    machine = machine_of(plain)
    calibration = Calibration(machine, text, frozenset())
    calibration.run_first()
    head = HeadInputs(full_step(machine)).weight
    assert head is not None
    other = next(name for name in split_names(machine) if name != head)
    likely = calibration.likely(head, 64, 64)
    assert likely is not None and len(likely.starts) == 65
    assert likely.inputs.shape[1] == 5  # All but the text's first token.
    assert calibration.likely(other, 0, 64) is None


def test_the_first_rows_of_texts_are_named(plain):
    named = []
    prompts = [[3, 4, 5], [6], [7, 8]]
    write_text(Lockstep(machine_of(plain)), prompts, 200, 8, before_pass=named.append)
    assert named[0][:5] == [0, 3, 4, 6, 9]
    assert [] in named


def test_batches_keep_to_the_budget_and_their_order(plain):
    machine = machine_of(plain)
    found = groups(full_step(machine), split_names(machine))
    cut = list(batches(found, 3 * found[0].bytes))
    assert [group for batch in cut for group in batch] == found
    assert len(cut) > 1
    assert all(len(b) == 1 or sum(g.bytes for g in b) <= 3 * found[0].bytes for b in cut)
    assert [len(b) for b in batches(found, 0)] == [1] * len(found)


def test_several_batches_collect_what_one_does(plain, monkeypatch):
    machine, found = machine_of(plain), []
    monkeypatch.setattr("speqc.calibrate.metric", lambda moments: found.append(moments.matrix()))
    text = CalibrationText("ids", [[*range(50)], [*range(7, 30)]], False, 50, 73)

    def collect(budget: int) -> list[np.ndarray]:
        found.clear()
        monkeypatch.setattr("speqc.calibrate.batches", lambda all: batches(all, budget))
        stages = list(Calibration(machine, text, frozenset()).stages())
        assert (len(stages) > 1) == (budget < 1 << 30)
        by_name = sorted((group.weights, group) for stage in stages for group in stage)
        for _, group in by_name:
            group.prepare()
        return list(found)

    for one, many in zip(collect(1 << 30), collect(1 << 19), strict=True):
        assert np.array_equal(one, many)


def read(source, folder=FOLDER, tokens=100, context=CONTEXT) -> CalibrationText:
    return read_calibration(str(source), folder, tokens, context, VOCABULARY)


def test_own_prompts_are_tokens_or_begin_anywhere_without_a_tokenizer():
    text = read(SELF)
    assert text.written and text.length == SELF_LENGTH
    assert all(0 < len(prompt) < SELF_LENGTH for prompt in text.texts)
    bare = read(SELF, ModelFolder())
    assert len(bare.texts) == FIRST_TOKENS and all(len(prompt) == 1 for prompt in bare.texts)


def test_files_are_read_by_their_names(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 40)
    pieces = read(text, tokens=10_000, context=16).texts
    assert [token for piece in pieces for token in piece] == read_ids(text.read_text())
    assert all(len(piece) <= 16 for piece in pieces)
    np.save(tmp_path / "ids.npy", np.arange(20, dtype=np.int32))
    assert read(tmp_path / "ids.npy").texts == [list(range(20))]
    lines = tmp_path / "ids.jsonl"
    lines.write_text("[1, 2, 3]\n\n[4]\n")
    found = read(lines)
    assert found.texts == [[1, 2, 3], [4]] and not found.written
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('\N{BOM}{"prompt": "And\u2028the LORD"}\r\n', "utf-8")
    found = read(prompts)
    assert found.texts == [read_ids("And\u2028the LORD")] and found.written


def test_a_long_file_is_read_in_pieces_from_all_over_it(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(4000))
    found = read(tmp_path / "ids.npy", tokens=100, context=10)
    assert sum(map(len, found.texts)) == 100
    firsts = [piece[0] for piece in found.texts]
    assert firsts[0] == 0 and firsts[-1] == 3600 and firsts == sorted(firsts)


def test_as_many_tokens_are_read_as_are_wanted(tmp_path):
    lines = tmp_path / "ids.jsonl"
    lines.write_text("[1, 2, 3]\n" * 500 + json.dumps([4] * 700) + "\n")
    for tokens in (1, 100, 1000, 2150):
        texts = read(lines, tokens=tokens).texts
        assert sum(map(len, texts)) == tokens
    # Of what the texts have, the same share is taken everywhere.
    texts = read(lines, tokens=1100).texts
    assert abs(sum(text[0] == 1 for text in texts) - 250) <= 2 and len(texts[-1]) >= 188


def test_what_a_model_writes_is_what_it_has_read(plain):
    passes: list[int] = []
    lockstep = Lockstep(machine_of(plain))
    texts = write_text(lockstep, [[5, 6, 7], [9]], 500, 12, after_pass=passes.append)
    assert sum(passes) == sum(map(len, texts)) >= 500
    assert max(map(len, texts)) == 12
    texts = write_text(Lockstep(machine_of(plain)), [[5, 6, 7], [9]], 1, 12)
    assert texts == [[5, 6, 7]]


def test_the_digest_tells_texts_apart():
    one = text_digest([[1, 2], [3]])
    assert one == text_digest([[1, 2], [3]])
    assert len({one, text_digest([[1], [2, 3]]), text_digest([[1, 2, 3]])}) == 3


BAD = {
    "missing.txt": (None, "there is no such file"),
    "empty.txt": ("", "has no tokens"),
    "bad.npy": ("abc", "not an .npy file"),
    "bad.jsonl": ("{", "not JSON"),
    "deep.jsonl": ("[" * 100_000, "nested too deeply"),
    "text.jsonl": ('"a"', "text.jsonl, line 1: expected a list of token ids, or an object"),
    "truths.jsonl": ("[1, true]", "expected a list of token ids"),
    "other.jsonl": ('{"text": "a"}', 'there is no "prompt", or it is empty'),
    "void.jsonl": ("", "has no tokens"),
    "kind.jsonl": ('{"prompt": "a", "chat": 1}', '"chat" must be true or false, got 1'),
    "mixed.jsonl": ('[1]\n{"prompt": "a"}', "both prompts and token ids"),
    "range.jsonl": ("[5000]", "out of range"),
    "chat.jsonl": ('\n{"prompt": "a", "chat": true}', "line 2: .* no chat template"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused(name, tmp_path):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    folder = replace(FOLDER, chat_template=None)
    with pytest.raises(SpeqcError, match=message):
        read(tmp_path / name, folder)


def test_text_without_a_tokenizer_and_latin_text_are_refused(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("abc")
    with pytest.raises(SpeqcError, match="needs a tokenizer"):
        read(text, ModelFolder())
    text.write_bytes(b"caf\xe9")
    with pytest.raises(SpeqcError, match="not a text in UTF-8"):
        read(text)


def test_floats_are_no_token_ids(tmp_path):
    np.save(tmp_path / "ids.npy", np.ones(3))
    with pytest.raises(SpeqcError, match="expected token ids"):
        read(tmp_path / "ids.npy")


def test_prompts_that_fill_the_context_are_refused():
    with pytest.raises(SpeqcError, match="no prompt shorter than 2 tokens"):
        read(SELF, context=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibration", "self", "--no-weights"], "leave out --no-weights"),
        (["--calibration", "self", "--emit", "pe"], "leave out --calibration"),
        (["--calibration-tokens", "5"], "needs --calibration"),
        (["--calibration", "nowhere.txt"], "no such file"),
    ],
)
def test_options_that_contradict_are_refused_in_one_line(options, message, tmp_path):
    out = tmp_path / "out.speq"
    arguments = options if "--emit" in options else [*options, "-o", str(out)]
    result = CliRunner().invoke(main, ["compile", str(MODEL), *arguments])
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())
