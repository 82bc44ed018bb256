import re
from dataclasses import replace

import pytest
from pe_text import TO_PE, RunPasses, model

from speqc.retarget import retarget
from speqc.runtime.errors import SpeqcError
from speqc.runtime.target import Target

TARGET = replace(Target(), vector_lanes=512)
"""With so many lanes the attention of the model is for the vector unit."""

COPY = 'copy = "nvfp4", group_size = 16'


@pytest.fixture
def program(run_passes: RunPasses) -> str:
    """A legal program."""
    return str(run_passes(model(TARGET), *TO_PE))


def rejected(run_passes: RunPasses, text: str) -> str:
    with pytest.raises(SpeqcError) as caught:
        run_passes(text, "verify-pe")
    return str(caught.value)


def line_of(text: str, pattern: str) -> str:
    """The first line with a pattern, its end included."""
    (found,) = re.findall(rf"^.*{pattern}.*\n", text, re.MULTILINE)[:1]
    return found


def without(text: str, pattern: str) -> str:
    return text.replace(line_of(text, pattern), "", 1)


def moved_behind(text: str, pattern: str, anchor: str) -> str:
    """The first line with `pattern`, behind the first with `anchor`."""
    moved, stays = line_of(text, pattern), line_of(text, anchor)
    assert text.index(moved) < text.index(stays)
    return text.replace(moved, "", 1).replace(stays, stays + moved, 1)


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


def test_legal_program(run_passes: RunPasses, program: str) -> None:
    assert str(run_passes(program, "verify-pe")) == program


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # Names and shapes.
        (
            "pe.load_weight @up",
            "pe.load_weight @gone",
            "@full, pe.load_weight: no weight @gone is declared",
        ),
        ("pe.gather @head", "pe.gather @gone", "@full, pe.gather: no weight @gone is declared"),
        (
            "pe.gather @head",
            "pe.gather @down",
            "@full, pe.gather: gives 64 values a token, columns of the weight have 512",
        ),
        (
            "pe.load_cache @kv keys",
            "pe.load_cache @gone keys",
            "@full, pe.load_cache: no cache @gone is declared",
        ),
        (
            "speq.cache @kv {heads = 2 : i64, key_dim = 16",
            "speq.cache @kv {heads = 2 : i64, key_dim = 8",
            "@full, pe.load_cache: streams !pe.stream<tensor<2x?x16xf16>>, "
            "the cache holds !pe.stream<tensor<2x?x8xf16>>",
        ),
        (
            "pe.append @kv",
            "pe.append @gone",
            "@full, pe.append: no cache @gone is declared",
        ),
        (
            '@up from "up" : tensor<64x512xf16>',
            '@up from "up" : tensor<64x576xf16>',
            "@full, pe.load_weight: views a (64, 512) weight, declared as (64, 576)",
        ),
        # Weights and their blocks.
        (
            "per_block 5>",
            "per_block 4>",
            "tiling #pe.tiling<64x64, grid 1x5, per_block 4> does not fit the target, "
            "not #pe.tiling<64x64, grid 1x5, per_block 5>",
        ),
        (
            "last_block_bytes = 41600",
            "last_block_bytes = 41598",
            "blocks of 0 and 41598 bytes, the weight has 0 and 41600",
        ),
        # The array's mode.
        (
            "pe.mode full",
            "pe.mode draft",
            "pe.gemm: reads a full view while the array's mode is draft",
        ),
        # Kernels.
        (
            'pe.vector "Add"',
            'pe.vector "Nonsense"',
            '@full, pe.vector: the vector unit has no kernel "Nonsense"',
        ),
        # Caches.
        (
            "pe.load_cache @kv keys",
            "pe.load_cache @kv values",
            "@full, pe.attention: its cached keys must be streamed from @kv",
        ),
        # Decode programs.
        (
            "speq.decode @draft_only",
            "speq.decode @other",
            "the module has no speq.decode @draft_only",
        ),
        (
            "speq.call @draft(%token)",
            "speq.call @gone(%token)",
            "@speculative: speq.call: callee must be @draft, got @gone",
        ),
        (
            "speq.decode @draft_only",
            "speq.decode @draft_only attributes {draft_length = 3 : i64}",
            "@draft_only: speq.decode: draft_length must be absent, got 3 : i64",
        ),
        ("{draft_length = 8 : i64, ", "{", "@speculative has no draft_length"),
        (
            "speq.accept %drafted, %draft_logits, %full_logits",
            "speq.accept %drafted, %full_logits, %full_logits",
            "@speculative: its operations do not feed each other as they must",
        ),
        (", exit_threshold = 3.000000e-01 : f64", "", "@speculative has no exit_threshold"),
        (
            "speq.call @full(%tokens) :",
            "speq.call @draft(%tokens) :",
            "@speculative: speq.call: callee must be @full, got @draft",
        ),
        (
            "speq.truncate %accepted",
            "speq.truncate %drafted",
            "@speculative: its operations do not feed each other as they must",
        ),
        (
            "speq.call @full(%last_1)",
            "speq.call @draft(%last_1)",
            "@autoregressive: speq.call: callee must be @full, got @draft",
        ),
        (
            "speq.call @full(%prompt_1)",
            "speq.call @draft(%prompt_1)",
            "@autoregressive: speq.call: callee must be @full, got @draft",
        ),
        (
            "speq.decode @draft_only",
            "speq.decode @mine {\n^bb0(%p: tensor<1x?xi64>):\n}\nspeq.decode @draft_only",
            "speq.decode @mine is none of speculative, autoregressive, draft_only",
        ),
        # Step functions.
        ("func.func @draft(", "func.func @other(", "the module has no function @draft"),
        # Places of activations.
        (
            "sram_row_offset = 0 : i64}",
            "sram_row_offset = -2 : i64}",
            "@full, pe.gather: has no sram_row_offset of 0 or more",
        ),
        (
            "@head[%tokens] {sram_row_offset = 0 : i64}",
            "@head[%tokens]",
            "@full, pe.gather: has no sram_row_offset of 0 or more",
        ),
        (
            "%logits = pe.gemm %r, %head",
            "%logits = pe.gemm %r, %head {sram_row_offset = 0 : i64}",
            "@full, pe.gemm: gives a result of the step and has an sram_row_offset",
        ),
        # Attributes of the module.
        ("speq.context = 128 : i64, ", "", "the module has no positive speq.context attribute"),
        ("clock_hz = ", "clock = ", "#pe.target: unknown key 'clock'"),
    ],
)
def test_one_thing_wrong(
    run_passes: RunPasses, program: str, old: str, new: str, message: str
) -> None:
    assert message in rejected(run_passes, replaced(program, old, new))


def changed_number(text: str, line: str, name: str, add: int) -> str:
    """`name = N` becomes N + `add` in the first line with `line`."""
    old = line_of(text, line)
    new = re.sub(rf"(?<={name} = )\d+", lambda found: str(int(found[0]) + add), old)
    return replaced(text, old, new)


def test_activations_in_use_do_not_overlap(run_passes: RunPasses, program: str) -> None:
    # %x, at the beginning and 128 bytes long, is needed until the end.
    place = r"%h = .*sram_row_offset = (\d+)"
    (offset,) = re.findall(place, program)[:1]
    text = changed_number(program, "%h = ", "sram_row_offset", 127 - int(offset))
    assert (
        "@full, pe.gemm: bytes 127 to 1151 of its row overlap those of pe.gather at 0 to 128, "
        "still needed"
    ) in rejected(run_passes, text)


def test_renamed_values_stay_in_place(run_passes: RunPasses, program: str) -> None:
    message = rejected(run_passes, changed_number(program, "%heads = ", "sram_row_offset", 2))
    assert "@full, pe.vector: its sram_row_offset is not that of the operand it renames" in message


def test_row_bytes_are_those_of_the_places(run_passes: RunPasses, program: str) -> None:
    (peak,) = re.findall(r"func @full.*pe.sram_row_bytes = (\d+)", program)
    message = rejected(run_passes, changed_number(program, "func @full", "sram_row_bytes", 2))
    expected = f"its activations need pe.sram_row_bytes = {peak}, got {int(peak) + 2}"
    assert message == f"verify-pe: @full: {expected}"


def test_decode_programs_are_whole(run_passes: RunPasses, program: str) -> None:
    truncate = line_of(program, r"speq\.truncate")
    message = rejected(run_passes, program.replace(truncate, "", 1))
    assert message == "verify-pe: @speculative: expected speq.truncate, got speq.emit"
    message = rejected(run_passes, program.replace(truncate, truncate + truncate, 1))
    assert message == "verify-pe: @speculative: expected speq.emit, got speq.truncate"
    last = program[: program.rindex("speq.yield")].rstrip()
    message = rejected(run_passes, last[: last.rindex("speq.emit")] + program[len(last) :])
    assert message == "verify-pe: @draft_only: expected speq.emit, got speq.yield"


def test_kept_weight_has_no_draft(run_passes: RunPasses, program: str) -> None:
    message = rejected(run_passes, program.replace("<512x64, full>", "<512x64, draft>"))
    assert "@full, pe.load_weight: weight @down is not split: it has no draft view" in message


def test_a_copy_serves_drafts_and_no_wider_view(run_passes: RunPasses) -> None:
    text = replaced(model(TARGET), 'codebook = "paper", group_size = 128', COPY)
    copied = str(run_passes(text, *TO_PE))
    assert str(run_passes(copied, "verify-pe")) == copied
    assert "!speq.view<64x512, draft>" in copied
    message = rejected(run_passes, copied.replace("<64x512, draft>", "<64x512, wide8>"))
    assert "@draft, pe.load_weight: weight @up is not split: it has no wide8 view" in message
    # Other groups are another number of bytes.
    message = rejected(run_passes, replaced(copied, COPY, 'copy = "int4", group_size = 64'))
    assert "@draft, pe.load_weight: blocks of" in message


def test_view_in_the_draft_needs_draft_mode(run_passes: RunPasses, program: str) -> None:
    full, draft = program.split("func.func @draft")
    message = rejected(
        run_passes, full + "func.func @draft" + replaced(draft, "pe.mode draft", "pe.mode full")
    )
    assert "@draft, pe.gemm: reads a draft view while the array's mode is full" in message


def test_mode_at_the_start_is_unknown(run_passes: RunPasses, program: str) -> None:
    message = rejected(run_passes, without(program, "pe.mode full"))
    assert "@full, pe.gemm: reads a full view while the array's mode is None" in message


def test_attention_on_the_array_needs_full_mode(run_passes: RunPasses, program: str) -> None:
    message = rejected(run_passes, replaced(program, "on vector", "on array"))
    assert "@full, pe.attention: runs on the array in mode None, needs mode full" in message


def test_streams_are_consumed_in_the_order_of_their_loads(
    run_passes: RunPasses, program: str
) -> None:
    message = rejected(run_passes, moved_behind(program, "%up = ", "%down = "))
    assert "@full, pe.gemm: consumes a stream out of the order of the loads" in message


def test_streams_are_consumed_once(run_passes: RunPasses, program: str) -> None:
    add = line_of(program, 'pe.vector "Add"')
    twice = add.replace("%r = ", "%again = ").replace("(%x, %d)", "(%x, %norm)")
    twice = twice.replace("tensor<1x?x64xf16>)", "!pe.stream<tensor<64xf16>>)", 1)
    message = rejected(run_passes, program.replace(add, twice + add, 1))
    assert "@full, pe.vector: consumes a stream out of the order of the loads" in message


def test_streams_are_consumed(run_passes: RunPasses, program: str) -> None:
    load = line_of(program, "%norm = ")
    extra = load.replace("%norm = ", "%unused = ")
    last = line_of(program, "func.return")
    message = rejected(run_passes, program.replace(last, extra + last, 1))
    assert "@full, pe.load_constant: its stream is never consumed" in message


def test_cache_is_read_before_it_is_appended_to(run_passes: RunPasses, program: str) -> None:
    append, attention = line_of(program, r"pe\.append"), line_of(program, r"pe\.attention")
    early = program.replace(append, "", 1).replace(attention, append + attention, 1)
    message = rejected(run_passes, early)
    assert "@full, pe.attention: cache @kv is already appended to" in message


def test_cache_is_appended_to_once(run_passes: RunPasses, program: str) -> None:
    append = line_of(program, r"pe\.append")
    twice = rejected(run_passes, program.replace(append, append + append, 1))
    assert "@full, pe.append: cache @kv is appended to twice" in twice
    never = rejected(run_passes, program.replace(append, "", 1))
    assert never == "verify-pe: @full: cache @kv is never appended to"


def test_rows_are_those_of_the_cache(run_passes: RunPasses, program: str) -> None:
    append = line_of(program, r"pe\.append")
    whole = append.replace("%key, %key", "%key, %query").replace(
        ", tensor<1x2x?x16xf16>)", ", tensor<1x4x?x16xf16>)"
    )
    assert whole != append
    message = rejected(run_passes, program.replace(append, whole, 1))
    assert (
        "@full, pe.append: takes tensor<1x4x?x16xf16>, rows of the cache are tensor<1x2x?x16xf16>"
    ) in message


def test_operation_of_another_level(run_passes: RunPasses, program: str) -> None:
    add = line_of(program, 'pe.vector "Add"')
    foreign = add.replace('pe.vector "Add"(%x, %d)', "onnx.Add %x, %d")
    foreign = re.sub(r"\{.*\}", "", foreign)
    message = rejected(run_passes, program.replace(add, foreign, 1))
    assert "@full, onnx.Add: is no operation of the machine" in message


def test_module_without_target(run_passes: RunPasses) -> None:
    message = rejected(run_passes, "builtin.module attributes {speq.context = 8 : i64} {}")
    assert message == "the module has no pe.target attribute: no target to map to"


def test_step_functions_have_one_type(run_passes: RunPasses, program: str) -> None:
    full, draft = program.split("func.func @draft")
    step, programs = draft.split("func.return", 1)
    last = line_of(step, "%logits = pe.gemm")
    step = replaced(step, last, last.replace("1x?x272xf16", "1x?x272xf32"))
    step = replaced(step, "-> tensor<1x?x272xf16> attr", "-> tensor<1x?x272xf32> attr")
    programs = replaced(programs, "f16", "f32")
    message = rejected(run_passes, f"{full}func.func @draft{step}func.return{programs}")
    assert "@draft has type (tensor<1x?xi64>) -> tensor<1x?x272xf32>" in message


def test_a_program_is_checked_for_its_new_target(run_passes: RunPasses, program: str) -> None:
    assert str(retarget(run_passes(program), TARGET)) == program
    with pytest.raises(SpeqcError, match=r"expected speq\.truncate, got speq\.emit"):
        retarget(run_passes(without(program, r"speq\.truncate")), TARGET)
