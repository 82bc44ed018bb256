import base64
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import chromium
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import decoder

from speqc.compile import CompileOptions, compile_model, lower
from speqc.html_ir import NUMBER, differences
from speqc.html_report import pack
from speqc.model_folder import read_model_folder
from speqc.target_files import load_target

RUN = {
    "mode": "speculative",
    "prompt_tokens": 40,
    "new_tokens": 9,
    "rounds": [
        {"drafted": 4, "accepted": 2, "early_exit": False},
        {"drafted": 2, "accepted": 2, "early_exit": True},
        {"drafted": 1, "accepted": 1, "early_exit": False},
    ],
}
PARTS = ("overview", "passes", "timeline", "roofline", "operations", "acceptance", "weights")

EXECUTABLE = chromium.find_chromium()
needs_browser = pytest.mark.skipif(
    EXECUTABLE is None, reason="no Chromium here (on Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def dump(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The IR of the embedded model after each pass."""
    folder = tmp_path_factory.mktemp("ir")
    options = CompileOptions(load_target("speq-64x64"), dump_ir=folder)
    lower(model, options, read_model_folder(model, None), "pe")
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.json"
    path.write_text(json.dumps(RUN))
    return path


@pytest.fixture(scope="module")
def page(kjv: Path, dump: Path, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the embedded model, with all that can be in it."""
    from click.testing import CliRunner

    from speqc.cli import main

    path = tmp_path_factory.mktemp("page") / "kjv.html"
    given = map(str, ("report", kjv, "--run", recorded, "--ir", dump, "-o", path))
    result = CliRunner().invoke(main, list(given))
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    return path


def data(page: str, part: str) -> dict:
    found = re.search(rf'id="data-{part}">([^<]*)<', page)
    assert found is not None, part
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(text.encode()) < 10_000_000
    assert set(re.findall(r"https?://[^\s'\"<]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\ssrc=|@import|url\(|\bfetch\(|XMLHttpRequest", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"data:,"}
    assert text.count("</script>") == text.count("<script")


def test_the_page_has_what_was_asked(page: Path, dump: Path) -> None:
    text = page.read_text("utf-8")
    summary = data(text, "summary")
    assert [step["past"] for step in summary["steps"]] == [40, 40, 0]
    assert summary["run"]["acceptance_per_position"] == [1, 1, 0, 0]
    names = [entry["name"] for entry in summary["passes"]]
    assert names == [entry["pass"] for entry in json.loads((dump / "timings.json").read_text())]
    for entry in summary["passes"]:
        file = dump / f"{entry['number']:02d}-{entry['name']}.mlir"
        assert file.exists() == entry["changed"]
        if entry["changed"]:
            assert data(text, f"ir-{entry['number']}")["text"] == file.read_text("utf-8")
    weights = data(text, "weights")
    assert all(weight["exact"] for weight in weights["weights"])
    shapes = [weight["shape"] for weight in weights["weights"]]
    # In groups of 64 along K; the columns are stored in panels of 64.
    assert sum(weights["book"]["groups"]) == sum(-(-k // 64) * -(-n // 64) * 64 for k, n in shapes)


def test_steps_of_the_page_add_up(page: Path) -> None:
    text = page.read_text("utf-8")
    for place, step in enumerate(data(text, "summary")["steps"]):
        part = data(text, f"step-{place}")
        for unit, columns in part["slices"].items():
            assert sum(columns["cycles"]) == step["busy"][unit]
            assert len({len(column) for column in columns.values()}) == 1
            ends = zip(columns["start"], columns["cycles"], strict=True)
            assert max(start + cycles for start, cycles in ends) <= step["cycles"]
        dram = part["slices"]["dram"]
        assert dram["start"][-1] + dram["cycles"][-1] == step["cycles"]
        assert sum(part["ops"]["dram_bytes"]) == step["bytes"]


def test_the_same_artifact_gives_the_same_page(invoke, page: Path, kjv, dump, recorded, tmp_path):
    again = tmp_path / "again.html"
    assert invoke("report", kjv, "--run", recorded, "--ir", dump, "-o", again).exit_code == 0
    assert again.read_bytes() == page.read_bytes()


def test_names_are_escaped(invoke, kjv: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "<img src=x onerror=alert(1)>&.speq"
    Path(name).symlink_to(kjv)
    assert invoke("report", name, "-o", "out.html").exit_code == 0
    text = Path("out.html").read_text("utf-8")
    assert "<img" not in text
    assert "<h1>&lt;img src=x onerror=alert(1)&gt;&amp;.speq</h1>" in text


def test_without_a_dump_there_is_the_program(invoke, kjv: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("report", kjv)
    assert result.exit_code == 0
    assert "note: without --ir DIR" in result.stderr
    text = Path("kjv.html").read_text("utf-8")
    assert data(text, "ir-0")["text"] == (kjv / "program.mlir").read_text("utf-8")
    assert data(text, "summary")["run"] is None


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--prompt-length", "1020"), "give a shorter --prompt-length"),
        (("--ir", "."), "timings.json"),
        (("--ir", "broken"), "not what --dump-ir writes"),
        (("--ir", "foreign"), "is not this artifact's program"),
        (("--run", "broken/timings.json"), "not a report of 'speqc run --json'"),
        (("-o", "no/such/page.html"), "--output"),
        (("--ir", "missing"), "there is no such file or folder"),
    ],
)
def test_bad_reports_are_one_line(
    invoke, kjv, dump, tmp_path, monkeypatch, arguments, fragment
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/timings.json").write_text('[{"pass": 1}]')
    shutil.copytree(dump, "foreign")
    last = sorted(Path("foreign").glob("*.mlir"))[-1]
    last.write_text(last.read_text("utf-8") + "\n", "utf-8")
    result = invoke("report", kjv, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and fragment in line


LINES = st.lists(st.sampled_from(["a", "b %x_1", "b %x_2", "c", "%y = d"]), max_size=12)


@given(LINES, LINES)
def test_differences_lead_from_one_text_to_the_other(before: list[str], after: list[str]) -> None:
    made, place = [], 0
    for i1, i2, j1, j2 in differences("\n".join(before), "\n".join(after)):
        made += [*before[place:i1], *after[j1:j2]]
        place = i2
    made += before[place:]
    assert [NUMBER.sub(r"\1", line) for line in made] == [NUMBER.sub(r"\1", line) for line in after]


def test_new_numbers_of_values_are_no_difference() -> None:
    assert differences("%a_1 = f %b_22\n", "%a_7 = f %b\n") == []
    assert differences("%a_1 = f @w_1\n", "%a_1 = f @w_2\n") == [(0, 1, 0, 1)]


@given(st.recursive(st.integers() | st.text(), st.lists))
def test_packed_data_need_no_escape(value: object) -> None:
    packed = pack(value)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == value
    assert pack(value) == packed


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    assert EXECUTABLE is not None
    with chromium.browser(EXECUTABLE, tmp_path_factory.mktemp("profile")) as running:
        running.size(1200, 900)
        yield running


def show(browser: chromium.Page, part: str) -> None:
    browser.evaluate(f"document.getElementById('tab-{part}').click()")
    browser.wait(f"document.getElementById('{part}').dataset.ready === 'true'")


def shown(browser: chromium.Page) -> list[str]:
    query = (
        "[...document.querySelectorAll('[role=tabpanel]')].filter(p => !p.hidden).map(p => p.id)"
    )
    return browser.evaluate(query)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_part_shows_without_a_problem(browser, page: Path, scheme: str) -> None:
    browser.colours(scheme)
    browser.open(page)
    browser.wait("document.getElementById('overview').dataset.ready === 'true'")
    for part in PARTS:
        show(browser, part)
        assert shown(browser) == [part]
        headings = f"document.querySelectorAll('#{part} h2, #{part} h3').length"
        assert browser.evaluate(headings) >= 2
        assert browser.evaluate(f"document.getElementById('{part}').innerText.length") > 100
    assert (
        browser.evaluate("document.querySelectorAll('[role=tab][aria-selected=true]').length") == 1
    )
    assert browser.problems == []


COLOURS = """(() => {
  const canvas = document.querySelectorAll('canvas')[%d];
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const pixels = copy.getImageData(0, 0, width, height).data;
  const found = new Set();
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3]) found.add(pixels.slice(i, i + 3).join());
  }
  return [...found];
})()"""


def colours(browser: chromium.Page, canvas: int) -> set[str]:
    return set(browser.evaluate(COLOURS % canvas))


def rgb(browser: chromium.Page, name: str) -> str:
    text = browser.evaluate(f"colour('{name}')")
    return ",".join(str(int(text[place : place + 2], 16)) for place in (1, 3, 5))


@needs_browser
def test_the_timeline_is_drawn_and_zooms(browser, page: Path) -> None:
    browser.colours("light")
    browser.open(page, "#timeline")
    browser.wait("document.getElementById('timeline').dataset.ready === 'true'")
    assert browser.evaluate("document.querySelectorAll('canvas').length") == 3
    units = {name: rgb(browser, name) for name in ("dram", "array", "draft", "vector")}
    # Draft products are drawn in the draft step, and in no other.
    assert {units["dram"], units["draft"]} <= colours(browser, 0)
    assert {units["dram"], units["array"]} <= colours(browser, 1)
    assert units["draft"] not in colours(browser, 1)
    view = "(({ from, to }) => [from, to])(timelines.get('draft'))"
    before = browser.evaluate(view)
    browser.evaluate("document.querySelector('[aria-label=\"Zoom in\"]').click()")
    after = browser.evaluate(view)
    assert before[0] < after[0] < after[1] < before[1]
    browser.evaluate("document.querySelector('[aria-label=\"Show the whole step\"]').click()")
    assert browser.evaluate(view) == before
    assert browser.problems == []


@needs_browser
def test_differences_can_be_read(browser, page: Path, dump: Path) -> None:
    browser.open(page, "#passes")
    browser.wait("document.getElementById('passes').dataset.ready === 'true'")
    number = next(dump.glob("*-raise-rms-norm.mlir")).name[:2]
    browser.evaluate(f"document.querySelector('[data-number=\"{int(number)}\"]').click()")
    browser.wait("document.querySelector('#passes h3').textContent.includes('raise-rms-norm')")
    added = "[...document.querySelectorAll('.row.add')].map(row => row.textContent)"
    assert all("speq.rms_norm" in line for line in browser.evaluate(added))
    assert browser.evaluate("document.querySelectorAll('.row.remove').length") > 10
    rows = "document.querySelectorAll('.code .row').length"
    before = browser.evaluate(rows)
    browser.evaluate("document.querySelector('.lines button').click()")
    assert browser.evaluate(rows) > before
    search = "document.querySelector('#passes input')"
    browser.evaluate(
        f"{search}.value = 'speq.rms_norm'; {search}.dispatchEvent(new Event('input'))"
    )
    lines = browser.evaluate("[...document.querySelectorAll('.row code')].map(r => r.textContent)")
    text = next(dump.glob("*-raise-rms-norm.mlir")).read_text("utf-8")
    assert lines == [line for line in text.splitlines() if "speq.rms_norm" in line]
    assert browser.problems == []


@needs_browser
def test_operations_sort_and_lead_to_the_timeline(browser, page: Path) -> None:
    browser.open(page, "#operations")
    browser.wait("document.getElementById('operations').dataset.ready === 'true'")
    rows = "[...document.querySelectorAll('#operation-table tbody tr')]"
    browser.evaluate("document.querySelectorAll('#operation-table th button')[13].click()")
    sizes = browser.evaluate(
        f"{rows}.map(r => Number(r.lastChild.textContent.replaceAll(',', '')))"
    )
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0
    browser.evaluate("document.querySelector('#operation-table .link').click()")
    browser.wait("timelines.size === 3 && timelines.get('draft').from > 0")
    assert shown(browser) == ["timeline"]
    assert browser.problems == []


@needs_browser
def test_names_of_nodes_are_never_read_as_html(browser, invoke: Callable, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=document.title='evil'>"
    model = decoder()
    for place, node in enumerate(model.graph.node):
        node.name = f"{evil}{place}"
    onnx.save(model, tmp_path / "model.onnx")
    out, ir = tmp_path / "m.speq", tmp_path / "ir"
    options = CompileOptions(load_target("speq-64x64"), context=64, dump_ir=ir)
    compile_model(tmp_path / "model.onnx", out, options)
    html = tmp_path / "m.html"
    assert invoke("report", out, "--ir", ir, "-o", html).exit_code == 0
    browser.open(html)
    for part in PARTS:
        show(browser, part)
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert "evil" in browser.evaluate("document.getElementById('operations').textContent")
    assert browser.evaluate("document.title") == "m.speq \u00b7 speqc report"
    assert browser.problems == []
