"""`speqc run --compare MODEL.onnx`: the command."""

from pathlib import Path

from speqc.artifact import load_artifact
from speqc.compare_model import compare_model
from speqc.compare_report import comparison_fields, fail_on_mismatch, print_comparison
from speqc.original import import_onnxruntime
from speqc.report import check_json_destination, write_json
from speqc.run import Prompt, Session
from speqc.runtime.decode import check_prompt


def run_compare(
    path: Path, model: Path, prompt: Prompt, *, verbose: bool, json_to: str | None
) -> None:
    """Compare an artifact with the ONNX file it was compiled from, and report.

    Raises:
        SpeqcError: bad artifact, prompt or file, no onnxruntime, or a report that can't be written.
        CheckFailed: a value differs by more than rounding.
    """
    check_json_destination(json_to)
    import_onnxruntime()
    session = Session(load_artifact(path))
    tokens = session.tokens(prompt)
    check_prompt(session.machine, tokens, 0)
    comparison = compare_model(session.artifact, session.machine, model, tokens)
    if json_to is not None:
        write_json(comparison_fields(comparison), json_to)
    if json_to != "-":
        print_comparison(comparison, verbose=verbose)
    fail_on_mismatch(comparison)
