import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_picture_of_the_format_shows_what_the_codec_does():
    spec = importlib.util.spec_from_file_location("draw_format", ROOT / "tools/draw_format.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.drawing() == (ROOT / "docs/format.svg").read_text("utf-8")
