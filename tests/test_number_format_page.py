import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs/number-format.md"


def test_the_worked_example_prints_what_the_page_says(tmp_path):
    section = PAGE.read_text("utf-8").split("## A worked example")[1]
    found = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", section, re.DOTALL)
    if found is None:
        pytest.fail("the page has no example with its output")
    done = subprocess.run(
        [sys.executable, "-P", "-c", found[1]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout == found[2]
