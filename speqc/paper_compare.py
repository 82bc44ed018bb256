"""What the SPEQ paper reports beside what this machine gives, and what would explain the gap.

The paper (arXiv 2510.18525) reports speedups over FP16, OliVe and Tender. Nothing here is tuned to
come near them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speqc.baseline_files import Baseline
from speqc.paper_grid import FP16, LANES, Cell, Grid, Step, Variation

PUBLISHED: Mapping[str, float] = {"SPEQ": 2.07, "OliVe": 2.07 / 1.53, "Tender": 2.07 / 1.45}
"""Over FP16. The paper gives 2.07, and 1.53 and 1.45 over the other two, which implies theirs."""

OVER: Mapping[str, float] = {"OliVe": 1.53, "Tender": 1.45}
"""SPEQ over the others, as the paper gives it."""

TYPICAL_CONTEXT, TYPICAL_ACCEPTANCE = 1024, 0.976
"""The combination that a comparison is made for, or the nearest that is in the grid."""


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
    """What would have to hold on this machine for one of the published ratios."""

    scheme: str
    question: str
    answer: float
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


def ratios(grid: Grid, chosen: Sequence[Cell], steps: Sequence[Step], at: Reference) -> list[Ratio]:
    """The paper's ratios beside ours; `chosen` has the best draft lengths.

    The range over the grid is one over models and contexts, at the reference's acceptance.
    """
    drafted = {(c.model, c.context): c.speedup for c in chosen if c.acceptance == at.acceptance}
    rows = [_ratio("SPEQ over FP16", PUBLISHED["SPEQ"], False, drafted, at)]
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
    grid: Grid, steps: Sequence[Step], varied: Sequence[Variation], at: Reference
) -> list[Explanation]:
    """For each scheme, what would bring its step on this machine to the paper's implied ratio."""
    here = {s.baseline: s.milliseconds for s in steps if (s.model, s.context) == at[:2]}
    one_lane = [v for v in varied if v.knob == LANES and v.value == 1]
    rows: list[Explanation] = []
    for scheme in OVER:
        wanted = here[FP16] / PUBLISHED[scheme]
        for baseline in narrow_baselines(grid, scheme):
            rows += _between(scheme, baseline.weight_bits, here[baseline.name], here[FP16], wanted)
        rows += [_one_lane(scheme, entry, grid) for entry in one_lane]
    return rows


def _between(
    scheme: str, bits: int, narrow: float, full: float, wanted: float
) -> list[Explanation]:
    """Between two widths of the layers' weights, a step bound by DRAM is linear in their bits."""
    share = (wanted - narrow) / (full - narrow)
    answers = (
        ("share left at 16 bits", 100 * share, "%"),
        ("bits of a layer weight on average", bits + (16 - bits) * share, "bits"),
        ("what else a step would take", 100 * (wanted / narrow - 1), "% of it"),
    )
    return [
        Explanation(scheme, f"{bits}-bit weights: {text}", answer, unit)
        for text, answer, unit in answers
    ]


def _one_lane(scheme: str, entry: Variation, grid: Grid) -> Explanation:
    """A narrow step is bound by the array then, and an FP16 step by DRAM."""
    bandwidth = grid.target.dram_bytes_per_second * entry.narrow / PUBLISHED[scheme]
    return Explanation(
        scheme, "one lane per PE whatever the width: about this bandwidth", bandwidth / 1e9, "GB/s"
    )
