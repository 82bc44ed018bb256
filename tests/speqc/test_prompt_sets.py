from itertools import combinations
from pathlib import Path

import pytest

from speqc.prompt_sets import CALIBRATION, SETS, read_prompts
from speqc.runtime.errors import SpeqcError


def test_shipped_sets() -> None:
    found = {name: read_prompts(name) for name in (*SETS, CALIBRATION)}
    for name, prompts in found.items():
        assert len(prompts) >= 12
        assert {line.set for line in prompts} == {name}
    assert len(read_prompts("all")) == sum(len(found[name]) for name in SETS) >= 48
    assert len(found[CALIBRATION]) >= 24


def test_no_prompt_is_in_two_places() -> None:
    texts = [" ".join(line.text.lower().split()) for line in read_prompts("all")]
    calibration = [" ".join(line.text.lower().split()) for line in read_prompts(CALIBRATION)]
    assert len(set(texts + calibration)) == len(texts) + len(calibration)
    # Nor does one begin with another, which a model would continue alike.
    for one, other in combinations(texts + calibration, 2):
        assert not one.startswith(other) and not other.startswith(one)


def test_fields_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('\N{BOM}{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c", "set": "d"}\r\n', "utf-8")
    first, second = read_prompts(str(path))
    assert (first.text, first.set, first.chat) == ("a\u2028b", "mine", False)
    assert (second.text, second.set, second.where) == ("c", "d", f"{path}, line 3")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpeqcError, match="not a text in UTF-8"):
        read_prompts(str(path))
