"""`speqc bench paper`: a small grid, as tables, files and pictures."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from xdsl.dialects.builtin import ModuleOp

from speqc import paper_bench
from speqc.baseline_files import load_baseline
from speqc.cli import main
from speqc.compile import CompileOptions
from speqc.compile_shape import compile_variants
from speqc.decoder_shape import DecoderShape
from speqc.paper_bandwidth import one_lane_bandwidth
from speqc.paper_bench import measure as paper_bench_measure
from speqc.paper_compare import OVER, PUBLISHED, Explanation, Reference, explanations
from speqc.paper_grid import Grid, Step
from speqc.paper_tables import Results, _answer
from speqc.retarget import retarget
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.steady_state import RoundCost, tokens_of_round
from speqc.target_files import load_target

SHAPE = """
layers = 1
hidden = 256
intermediate = 512
heads = 4
kv_heads = 2
head_size = 64
vocabulary = 512
context = 256
tied_embeddings = false
rope_theta = 10000.0
norm_epsilon = 1e-5
source = "this test"
"""

CONTEXTS, LENGTHS, ACCEPTANCES = (64, 256), (1, 3), (0.0, 0.9, 1.0)

GROUPS = ("grid", "best", "baselines", "sensitivity", "comparison", "explanations")

ERRORS = [
    (("--contexts", "0"), "'0' is not a whole number from 1"),
    (("--contexts", "64,"), "'' is not a whole number from 1"),
    (("--contexts", "512"), "a context of 512 is more than its 256"),
    (("--draft-lengths", "x"), "'x' is not a whole number"),
    (("--draft-lengths", "1000"), "'1000' is not a whole number from 1 to 256"),
    (("--acceptances", "1.5"), "'1.5' is not a number from 0 to 1"),
    (("--acceptances", "nan"), "'nan' is not a number from 0 to 1"),
    (("--models", "llama-9"), "unknown shape 'llama-9'"),
    (("--models", ""), "'' is not the name of a shape"),
    (("--target", "none"), "unknown target 'none'"),
    (("--group-size", "0"), "--group-size"),
    (("--output", "no/such/folder"), "the folder no/such does not exist"),
]


def invoke_paper(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", "paper", *map(str, arguments)])


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("shape") / "small.toml"
    file.write_text(SHAPE)
    return file


@pytest.fixture(scope="module")
def measured() -> list[Results]:
    """What the fixture `run` has measured, once it has run."""
    return []


@pytest.fixture(scope="module")
def run(
    shape: Path, measured: list[Results], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """A run over the small shape: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    lists = [
        f"--{name}={','.join(map(str, values))}"
        for name, values in (
            ("contexts", CONTEXTS),
            ("draft-lengths", LENGTHS),
            ("acceptances", ACCEPTANCES),
        )
    ]

    def measure(grid: Grid) -> Results:
        measured.append(paper_bench_measure(grid))
        return measured[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_bench, "measure", measure)
        return folder, invoke_paper("--models", shape, *lists, "-o", folder)


@pytest.fixture
def known(
    run: tuple[Path, Result], measured: list[Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run finds what the first one did, without measuring anew."""
    assert run[1].exit_code == 0
    monkeypatch.setattr(paper_bench, "measure", lambda grid: measured[0])


@pytest.fixture(scope="module")
def document(run: tuple[Path, Result]) -> dict:
    folder, result = run
    assert result.exit_code == 0, result.stderr
    return json.loads((folder / "paper.json").read_text())


def test_the_grid_is_whole(document: dict) -> None:
    keys = [(row["context"], row["draft_length"], row["acceptance"]) for row in document["grid"]]
    assert sorted(keys) == [(c, n, a) for c in CONTEXTS for n in LENGTHS for a in ACCEPTANCES]
    assert len(document["best"]) == len(CONTEXTS) * len(ACCEPTANCES)
    assert len(document["baselines"]) == len(CONTEXTS) * len(paper_bench.ORDER)


def test_another_baseline_stands_behind_those_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Grid] = []

    def measure(grid: Grid) -> Results:
        grids.append(grid)
        raise SpeqcError("enough")

    names = ["zz", "fp16", "aa", "w8a8"]
    monkeypatch.setattr(paper_bench, "shipped_baselines", lambda: names)
    monkeypatch.setattr(
        paper_bench, "load_baseline", lambda name: replace(load_baseline("fp16"), name=name)
    )
    monkeypatch.setattr(paper_bench, "measure", measure)
    result = invoke_paper("--models", "llama-2-7b", "-o", "unused")
    assert "enough" in result.stderr
    assert [baseline.name for baseline in grids[0].baselines] == ["fp16", "w8a8", "aa", "zz"]


def test_the_best_is_the_best(document: dict) -> None:
    for chosen in document["best"]:
        same = [
            row["speedup"]
            for row in document["grid"]
            if (row["context"], row["acceptance"]) == (chosen["context"], chosen["acceptance"])
        ]
        assert chosen["speedup"] == max(same)


def test_drafting_in_vain_is_slower_and_longer_is_worse(document: dict) -> None:
    for context in CONTEXTS:
        found = {
            row["draft_length"]: row["speedup"]
            for row in document["grid"]
            if (row["context"], row["acceptance"]) == (context, 0)
        }
        assert 1 > found[1] > found[3]


def test_csv_has_what_json_has(run: tuple[Path, Result], document: dict) -> None:
    for group in GROUPS:
        with (run[0] / f"{group}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows == [
            {k: "" if v is None else str(v) for k, v in row.items()} for row in document[group]
        ]
        assert rows


def test_the_papers_ratios_stand_beside_ours(run: tuple[Path, Result], document: dict) -> None:
    assert PUBLISHED["SPEQ"] == 2.07
    assert {key: round(PUBLISHED[key], 2) for key in OVER} == {"OliVe": 1.35, "Tender": 1.43}
    found = {row["ratio"]: row for row in document["comparison"]}
    assert found["SPEQ over olive-4"]["published"] == 1.53
    assert found["SPEQ over tender-8"]["published"] == 1.45
    ours = {
        row["baseline"]: row["speedup"] for row in document["baselines"] if row["context"] == 256
    }
    best = next(
        row["speedup"]
        for row in document["best"]
        if (row["context"], row["acceptance"]) == (256, 1.0)
    )
    assert document["reference"] == {
        "model": document["baselines"][0]["model"],
        "context": 256,
        "acceptance": 1.0,
    }
    short = found["SPEQ over FP16, L = 3"]
    cells = [
        row["speedup"]
        for row in document["grid"]
        if (row["draft_length"], row["acceptance"]) == (3, 1.0)
    ]
    assert (short["least"], short["most"], short["published"]) == (min(cells), max(cells), 2.07)
    assert found["SPEQ over olive-4"]["ours"] == pytest.approx(best / ours["olive-4"])
    for row in document["comparison"]:
        assert row["least"] <= row["ours"] <= row["most"]
    for text in (run[1].stdout, (run[0] / "paper.md").read_text()):
        assert "2.07" in text
        assert "not public knowledge" in text


def test_the_machine_matters_as_it_must(document: dict) -> None:
    """More lanes never hurt a draft, and acceptance helps."""
    varied: dict[str, list[tuple[float, float]]] = {}
    for row in document["sensitivity"]:
        varied.setdefault(row["knob"], []).append((row["value"], row["speedup"]))
    assert len(varied) == 4
    for knob in ("4-bit lanes per PE", "acceptance"):
        speedups = [speedup for _, speedup in sorted(varied[knob])]
        assert speedups == sorted(speedups)
    same = [row for row in document["sensitivity"] if row["knob"] == "4-bit lanes per PE"]
    assert next(row["narrow"] for row in same if row["value"] == 4) == next(
        row["speedup"]
        for row in document["baselines"]
        if (row["context"], row["baseline"]) == (256, "olive-4")
    )


def test_pictures_are_pictures(run: tuple[Path, Result]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("speedup", "comparison", "sensitivity"):
        assert (run[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("known")
def test_without_matplotlib(shape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_bench, "can_plot", lambda: False)
    result = invoke_paper(
        "--models", shape, "--contexts", 64, "--draft-lengths", 2, "--acceptances", 0.9,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "pip install 'speqc[plot]'" in result.stderr
    assert not list((tmp_path / "out").glob("*.png"))
    assert (tmp_path / "out" / "paper.json").exists()


@pytest.mark.parametrize(("arguments", "expected"), ERRORS)
def test_bad_options(
    shape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    models = () if "--models" in arguments else ("--models", shape)
    contexts = () if "--contexts" in arguments else ("--contexts", 64)
    result = invoke_paper(*models, *contexts, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_kind_is_not_replaced(shape: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    result = invoke_paper("--models", shape, "--contexts", 64, "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "is no result of 'speqc bench paper'; it is not replaced" in result.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.usefixtures("known")
def test_nothing_is_left_where_writing_fails(
    shape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paper_bench, "write_plots", fail)
    monkeypatch.setattr(paper_bench, "can_plot", lambda: True)
    result = invoke_paper(
        "--models", shape, "--contexts", 64, "--draft-lengths", 2, "--acceptances", 0.9,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert not list(tmp_path.iterdir())


def test_rounds() -> None:
    """A round of 2 with A = 1/2 emits 1 + 1/2 + 1/4 tokens for two drafts and a verification."""
    assert tokens_of_round(2, 0.5) == 1.75
    assert RoundCost(2, draft=1.0, verify=5.0).speedup(4.0, 0.5) == 1.0


def explained(full: tuple[float, str], narrow: tuple[float, str]) -> list[float | None]:
    """Answers for OliVe at 8 bits, where a step of FP16 and one of it take so many ms."""
    steps = [
        Step("m", 64, name, milliseconds, 0, bound, full[0] / milliseconds)
        for name, (milliseconds, bound) in (("fp16", full), ("olive-8", narrow))
    ]
    baselines = (load_baseline("fp16"), load_baseline("olive-8"))
    grid = Grid({}, (64,), (1,), (0.9,), baselines, CompileOptions(load_target("speq-64x64")))
    return [e.answer for e in explanations(grid, steps, {}, Reference("m", 64, 0.9))]


def test_between_two_widths_where_both_are_bound_by_dram() -> None:
    # 2.07 / 1.53 = 1.353: 16 ms over that are 11.826, of 8 ms between both 0.478, 0.478 more.
    share = (16 * 1.53 / 2.07 - 8) / 8
    assert explained((16, "dram"), (8, "dram")) == pytest.approx(
        [100 * share, 8 + 8 * share, 100 * share]
    )


@pytest.mark.parametrize(
    ("full", "narrow"),
    [
        ((16, "array"), (8, "dram")),
        ((16, "dram"), (8, "array")),
        ((16, "array"), (16, "array")),
        ((16, "dram"), (16, "dram")),
        ((16, "dram"), (12, "dram")),  # not as fast as the paper says, so nothing could be left
    ],
)
def test_no_answer_where_a_step_is_not_linear_in_bits(
    full: tuple[float, str], narrow: tuple[float, str]
) -> None:
    assert explained(full, narrow) == [None] * 3


def test_no_answer_is_a_dash() -> None:
    assert _answer(Explanation("OliVe", "what", None, "%")) == "-"
    assert _answer(Explanation("OliVe", "what", 12.34, "%")) == "12.3%"


WIDE = DecoderShape(1, 1024, 2048, 8, 8, 128, vocabulary=512, context=512)


@pytest.fixture(scope="module")
def wide() -> dict[str, ModuleOp]:
    """Programs of a shape that is bound by its weights."""
    names = ("fp16", "olive-4")
    variants = [
        CompileOptions(load_target("speq-64x64"), baseline=load_baseline(name)) for name in names
    ]
    return dict(zip(names, compile_variants(WIDE, variants), strict=True))


def test_with_one_lane_the_bandwidth_gives_the_ratio(wide: dict[str, ModuleOp]) -> None:
    target = load_target("speq-64x64")
    found = one_lane_bandwidth(wide, "olive-4", 256, 1.4, target)
    assert found is not None
    machine = replace(target, draft_lanes=1, dram_bytes_per_second=round(found))
    full, narrow = (
        ProgramTimer(retarget(wide[name], machine)).cost("full", 1, 256).cycles
        for name in ("fp16", "olive-4")
    )
    assert full / narrow == pytest.approx(1.4, rel=2e-3)


@pytest.mark.parametrize("wanted", [0.5, 3.3, 10.0])
def test_no_bandwidth_gives_any_ratio(wide: dict[str, ModuleOp], wanted: float) -> None:
    """FP16 is never faster; near 3 the narrow step is bound by DRAM; its bytes never give 10."""
    target = load_target("speq-64x64")
    assert one_lane_bandwidth(wide, "olive-4", 256, wanted, target) is None
