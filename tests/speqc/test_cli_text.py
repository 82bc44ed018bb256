import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from speqc.runtime.errors import SpeqcError
from speqc.text import TextStream, encode, encode_chat, load_tokenizer, render_chat

CHATML = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def tokenizer(model) -> Tokenizer:
    return load_tokenizer(model.with_name("tokenizer.json"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_text(tokenizer, data):
    """However the tokens come in, and though most characters take several (byte-level tokens)."""
    text = data.draw(
        st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40)
    )
    tokens = encode(tokenizer, text)
    cut = data.draw(st.integers(0, len(tokens)))
    prompt, rest = tokens[:cut], tokens[cut:]
    before = tokenizer.decode(prompt)
    assume(not before.endswith("\N{REPLACEMENT CHARACTER}"))
    stream = TextStream(tokenizer, prompt)
    pieces = []
    while rest:
        size = data.draw(st.integers(1, 4))
        pieces.append(stream.push(rest[:size]))
        rest = rest[size:]
    pieces.append(stream.flush())
    assert before + "".join(pieces) == tokenizer.decode(tokens)


def test_a_character_is_held_back_until_it_is_complete(tokenizer):
    face = "\N{GRINNING FACE}"
    *first, last = encode(tokenizer, face)
    assert first
    stream = TextStream(tokenizer, [])
    assert [stream.push([token]) for token in first] == [""] * len(first)
    assert stream.push([last]) == face
    assert stream.push(first) == ""
    assert stream.flush().strip("\N{REPLACEMENT CHARACTER}") == ""


def test_chat_template():
    messages = [{"role": "user", "content": "a < b"}]
    text = render_chat(CHATML, {"eos_token": "</s>"}, messages)
    assert text == "<|user|>\na < b</s><|assistant|>"
    assert (
        render_chat("{{ messages | tojson }}", {}, messages)
        == '[{"role": "user", "content": "a < b"}]'
    )


def test_chat_is_encoded_without_further_special_tokens(tokenizer):
    tokens = encode_chat(tokenizer, CHATML, {"eos_token": "."}, "Hello")
    assert tokenizer.decode(tokens) == "<|user|>\nHello.<|assistant|>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_bad_chat_template_is_an_error(template):
    """Sandboxed: it reaches no attribute of Python's own, and changes nothing."""
    with pytest.raises(SpeqcError, match="chat template"):
        render_chat(template, {}, [{"role": "user", "content": "a"}])


def test_a_damaged_tokenizer_is_an_error(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(SpeqcError, match="no such tokenizer file"):
        load_tokenizer(file)
    file.write_text("{}")
    with pytest.raises(SpeqcError, match=r"not a tokenizer\.json"):
        load_tokenizer(file)
