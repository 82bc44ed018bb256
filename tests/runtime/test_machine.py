from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func, FuncOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.artifact import Artifact, load_artifact
from speqc.dialects.pe import LoadCacheOp, LoadConstantOp, LoadWeightOp, Pe
from speqc.dialects.speq import Speq
from speqc.passes.verify_pe import VerifyPePass
from speqc.runtime.calls import Call
from speqc.runtime.errors import SpeqcError
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 1000, 40)]


@pytest.fixture(scope="module")
def artifact(embedded: Callable[[str], Path]) -> Artifact:
    return load_artifact(embedded("sets"))


@pytest.fixture(scope="module")
def weight_file(artifact: Artifact) -> WeightFile:
    return WeightFile(artifact.weights)


@pytest.fixture(scope="module")
def shared_machine(artifact: Artifact, weight_file: WeightFile) -> Machine:
    return Machine(artifact.program, weight_file)


@pytest.fixture
def machine(shared_machine: Machine) -> Machine:
    """The embedded model's machine with empty caches."""
    shared_machine.reset()
    return shared_machine


@pytest.fixture(scope="module")
def logits(shared_machine: Machine) -> NDArray:
    """The full model's logits of TOKENS, all in one pass."""
    shared_machine.reset()
    return shared_machine.call("full", TOKENS)


def parse(text: str) -> ModuleOp:
    context = Context()
    for dialect in (Builtin, Func, Speq, Pe):
        context.load_dialect(dialect)
    return Parser(context, text).parse_module()


def small(body: str, path: Path, header: str = "", width: int = 1) -> Machine:
    """A machine whose step is `body`, which gives %out: [1, M, width] in FP16; no weights."""
    save_file({}, path / "weights.safetensors")
    module = parse(f"""
      builtin.module attributes {{onnx.opset = 17 : i64, speq.context = 8 : i64}} {{
        {header}
        func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x{width}xf16> {{
          {body}
          func.return %out : tensor<1x?x{width}xf16>
        }}
      }}""")
    return Machine(module, WeightFile(path / "weights.safetensors"))


@given(cuts=st.lists(st.integers(1, len(TOKENS) - 1), unique=True, max_size=6))
@settings(max_examples=10, deadline=None)
def test_split_into_calls_changes_no_bit(
    shared_machine: Machine, logits: NDArray, cuts: list[int]
) -> None:
    shared_machine.reset()
    edges = [0, *sorted(cuts), len(TOKENS)]
    parts = [shared_machine.call("full", TOKENS[start:end]) for start, end in pairwise(edges)]
    assert np.concatenate(parts).tobytes() == logits.tobytes()


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 64])
def test_chunks_change_no_bit(machine: Machine, logits: NDArray, chunk: int) -> None:
    assert machine.call("full", TOKENS, chunk).tobytes() == logits.tobytes()
    rows = [call.rows for call in machine.take_calls()]
    assert rows == [min(chunk, 40 - start) for start in range(0, 40, chunk)]


def test_last_chunk_alone(machine: Machine, logits: NDArray) -> None:
    found = machine.call("full", TOKENS, 16, last_chunk=True)
    assert found.tobytes() == logits[32:].tobytes()
    assert machine.length == 40


def test_truncated_positions_leave_no_trace(machine: Machine, logits: NDArray) -> None:
    machine.call("full", TOKENS[:30])
    machine.call("draft", TOKENS[5:25])
    machine.truncate(12)
    assert machine.length == 12
    assert machine.call("full", TOKENS[12:]).tobytes() == logits[12:].tobytes()


def test_draft_sees_another_model(machine: Machine, logits: NDArray) -> None:
    draft = machine.call("draft", TOKENS)
    assert draft.shape == logits.shape
    assert not np.array_equal(draft, logits)
    # But one that is like it: the distance is a part of the logits' own spread.
    distance = np.sqrt(np.mean((draft.astype(np.float32) - logits) ** 2))
    assert distance < 0.7 * np.std(logits.astype(np.float32))


def test_calls_are_recorded(machine: Machine) -> None:
    machine.call("full", TOKENS[:5], 3)
    machine.call("draft", TOKENS[:1])
    machine.truncate(4)
    machine.call("full", TOKENS[:2])
    assert machine.take_calls() == [
        Call("full", 3, 0),
        Call("full", 2, 3),
        Call("draft", 1, 5),
        Call("full", 2, 4),
    ]
    assert machine.take_calls() == []


def test_a_call_refuses_what_it_cannot_do(machine: Machine) -> None:
    machine.call("full", TOKENS[:2])
    with pytest.raises(SpeqcError, match="the program has no step function @other"):
        machine.call("other", TOKENS)
    with pytest.raises(SpeqcError, match="room for 1,023 tokens behind 2 positions in the"):
        machine.call("full", [0] * (machine.context - 1))
    with pytest.raises(ValueError, match="expected tokens and a positive chunk"):
        machine.call("full", [])
    with pytest.raises(ValueError, match="expected tokens and a positive chunk"):
        machine.call("full", TOKENS, 0)
    with pytest.raises(ValueError, match="cannot truncate a cache of 2 positions to 3"):
        machine.truncate(3)
    assert machine.length == 2


def loads_late(program: ModuleOp) -> ModuleOp:
    """The same program with each load just ahead of its consumer."""
    module = program.clone()
    for function in module.ops:
        if not isinstance(function, FuncOp):
            continue
        for op in list(function.body.block.ops):
            if isinstance(op, LoadWeightOp | LoadConstantOp | LoadCacheOp):
                (use,) = op.results[0].uses
                op.detach()
                Rewriter.insert_op(op, InsertPoint.before(use.operation))
    VerifyPePass().apply(Context(), module)
    return module


def _order(program: ModuleOp) -> list[str]:
    return [op.name for op in program.walk()]


def test_values_do_not_depend_on_when_loads_are_issued(
    artifact: Artifact, weight_file: WeightFile, logits: NDArray
) -> None:
    module = loads_late(artifact.program)
    assert _order(module) != _order(artifact.program)
    found = Machine(module, weight_file).call("full", TOKENS)
    assert found.tobytes() == logits.tobytes()


def swap_kernel(text: str) -> str:
    """The last sum of the full step becomes a difference."""
    full = text.index("func.func @draft")
    place = text.rindex('pe.vector "Add"', 0, full)
    return text[:place] + text[place:].replace('"Add"', '"Sub"', 1)


def swap_weights(text: str) -> str:
    """The full step's first two products of one shape change their weights."""
    loads = [line for line in text.splitlines() if "pe.load_weight" in line]
    shapes = [line.split(": ")[-1].split(" loc")[0] for line in loads]
    first = next(place for place, shape in enumerate(shapes) if shape in shapes[place + 1 :])
    second = shapes.index(shapes[first], first + 1)
    names = [loads[place].split("@")[1].split()[0] for place in (first, second)]
    swapped = text.replace(f"load_weight @{names[0]} ", "load_weight @TEMPORARY ")
    swapped = swapped.replace(f"load_weight @{names[1]} ", f"load_weight @{names[0]} ")
    return swapped.replace("load_weight @TEMPORARY ", f"load_weight @{names[1]} ")


def scale_scores(text: str) -> str:
    """Attention's scores are halved."""
    return text.replace("{score_type = f16", "{score_scale = 5.000000e-01 : f32, score_type = f16")


@pytest.mark.parametrize("change", [swap_kernel, swap_weights, scale_scores])
def test_the_emitted_program_is_what_runs(
    artifact: Artifact,
    weight_file: WeightFile,
    logits: NDArray,
    change: Callable[[str], str],
) -> None:
    text = (artifact.path / "program.mlir").read_text()
    changed = change(text)
    assert changed != text
    found = Machine(parse(changed), weight_file).call("full", TOKENS)
    assert not np.array_equal(found, logits)


def test_views_need_their_mode(artifact: Artifact, weight_file: WeightFile) -> None:
    text = (artifact.path / "program.mlir").read_text()
    with pytest.raises(SpeqcError, match="a full view while the array is in draft mode"):
        Machine(parse(text.replace("pe.mode full", "pe.mode draft")), weight_file)


POSITIONS = """
  %places = pe.positions %tokens : tensor<1x?xi64>
  %numbers = pe.vector "Cast"(%places) {arguments = {to = 10 : i64}}
    : (tensor<1x?xi64>) -> tensor<1x?xf16>
  %axis = pe.immediate dense<2> : tensor<1xi64>
  %out = pe.vector "Unsqueeze"(%numbers, %axis)
    : (tensor<1x?xf16>, tensor<1xi64>) -> tensor<1x?x1xf16>
"""


def test_positions_count_from_the_cache(tmp_path: Path) -> None:
    machine = small(POSITIONS, tmp_path)
    assert machine.call("full", [5, 5, 5]).ravel().tolist() == [0, 1, 2]
    assert machine.call("full", [5, 5]).ravel().tolist() == [3, 4]
    machine.truncate(1)
    assert machine.call("full", [5]).ravel().tolist() == [1]
    assert (machine.vocabulary, machine.context) == (1, 8)


def test_omitted_inputs_and_older_operators(tmp_path: Path) -> None:
    # Clip's lower bound is left out; before version 18, Split tells its parts by its results.
    machine = small(
        POSITIONS.replace("%out", "%column")
        + """
      %two = pe.immediate dense<2.0> : tensor<f16>
      %bounded = pe.vector "Clip"(%column, %two) {arguments = {absent = array<i64: 1>}}
        : (tensor<1x?x1xf16>, tensor<f16>) -> tensor<1x?x1xf16>
      %pair = pe.vector "Concat"(%column, %bounded) {arguments = {axis = 2 : i64}}
        : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x2xf16>
      %first, %second = pe.vector "Split"(%pair) {arguments = {axis = 2 : i64}}
        : (tensor<1x?x2xf16>) -> tensor<1x?x1xf16>, tensor<1x?x1xf16>
      %out = pe.vector "Sub"(%first, %second)
        : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
    """,
        tmp_path,
    )
    assert machine.call("full", [0] * 5).ravel().tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            '%out = pe.vector "Nonsense"(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x1xf16>',
            'pe.vector "Nonsense": the vector unit has no such kernel',
        ),
        (
            "%p = speq.positions %tokens : tensor<1x?xi64>\n"
            '%out = pe.vector "Cast"(%p) : (tensor<1x?xi64>) -> tensor<1x?x1xf16>',
            "speq.positions is no operation of the machine",
        ),
        (
            "%out = pe.gather @table[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x1xf16>",
            "the program declares no weight @table",
        ),
        (
            "%k = pe.load_cache @kv keys : !pe.stream<tensor<1x?x4xf16>>\n"
            '%out = pe.vector "Cast"(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x1xf16>',
            "the program declares no cache @kv",
        ),
        (
            '%c = pe.load_constant "norm" {digest = "sha256:00"} : !pe.stream<tensor<1xf16>>\n'
            '%out = pe.vector "Cast"(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x1xf16>',
            "tensor norm is missing",
        ),
    ],
)
def test_programs_that_no_machine_runs(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(SpeqcError, match=message):
        small(body, tmp_path)


def test_program_without_full_step(tmp_path: Path) -> None:
    save_file({}, tmp_path / "weights.safetensors")
    module = parse("builtin.module attributes {speq.context = 8 : i64} {}")
    with pytest.raises(SpeqcError, match="the program has no step function @full"):
        Machine(module, WeightFile(tmp_path / "weights.safetensors"))


def test_values_end_with_their_last_use(tmp_path: Path) -> None:
    """A step keeps nothing of its run but the result."""
    machine = small(POSITIONS, tmp_path)
    machine.call("full", [1, 2])
    step = machine._steps["full"]
    held = [value for value in step._values if isinstance(value, np.ndarray)]
    assert [value.shape for value in held if value.ndim > 1] == [(1, 2), (1, 2, 1)]


def test_operations_of_the_walk(artifact: Artifact) -> None:
    """Loads stand ahead of their consumers in what the compiler wrote (else a test is vacuous)."""

    def is_early(op: Operation) -> bool:
        (use,) = op.results[0].uses
        return op.next_op is not use.operation

    loads = [op for op in artifact.program.walk() if isinstance(op, LoadWeightOp)]
    assert sum(map(is_early, loads)) > len(loads) / 2


CHOSEN = """
          %one = pe.immediate dense<1> : tensor<i64>
          %is = pe.vector "Equal"(%tokens, %one)
            : (tensor<1x?xi64>, tensor<i64>) -> tensor<1x?xi1>
          %last = pe.immediate dense<[-1]> : tensor<1xi64>
          %chosen = pe.vector "Unsqueeze"(%is, %last)
            : (tensor<1x?xi1>, tensor<1xi64>) -> tensor<1x?x1xi1>
          %numbers = pe.vector "Cast"(%tokens) {arguments = {to = 10 : i64}}
            : (tensor<1x?xi64>) -> tensor<1x?xf16>
          %column = pe.vector "Unsqueeze"(%numbers, %last)
            : (tensor<1x?xf16>, tensor<1xi64>) -> tensor<1x?x1xf16>
          %pair = pe.vector "Concat"(%column, %column) {arguments = {axis = -1 : i64}}
            : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x2xf16>"""


@pytest.mark.parametrize("tokens", [[1, 2, 1, 3], [2, 3], [1], [1, 1]])
def test_rows_without_their_predicate_are_zero(tmp_path: Path, tokens: list[int]) -> None:
    """Also in operations of several results, and where no row is computed."""
    machine = small(
        f"""{CHOSEN}
          %first, %second = pe.vector "Split"(%pair) when %chosen : tensor<1x?x1xi1>
            {{arguments = {{axis = -1 : i64, num_outputs = 2 : i64}}}}
            : (tensor<1x?x2xf16>) -> tensor<1x?x1xf16>, tensor<1x?x1xf16>
          %exp = pe.vector "Exp"(%second) when %chosen : tensor<1x?x1xi1>
            : (tensor<1x?x1xf16>) -> tensor<1x?x1xf16>
          %out = pe.vector "Concat"(%first, %exp) {{arguments = {{axis = -1 : i64}}}}
            : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x2xf16>""",
        tmp_path,
        width=2,
    )
    expected = [[1, np.exp(1)] if token == 1 else [0, 0] for token in tokens]
    logits = machine.call("full", tokens)
    assert np.allclose(logits, expected, atol=2e-3)
    zeros = logits[np.array(tokens) != 1]
    assert not zeros.view(np.uint16).any()


@pytest.mark.parametrize("rows", [[1, 0, 1, 1, 0, 0, 1], [0] * 5, [1] * 5])
def test_a_product_for_some_rows(tmp_path: Path, rows: list[int]) -> None:
    """Rows that are computed have the bits of the product for all rows; the others are +0."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(1, 2, 64)).astype(np.float16)
    weight[:, :, 3:] = 0
    save_file({"w.fp16": weight.view(np.uint16)}, tmp_path / "weights.safetensors")
    machines = []
    for when, attributes in (
        ("", ""),
        ("when %chosen : tensor<1x?x1xi1>", "attributes {speq.experts = [array<i64: 1, 1>]}"),
    ):
        module = parse(f"""
          builtin.module attributes {{onnx.opset = 17 : i64, speq.context = 64 : i64}} {{
            speq.weight @w from "w" : tensor<2x3xf16> {{digest = "sha256:00", kept = "a test"}}
            func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x3xf16> {attributes} {{
              {CHOSEN}
              pe.mode full
              %s = pe.load_weight @w {when} {{tiling = #pe.tiling<64x64, grid 1x1, per_block 1>,
                block_bytes = 0 : i64, last_block_bytes = 8192 : i64}}
                : !pe.stream<!speq.view<2x3, full>>
              %out = pe.gemm %pair, %s {when}
                : (tensor<1x?x2xf16>, !pe.stream<!speq.view<2x3, full>>) -> tensor<1x?x3xf16>
              func.return %out : tensor<1x?x3xf16>
            }}
          }}""")
        machines.append(Machine(module, WeightFile(tmp_path / "weights.safetensors")))
    tokens = [1 if row else 2 + place for place, row in enumerate(rows)]
    plain, ours = (machine.call("full", tokens).view(np.uint16) for machine in machines)
    chosen = np.array(rows, bool)
    assert np.array_equal(ours[chosen], plain[chosen])
    assert plain[~chosen].any() or chosen.all()
    assert not ours[~chosen].any()
    assert machines[1].take_calls() == [Call("full", len(rows), 0, (sum(rows),))]
    assert machines[1].routes == [(row,) for row in rows]
    assert machines[0].take_calls() == [Call("full", len(rows), 0)]
    assert machines[0].routes == []


TABLE = np.arange(6, dtype=np.float16).reshape(6, 1)


def look_up(path: Path, offset: int) -> Machine:
    """A machine that gives row token + `offset` of TABLE."""
    return small(
        f"""
        %offset = pe.immediate dense<{offset}> : tensor<1xi64>
        %i = pe.vector "Add"(%tokens, %offset)
          : (tensor<1x?xi64>, tensor<1xi64>) -> tensor<1x?xi64>
        %out = pe.lookup "table"[%i] {{digest = "sha256:00"}}
          : (tensor<6x1xf16>, tensor<1x?xi64>) -> tensor<1x?x1xf16>
        """,
        path,
    )


def test_look_up_gives_rows_of_a_constant(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(WeightFile, "read", lambda self, name: {"table": TABLE}[name])
    assert look_up(tmp_path, 0).call("full", [5, 0, 2, 2]).ravel().tolist() == [5, 0, 2, 2]
    # As in ONNX, negative indices count from the end.
    assert look_up(tmp_path, -6).call("full", [0, 5]).ravel().tolist() == [0, 5]


@pytest.mark.parametrize(("offset", "first", "last"), [(1, 1, 6), (-7, -7, -2)])
def test_look_up_out_of_range(
    tmp_path: Path, monkeypatch, offset: int, first: int, last: int
) -> None:
    monkeypatch.setattr(WeightFile, "read", lambda self, name: {"table": TABLE}[name])
    message = f"pe.lookup: an index from {first} to {last} is outside a table of 6 rows"
    with pytest.raises(SpeqcError, match=message):
        look_up(tmp_path, offset).call("full", [0, 5])
