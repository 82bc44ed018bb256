import pytest

from speqc.dialects.speq import View
from speqc.passes.choose_views import assign_views, matches, parse_views
from speqc.passes.weight_places import group_by_place
from speqc.runtime.errors import SpeqcError


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("head", "head"),
        ("*", "model.layers.3.mlp.down_proj.weight"),
        ("layers.20-29.down", "layers.20.down"),
        ("layers.20-29.down", "layers.29.down"),
        ("layers.9-11.*", "layers.10.q"),
        ("*.layers.3.mlp.*", "model.layers.3.mlp.up_proj.weight"),
        ("linear_?", "linear_7"),
        ("linear_0-12", "linear_12"),
        ("1-2.3-4", "2.3"),
        ("block1-2.w", "block1-2.w"),
    ],
)
def test_patterns_that_match(pattern, name):
    assert matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("head", "heads"),
        ("head", "lm_head"),
        ("layers.20-29.down", "layers.2.down"),
        ("layers.20-29.down", "layers.30.down"),
        ("layers.2-9.down", "layers.29.down"),
        ("linear_?", "linear_12"),
        ("a.b", "axb"),
        ("*-3", "layers"),
    ],
)
def test_patterns_that_do_not_match(pattern, name):
    assert not matches(pattern, name)


def test_text_is_patterns_and_bits():
    assert parse_views("") == []
    assert parse_views(" head=12, layers.20-29.down = 8,x=16,y=4 ") == [
        ("head", View.WIDE12),
        ("layers.20-29.down", View.WIDE8),
        ("x", View.FULL),
        ("y", View.DRAFT),
    ]


@pytest.mark.parametrize("text", ["head", "head=", "=8", "head=10", "head=8=8", "head:8"])
def test_other_texts_are_refused(text):
    with pytest.raises(SpeqcError, match="is no assignment; expected PATTERN=BITS"):
        parse_views(text)


NAMES = {
    "lm": ("lm", "lm.weight", "head"),
    "w1": ("w1", "l.1.d", "layers.1.down"),
    "w2": ("w2", "l.2.d", "layers.2.down"),
}


def test_the_last_pattern_that_matches_counts():
    chosen = assign_views(parse_views("*=8,layers.2.*=12,lm.weight=16"), NAMES)
    assert chosen == {"lm": View.FULL, "w1": View.WIDE8, "w2": View.WIDE12}


def test_a_pattern_that_matches_nothing_names_what_there_is():
    with pytest.raises(
        SpeqcError, match=r"'layers\.3-9\.down' matches no weight; there are head, la"
    ):
        assign_views(parse_views("layers.3-9.down=8"), NAMES)


def test_weights_of_a_place():
    assert group_by_place({"a": "layers.0.up", "b": "layers.0.up", "c": "head"}) == {
        "layers.0.up": ["a", "b"],
        "head": ["c"],
    }
