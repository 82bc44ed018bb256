from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PICTURE = Path(__file__).resolve().parents[1] / "docs/format.svg"


def test_the_picture_of_the_format_shows_what_the_codec_does(tool: Callable[[str], ModuleType]):
    assert tool("draw_format").drawing() == PICTURE.read_text("utf-8")
