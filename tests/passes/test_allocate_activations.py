import pytest
from pe_text import TO_PE, RunPasses, model
from xdsl.dialects.builtin import IntegerAttr, ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects import pe
from speqc.passes.finish_order import FinishOrder
from speqc.runtime.activations import ROW_BYTES, shares_buffer, sram_place

HEADER = model().split("speq.weight")[0]


def step(run_passes: RunPasses, body: str, out: str = "tensor<1x?x64xf16>") -> FuncOp:
    """An allocated step; %x and the result have 64 FP16 values, 128 bytes, a row."""
    text = f"""{HEADER}
      speq.weight @w from "w" : tensor<64x64xf16> {{digest = "sha256:00", kept = "as a test"}}
      speq.cache @kv {{heads = 1, key_dim = 64, value_dim = 64, element_type = f16}}
      func.func @full(%tokens: tensor<1x?xi64>) -> {out} {{
        %x = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
        {body}
        func.return %out : {out}
      }}
    }}"""
    module = run_passes(text, "allocate-activations")
    (found,) = (op for op in module.ops if isinstance(op, FuncOp))
    return found


def places(function: FuncOp) -> dict[str | None, int | None]:
    """First byte of each named activation, for one row; None for what lives in DRAM."""
    found: dict[str | None, int | None] = {}
    for op in function.body.block.ops:
        if isinstance(op, pe.GatherOp | pe.GemmOp | pe.VectorOp | pe.AttentionOp):
            for value in op.results:
                place = sram_place(value)
                found[value.name_hint] = None if place is None else place[0]
    return found


def vector(
    result: str, *operands: str, kernel: str = "Max", type: str = "tensor<1x?x64xf16>"
) -> str:
    types = ", ".join([type] * len(operands))
    inputs = ", ".join(f"%{name}" for name in operands)
    return f'%{result} = pe.vector "{kernel}"({inputs}) : ({types}) -> {type}\n'


def product(result: str, operand: str) -> str:
    return f"""
        %{result}_load = pe.load_weight @w
          {{tiling = #pe.tiling<64x64, grid 1x1, per_block 1>,
            block_bytes = 0, last_block_bytes = 8192}}
          : !pe.stream<!speq.view<64x64, full>>
        %{result} = pe.gemm %{operand}, %{result}_load
          : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
        """


def peak(function: FuncOp) -> int:
    attribute = function.attributes[ROW_BYTES]
    assert isinstance(attribute, IntegerAttr)
    return attribute.value.data


def test_a_chain_takes_turns(run_passes: RunPasses) -> None:
    body = vector("a", "x") + vector("b", "a") + vector("c", "b") + vector("out", "c")
    found = step(run_passes, body)
    # An operation's operand is in use while its result is written.
    assert places(found) == {"x": 0, "a": 128, "b": 0, "c": 128, "out": None}
    assert peak(found) == 256


def test_what_is_needed_later_keeps_its_place(run_passes: RunPasses) -> None:
    body = vector("a", "x") + vector("b", "a") + vector("c", "b") + vector("out", "c", "x")
    assert places(step(run_passes, body)) == {"x": 0, "a": 128, "b": 256, "c": 128, "out": None}


def test_smaller_values_fill_gaps(run_passes: RunPasses) -> None:
    body = (
        vector("a", "x")
        + '%s = pe.vector "ReduceMax"(%a) : (tensor<1x?x64xf16>) -> tensor<1x?x1xf16>\n'
        + vector("b", "a")
        + '%t = pe.vector "ReduceMax"(%b) : (tensor<1x?x64xf16>) -> tensor<1x?x1xf16>\n'
        + '%out = pe.vector "Max"(%s, %t)'
        + " : (tensor<1x?x1xf16>, tensor<1x?x1xf16>) -> tensor<1x?x1xf16>"
    )
    found = step(run_passes, body, "tensor<1x?x1xf16>")
    # %s takes two bytes of the place that %x leaves; %b no longer fits there.
    assert places(found) == {"x": 0, "a": 128, "s": 0, "b": 256, "t": 2, "out": None}


def test_renaming_shares_the_place(run_passes: RunPasses) -> None:
    body = (
        vector("a", "x")
        + "%sizes = pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>\n"
        + '%heads = pe.vector "Reshape"(%a, %sizes)'
        + " : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>\n"
        + vector("b", "x")
        + '%out = pe.vector "Max"(%heads, %heads)'
        + " : (tensor<1x?x4x16xf16>, tensor<1x?x4x16xf16>) -> tensor<1x?x4x16xf16>"
    )
    found = places(step(run_passes, body, "tensor<1x?x4x16xf16>"))
    assert found == {"x": 0, "a": 128, "heads": 128, "b": 256, "out": None}


def test_sizes_are_no_renaming(run_passes: RunPasses) -> None:
    body = (
        vector("a", "x")
        + '%shape = pe.vector "Shape"(%a) : (tensor<1x?x64xf16>) -> tensor<3xi64>\n'
        + vector("b", "a")
        + '%out = pe.vector "Reshape"(%b, %shape)'
        + " : (tensor<1x?x64xf16>, tensor<3xi64>) -> tensor<1x?x64xf16>"
    )
    # Not the place of %a, but that of %x, which is free; what is returned has none in any shape.
    assert places(step(run_passes, body)) == {"x": 0, "a": 128, "shape": 0, "b": None, "out": None}


def test_results_of_one_operation_stand_side_by_side(run_passes: RunPasses) -> None:
    body = (
        '%l, %r = pe.vector "Split"(%x) {arguments = {axis = 2 : i64}}'
        " : (tensor<1x?x64xf16>) -> tensor<1x?x48xf16>, tensor<1x?x16xf16>\n"
        + vector("a", "x")
        + '%out = pe.vector "Concat"(%l, %r) {arguments = {axis = 2 : i64}}'
        " : (tensor<1x?x48xf16>, tensor<1x?x16xf16>) -> tensor<1x?x64xf16>"
    )
    assert places(step(run_passes, body)) == {"x": 0, "l": 128, "r": 224, "a": 256, "out": None}


def test_other_units_may_still_be_busy(run_passes: RunPasses) -> None:
    """%a is last read by the vector unit, for %v, while the array may already work on %p."""
    body = (
        vector("a", "x") + vector("v", "a") + product("p", "x") + vector("w", "v", "p")
    ) + vector("out", "w")
    found = places(step(run_passes, body))
    assert found["a"] == 128
    assert found["p"] not in (found["a"], found["v"], found["x"])
    # %w starts behind %v on its unit, and behind %p, which it needs: all else is free.
    assert found["w"] == 0


def test_one_unit_frees_in_its_own_order(run_passes: RunPasses) -> None:
    body = product("p", "x") + product("q", "p") + product("out", "q")
    assert places(step(run_passes, body)) == {"x": 0, "p": 128, "q": 0, "out": None}


ATTENTION = """
  %shape = pe.immediate dense<[1, 1, -1, 64]> : tensor<4xi64>
  %k = pe.vector "Reshape"(%x, %shape)
    : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x1x?x64xf16>
  pe.append @kv, %k, %k : (tensor<1x1x?x64xf16>, tensor<1x1x?x64xf16>)
"""


def test_stores_read_until_the_channel_has_served_them(run_passes: RunPasses) -> None:
    """Only what streams behind a store in the DRAM channel is sure to find it done."""
    body = vector("a", "x") + ATTENTION + vector("b", "a") + vector("c", "b")
    held = places(step(run_passes, body + vector("out", "c")))
    assert 0 not in (held["a"], held["b"], held["c"])
    freed = places(step(run_passes, body + product("p", "c") + vector("out", "p")))
    assert freed["p"] == 0


def test_counters_and_constants_have_no_place(run_passes: RunPasses) -> None:
    body = """
      %places = pe.positions %tokens : tensor<1x?xi64>
      %one = pe.immediate dense<1> : tensor<1xi64>
      %out = pe.vector "Add"(%places, %one) : (tensor<1x?xi64>, tensor<1xi64>) -> tensor<1x?xi64>"""
    found = step(run_passes, body, "tensor<1x?xi64>")
    assert peak(found) == 128
    for op in found.body.block.ops:
        if isinstance(op, pe.PositionsOp | pe.ImmediateOp):
            assert sram_place(op.results[0]) is None


@pytest.mark.parametrize("name", ["full", "draft"])
def test_values_in_use_do_not_overlap(run_passes: RunPasses, name: str) -> None:
    """In program order, as a slow machine would run it: a definition of liveness of its own."""
    module = run_passes(model(), *TO_PE)
    function = find(module, name)
    ops = list(function.body.block.ops)
    live: dict[SSAValue, tuple[int, int]] = {}
    for place, op in enumerate(ops):
        for value in op.results:
            span = sram_place(value)
            if span is None:
                continue
            aliases = {value, op.operands[0]} if shares_buffer(op) else {value}
            for other, (start, end) in live.items():
                if other not in aliases:
                    assert span[1] <= start or end <= span[0]
            live[value] = span
        later = {value for following in ops[place + 1 :] for value in following.operands}
        live = {value: span for value, span in live.items() if value in later}


def find(module: ModuleOp, name: str) -> FuncOp:
    (found,) = (op for op in module.ops if isinstance(op, FuncOp) and op.sym_name.data == name)
    return found


def test_finish_order(run_passes: RunPasses) -> None:
    body = vector("a", "x") + product("p", "x") + vector("b", "x") + vector("out", "p", "b")
    function = step(run_passes, body)
    order = FinishOrder(function)
    by_name: dict[str | None, Operation] = {
        op.results[0].name_hint: op for op in function.body.block.ops if op.results
    }
    before = {
        name: {
            other
            for other, entry in by_name.items()
            if order.set_of(entry) and order.set_of(entry) & order.before(by_name[name])
        }
        for name in ("a", "p", "b", "out")
    }
    assert before == {
        "a": {"x"},
        # The array waits for %x alone, the vector unit for its own operations and for %x.
        "p": {"x"},
        "b": {"x", "a"},
        "out": {"x", "a", "b", "p"},
    }


def test_row_bytes_are_what_the_last_place_needs(run_passes: RunPasses) -> None:
    module = run_passes(model(), *TO_PE)
    for name in ("full", "draft"):
        function = find(module, name)
        values = [value for op in function.body.block.ops for value in op.results]
        ends = [place[1] for value in values if (place := sram_place(value)) is not None]
        assert peak(function) == max(ends)


def test_a_gather_writes_where_nothing_was_before(run_passes: RunPasses) -> None:
    again = "%again = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>\n"
    body = vector("a", "x", "x") + vector("b", "a", "a") + again + vector("out", "b", "again")
    found = places(step(run_passes, body))
    assert found["again"] not in (found["x"], found["a"], found["b"])
