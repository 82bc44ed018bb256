"""How rounds of speculative decoding go on average, if each drafted token is accepted by chance."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def acceptance_distribution(acceptance: float, drafted: int) -> NDArray[np.float64]:
    """Probabilities [drafted + 1] of accepting 0, 1, .. all of the drafted tokens."""
    reached = np.float64(acceptance) ** np.arange(drafted + 1, dtype=np.float64)
    return np.append(reached[:-1] * (1 - acceptance), reached[-1])


def round_chances(
    new_tokens: int, acceptance: float, draft_length: int
) -> dict[tuple[int, int], float]:
    """How likely a round begins behind so many new tokens, and how many it drafts then.

    The prompt gives the first token. A round behind `emitted` tokens drafts `drafted`, as many as
    may follow, and emits one more than it accepts. Keys are (emitted, drafted); where no round can
    begin there is none.
    """
    begins = np.zeros(new_tokens + 1)
    begins[min(1, new_tokens)] = 1
    chances: dict[tuple[int, int], float] = {}
    for emitted in range(1, new_tokens):
        drafted = min(draft_length, new_tokens - emitted - 1)
        chance = float(begins[emitted])
        if not chance:
            continue
        chances[emitted, drafted] = chance
        after = slice(emitted + 1, emitted + drafted + 2)
        begins[after] += chance * acceptance_distribution(acceptance, drafted)
    return chances


class MeanCounts(NamedTuple):
    """How many rounds a run has on average, and tokens that they draft and accept."""

    rounds: float
    drafted: float
    accepted: float


def mean_counts(chances: Mapping[tuple[int, int], float], acceptance: float) -> MeanCounts:
    """The counts of a run whose rounds begin as `round_chances` says."""
    accepted = sum(
        chance * float(acceptance_distribution(acceptance, drafted) @ np.arange(drafted + 1))
        for (_, drafted), chance in chances.items()
    )
    drafted = sum(chance * drafted for (_, drafted), chance in chances.items())
    return MeanCounts(sum(chances.values()), drafted, accepted)
