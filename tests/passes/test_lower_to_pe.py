from dataclasses import replace

import pytest
from pe_text import RunPasses, model
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation
from xdsl.parser import Parser

from speqc.dialects import pe, speq
from speqc.passes.lower_to_pe import LowerToPePass
from speqc.runtime import costs
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import dense_array
from speqc.runtime.target import Target

TARGET = Target()


def function(module: ModuleOp, name: str) -> list[Operation]:
    (found,) = (op for op in module.ops if isinstance(op, FuncOp) and op.sym_name.data == name)
    return list(found.body.block.ops)


def of_kind(ops: list[Operation], kind: type[Operation]) -> list:
    return [op for op in ops if isinstance(op, kind)]


def module_with(body: str, inputs: str = "%x: tensor<1x?x4xf32>") -> str:
    """A module with one step function."""
    return model().split("speq.weight")[0] + f"func.func @full({inputs}) {{ {body} }} }}"


def test_nothing_of_other_levels_is_left(run_passes: RunPasses) -> None:
    module = run_passes(model(), "form-draft-verify", "lower-to-pe")
    for name in ("full", "draft"):
        *body, last = function(module, name)
        assert {op.name.split(".")[0] for op in body} == {"pe"}
        assert last.name == "func.return"


def test_products_become_a_load_a_mode_and_a_gemm(run_passes: RunPasses) -> None:
    module = run_passes(model(), "form-draft-verify", "lower-to-pe")
    for name, views in (("full", ["full"] * 3), ("draft", ["draft", "full", "draft"])):
        ops = function(module, name)
        gemms = of_kind(ops, pe.GemmOp)
        assert [gemm.weight.type.content.view.value for gemm in gemms] == views
        for gemm, view in zip(gemms, views, strict=True):
            mode, load = gemm.prev_op, gemm.prev_op.prev_op
            assert isinstance(mode, pe.ModeOp) and mode.mode.data.value == view
            assert isinstance(load, pe.LoadWeightOp) and gemm.weight is load.stream


@pytest.mark.parametrize(
    "target", [TARGET, replace(TARGET, array_rows=32, draft_lanes=2, weight_sram_banks=64)]
)
def test_weights_are_cut_as_costs_says(run_passes: RunPasses, target: Target) -> None:
    module = run_passes(model(target), "form-draft-verify", "lower-to-pe")
    # (K, N), and for each view its bits a weight, and the weights that share a scale it reads.
    facts = {
        "head": ((64, 272), {"draft": (4, 64), "full": (16, 64)}),
        "up": ((64, 512), {"draft": (4, 128), "full": (16, None)}),
        "down": ((512, 64), {"full": (16, None)}),
    }
    loads = [op for name in ("full", "draft") for op in function(module, name)]
    for load in of_kind(loads, pe.LoadWeightOp):
        shape, views = facts[load.weight.string_value()]
        bits, group_size = views[load.stream.type.content.view.value]
        tiles = costs.tile_weight(*shape, target, weight_bits=bits, group_size=group_size)
        cost = costs.gemm(*shape, 1, target, weight_bits=bits, group_size=group_size)
        assert load.tiling == pe.TilingAttr(
            (tiles.depth, tiles.columns), tiles.grid, tiles.per_block
        )
        assert load.block_bytes.value.data == cost.block_bytes
        assert load.last_block_bytes.value.data == cost.last_block_bytes
        assert load.blocks == cost.blocks


def test_locations_and_names_stay(run_passes: RunPasses) -> None:
    text = model().replace("-> tensor<1x?x512xf16>\n", '-> tensor<1x?x512xf16> loc("/mlp/up")\n')
    ops = function(run_passes(text, "lower-to-pe"), "full")
    gemm = of_kind(ops, pe.GemmOp)[0]
    assert {str(op.location) for op in (gemm, gemm.prev_op, gemm.prev_op.prev_op)} == {
        'loc("/mlp/up")'
    }
    assert gemm.result.name_hint == "h"
    assert gemm.weight.name_hint == "up"


def unit(run_passes: RunPasses, target: Target, step: str, context: int = 128) -> str:
    text = model(target).replace("speq.context = 128", f"speq.context = {context}")
    module = run_passes(text, "form-draft-verify", "lower-to-pe")
    (attention,) = of_kind(function(module, step), pe.AttentionOp)
    return attention.unit.data.value


def test_attention_goes_where_it_takes_less_time(run_passes: RunPasses) -> None:
    """4 query heads on 2 cache heads, 16 channels, half the context in the cache.

    A draft has one row. At context 1024, 513 positions: the vector unit takes 4 * 513 * 16 / 64 =
    513 cycles for the scores, as many for the values; the array 2 * 9 tiles of 64 cycles = 1152 for
    each. Eight lanes take 4104. The full step verifies 8 drafted tokens, with 521 positions: 4 * 9
    * 521 * 16 / 64 = 4689 cycles on the vector unit, 586 with 512 lanes, on the array as before.
    """
    slow, fast = replace(TARGET, vector_lanes=8), replace(TARGET, vector_lanes=512)
    assert unit(run_passes, TARGET, "draft", 1024) == "vector"
    assert unit(run_passes, slow, "draft", 1024) == "array"
    assert unit(run_passes, TARGET, "full", 1024) == "array"
    assert unit(run_passes, fast, "full", 1024) == "vector"


def test_where_nothing_is_drafted_a_step_has_one_row(run_passes: RunPasses) -> None:
    """Then the vector unit takes 1026 cycles, the array 2304, as counted above."""
    text = model().replace("speq.context = 128", "speq.context = 1024")
    for book in ('codebook = "sets", group_size = 64', 'codebook = "paper", group_size = 128'):
        assert f"{book} : i64" in text
        text = text.replace(f"{book} : i64", 'kept = "a baseline"')
    module = run_passes(text, "form-draft-verify", "lower-to-pe")
    (attention,) = of_kind(function(module, "full"), pe.AttentionOp)
    assert attention.unit.data.value == "vector"


def test_a_draft_pays_for_switching_to_attention_and_back(run_passes: RunPasses) -> None:
    # The array gains 2 * (4104 - 1152) = 5904 cycles less twice the shift-in of 64: 5776.
    slow = replace(TARGET, vector_lanes=8)
    gain = 5776
    for cycles, where in ((gain // 2, "array"), (gain // 2 + 1, "vector")):
        target = replace(slow, mode_switch_cycles=cycles)
        assert unit(run_passes, target, "draft", 1024) == where
        assert unit(run_passes, target, "full", 1024) == "array"


@pytest.mark.parametrize("name", ["array", "vector"])
def test_attention_unit_may_be_told(run_passes: RunPasses, name: str) -> None:
    module = run_passes(model())
    LowerToPePass(attention_unit=name).apply(Context(), module)  # type: ignore[arg-type]
    module.verify()
    ops = function(module, "full")
    (attention,) = of_kind(ops, pe.AttentionOp)
    assert attention.unit.data.value == name
    assert isinstance(attention.prev_op, pe.ModeOp if name == "array" else pe.LoadCacheOp)


def test_caches_stream_in_their_own_shape(run_passes: RunPasses) -> None:
    text = model().replace("value_dim = 16", "value_dim = 24")
    ops = function(run_passes(text, "lower-to-pe"), "full")
    types = {load.half.data.value: str(load.stream.type) for load in of_kind(ops, pe.LoadCacheOp)}
    assert types == {
        "keys": "!pe.stream<tensor<2x?x16xf16>>",
        "values": "!pe.stream<tensor<2x?x24xf16>>",
    }


def test_omitted_inputs_are_named_by_place(run_passes: RunPasses) -> None:
    text = module_with("""
      %none = onnx.NoValue
      %high = onnx.Constant dense<6.0> : tensor<f32>
      %y = onnx.Clip %x, %none, %high : (tensor<1x?x4xf32>, none, tensor<f32>) -> tensor<1x?x4xf32>
      func.return""")
    ops = function(run_passes(text, "lower-to-pe"), "full")
    (clip,) = of_kind(ops, pe.VectorOp)
    assert [value.name_hint for value in clip.inputs] == ["x", "high"]
    assert "absent = array<i64: 1>" in str(clip)


def test_infinite_constants_survive_as_text(run_passes: RunPasses, context: Context) -> None:
    text = module_with("""
      %low = onnx.Constant dense<"0x000080FF"> : tensor<1xf32>
      %y = onnx.Max %x, %low : (tensor<1x?x4xf32>, tensor<1xf32>) -> tensor<1x?x4xf32>
      func.return""")
    lowered = run_passes(text, "lower-to-pe")
    for module in (lowered, Parser(context, str(lowered)).parse_module()):
        (low,) = of_kind(function(module, "full"), pe.ImmediateOp)
        assert dense_array(low.value).tolist() == [float("-inf")]


def test_infinite_attributes_are_refused(run_passes: RunPasses) -> None:
    text = module_with(
        """
      %y = onnx.ConstantOfShape %shape {value = dense<"0x000080FF"> : tensor<1xf32>}
        : (tensor<1xi64>) -> tensor<?xf32>
      func.return""",
        "%shape: tensor<1xi64>",
    )
    with pytest.raises(SpeqcError, match=r"onnx\.ConstantOfShape: attribute value holds an inf"):
        run_passes(text, "lower-to-pe")


def test_operation_without_lowering(run_passes: RunPasses) -> None:
    with pytest.raises(SpeqcError, match=r"lower-to-pe: func\.call has no lowering"):
        run_passes(
            module_with("func.call @full(%x) : (tensor<1x?x4xf32>) -> () func.return"),
            "lower-to-pe",
        )


def test_tile_that_fits_no_bank(run_passes: RunPasses) -> None:
    target = replace(TARGET, weight_sram_bytes=8 * 4096)
    with pytest.raises(
        SpeqcError, match="a weight bank of 4096 bytes cannot hold a tile of 64 x 64"
    ):
        run_passes(model(target), "lower-to-pe")


def test_declarations_stay(run_passes: RunPasses) -> None:
    module = run_passes(model(), "form-draft-verify", "lower-to-pe")
    kinds = [type(op) for op in module.ops if not isinstance(op, FuncOp)]
    assert kinds == [speq.WeightOp] * 3 + [speq.CacheOp] + [speq.DecodeOp] * 3
