"""`speqc run --check`: a run must equal autoregressive decoding, to the last bit of every logit."""

import numpy as np

from speqc.runtime.counted import counted
from speqc.runtime.decode import Decoded, DecodeOptions
from speqc.runtime.errors import CheckFailed, SpeqcError


def check_options(mode: str, options: DecodeOptions) -> None:
    """Raise SpeqcError where a run is not one that must equal autoregressive decoding."""
    if mode == "draft":
        raise SpeqcError("--check: the draft mode only approximates the model")
    if options.sampling.temperature > 0:
        raise SpeqcError(
            "--check: sampled tokens follow the model's distribution, but are not the same ones; "
            "check with temperature 0"
        )


def compare(decoded: Decoded, plain: Decoded) -> None:
    """Raise CheckFailed naming the first token or logit in which a run differs from a plain one."""
    pairs = zip(decoded.tokens, plain.tokens, decoded.logits, plain.logits, strict=False)
    for place, (token, expected, row, expected_row) in enumerate(pairs):
        differing = np.flatnonzero(_bits(row) != _bits(expected_row))
        if differing.size:
            entry = int(differing[0])
            raise CheckFailed(
                f"new token {place}: {differing.size} logits differ, first that of token id "
                f"{entry}: {row[entry]!r} instead of {expected_row[entry]!r}"
            )
        if token != expected:
            raise CheckFailed(f"new token {place} is {token}, autoregressive decoding's {expected}")
    if len(decoded.tokens) != len(plain.tokens):
        raise CheckFailed(
            f"{counted(len(decoded.tokens), 'new token')}, autoregressive decoding gives "
            f"{len(plain.tokens):,}"
        )


def _bits(row: np.ndarray) -> np.ndarray:
    """A row of logits as integers: NaN equals itself, and the zeros differ."""
    return row.view(f"u{row.dtype.itemsize}")
