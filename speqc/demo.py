"""`speqc demo`: the embedded model, compiled and run."""

import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import click

from speqc.artifact import TOKENIZER, load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.diagnostics import report
from speqc.report import print_report
from speqc.run import Prompt, Session
from speqc.runtime.decode import DecodeOptions
from speqc.runtime.errors import SpeqcError
from speqc.runtime.sampling import SamplingOptions
from speqc.target_files import DEFAULT_TARGET, load_target
from speqc.text import encode, load_tokenizer

MODEL = "kjv"
"""The embedded model's folder among the package's models."""

CHECKED_TOKENS = 48
"""Tokens that are also decoded greedily, to show that speculation changes none of them."""


def demo(text: str, new_tokens: int, sampling: SamplingOptions) -> None:
    """Compile the embedded model, continue `text` by `new_tokens` tokens, and report.

    Greedy decoding makes so small a model go round in circles: better to sample. A short greedy run
    then proves that speculation changes nothing. The text goes to standard output, the rest to
    standard error. Raises SpeqcError where the model is missing, CheckFailed where the proof fails.
    """
    with as_file(files("speqc") / "models" / MODEL) as folder, tempfile.TemporaryDirectory() as out:
        model = folder / "model.onnx"
        if not model.is_file():
            raise SpeqcError(f"{model}: the embedded model is missing: install speqc again")
        if not encode(load_tokenizer(folder / TOKENIZER), text):
            raise SpeqcError("--prompt: the text is empty: give one to continue")
        path = Path(out) / f"{MODEL}.speq"
        summary = compile_model(model, path, CompileOptions(load_target(DEFAULT_TARGET)))
        for line in summary.lines():
            report(line)
        session = Session(load_artifact(path))
        options = DecodeOptions(new_tokens, sampling=sampling)
        tokens = session.tokens(Prompt(text))
        click.echo(text, nl=False)
        result = session.run(tokens, "speculative", options, echo=True)
        print_report(result.fields, "speculative", stderr=True)
        greedy = DecodeOptions(min(new_tokens, CHECKED_TOKENS))
        checked = session.run(tokens, "speculative", greedy, echo=False, keep_logits=True)
        session.check(tokens, greedy, checked.decoded)
