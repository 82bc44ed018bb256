import pytest

from speqc.runtime.counted import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens"), (12345, "12,345 tokens")]
)
def test_only_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "token") == text
