"""What a user is told of a calibration: on what text, how, and what layers gained by it."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from speqc.runtime.counted import counted


def calibration_lines(facts: Mapping[str, Any] | None) -> list[str]:
    """Lines on the facts that a manifest has of a calibration; none where there was none."""
    if facts is None:
        return []
    lines = [
        f"calibrated on {facts['source']}: {counted(facts['tokens'], 'token')} in "
        f"{counted(facts['texts'], 'text')}, {facts['digest'][:19]}; {facts['method']}"
    ]
    pairs = [
        (ratio["before"], ratio["after"])
        for ratio in facts["output_snr_db"].values()
        if ratio["before"] is not None and ratio["after"] is not None
    ]
    if pairs:
        before, after = (median(side) for side in zip(*pairs, strict=True))
        gains = [late - early for early, late in pairs]
        lines.append(
            f"layer outputs over the draft's error: median {before:.1f} dB with nearest codes, "
            f"{after:.1f} dB calibrated; gains {min(gains):.1f} to {max(gains):.1f} dB"
        )
    return lines
