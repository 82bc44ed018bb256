"""What the SPEQ paper reports beside what this machine gives, and what would explain the gap.

The paper (arXiv 2510.18525) reports speedups over FP16, OliVe and Tender. Nothing here is tuned to
come near them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speqc.baseline_files import Baseline
from speqc.paper_grid import FP16, Cell, Grid, Step

PUBLISHED: Mapping[str, float] = {"SPEQ": 2.07, "OliVe": 2.07 / 1.53, "Tender": 2.07 / 1.45}
"""Over FP16. The paper gives 2.07, and 1.53 and 1.45 over the other two, which implies theirs."""

OVER: Mapping[str, float] = {"OliVe": 1.53, "Tender": 1.45}
"""SPEQ over the others, as the paper gives it."""

TYPICAL_CONTEXT, TYPICAL_ACCEPTANCE = 1024, 0.976
"""The combination that a comparison is made for, or the nearest that is in the grid."""


SHORT_DRAFT = 3
"""A draft length that the first ratio is also given for, if the grid has it: the best is long."""


class Reference(NamedTuple):
    """The combination that ours are quoted for."""

    model: str
    context: int
    acceptance: float


class Ratio(NamedTuple):
    """A ratio of the paper beside ours: at the reference, and over the whole grid."""

    ratio: str
    published: float
    implied: bool
    ours: float
    least: float
    most: float


class Explanation(NamedTuple):
    """What would have to hold on this machine for one of the published ratios; None: no such."""

    scheme: str
    question: str
    answer: float | None
    unit: str


def reference(grid: Grid) -> Reference:
    """The first model, and the context and acceptance nearest to what is typical."""
    return Reference(
        next(iter(grid.models)),
        min(grid.contexts, key=lambda value: abs(value - TYPICAL_CONTEXT)),
        min(grid.acceptances, key=lambda value: abs(value - TYPICAL_ACCEPTANCE)),
    )


def narrow_baselines(grid: Grid, scheme: str) -> list[Baseline]:
    """The baselines that model a scheme of the paper, narrowest first."""
    found = [b for b in grid.baselines if b.name.rpartition("-")[0] == scheme.lower()]
    return sorted(found, key=lambda b: b.weight_bits)


def ratios(
    grid: Grid,
    found: Sequence[Cell],
    chosen: Sequence[Cell],
    steps: Sequence[Step],
    at: Reference,
) -> list[Ratio]:
    """The paper's ratios beside ours; of the cells `found`, `chosen` has the best draft lengths.

    The range over the grid is one over models and contexts, at the reference's acceptance.
    """
    drafted = {(c.model, c.context): c.speedup for c in chosen if c.acceptance == at.acceptance}
    rows = [_ratio("SPEQ over FP16", PUBLISHED["SPEQ"], False, drafted, at)]
    if SHORT_DRAFT in grid.draft_lengths:
        short = {
            (c.model, c.context): c.speedup
            for c in found
            if (c.draft_length, c.acceptance) == (SHORT_DRAFT, at.acceptance)
        }
        name = f"SPEQ over FP16, L = {SHORT_DRAFT}"
        rows.append(_ratio(name, PUBLISHED["SPEQ"], False, short, at))
    for scheme, over in OVER.items():
        for name in (baseline.name for baseline in narrow_baselines(grid, scheme)):
            own = {(s.model, s.context): s.speedup for s in steps if s.baseline == name}
            relative = {key: drafted[key] / own[key] for key in drafted}
            rows.append(_ratio(f"SPEQ over {name}", over, False, relative, at))
            rows.append(_ratio(f"{name} over FP16", PUBLISHED[scheme], True, own, at))
    return rows


def _ratio(
    name: str,
    published: float,
    implied: bool,
    found: Mapping[tuple[str, int], float],
    at: Reference,
) -> Ratio:
    ours = found[at.model, at.context]
    return Ratio(name, published, implied, ours, min(found.values()), max(found.values()))


def explanations(
    grid: Grid, steps: Sequence[Step], one_lane: Mapping[str, float | None], at: Reference
) -> list[Explanation]:
    """For each scheme, what would bring its step on this machine to the paper's implied ratio.

    `one_lane` has the schemes whose step was timed with one lane, and the bandwidth, in bytes per
    second, that brings it there (see `paper_bandwidth`).
    """
    here = {s.baseline: s for s in steps if (s.model, s.context) == at[:2]}
    rows: list[Explanation] = []
    for scheme in OVER:
        for baseline in narrow_baselines(grid, scheme):
            rows += _between(scheme, baseline.weight_bits, here[baseline.name], here[FP16])
        rows += [_one_lane(scheme, found) for name, found in one_lane.items() if name == scheme]
    return rows


def _between(scheme: str, bits: int, narrow: Step, full: Step) -> list[Explanation]:
    """Between two widths of the layers' weights, a step bound by DRAM is linear in their bits.

    Where either step is not bound by DRAM, or the paper's ratio is not between both, no answer.
    """
    wanted = full.milliseconds / PUBLISHED[scheme]
    answers: tuple[float | None, ...] = (None, None, None)
    linear = narrow.bound == full.bound == "dram"
    if linear and narrow.milliseconds <= wanted < full.milliseconds:
        share = (wanted - narrow.milliseconds) / (full.milliseconds - narrow.milliseconds)
        more = wanted / narrow.milliseconds - 1
        answers = 100 * share, bits + (16 - bits) * share, 100 * more
    questions = (
        ("share left at 16 bits", "%"),
        ("bits of a layer weight on average", "bits"),
        ("what else a step would take", "% of it"),
    )
    return [
        Explanation(scheme, f"{bits}-bit weights: {text}", answer, unit)
        for (text, unit), answer in zip(questions, answers, strict=True)
    ]


def _one_lane(scheme: str, bandwidth: float | None) -> Explanation:
    """A narrow step is bound by the array then, and an FP16 step by DRAM."""
    return Explanation(
        scheme,
        "one lane per PE whatever the width: about this bandwidth",
        None if bandwidth is None else bandwidth / 1e9,
        "GB/s",
    )
