import numpy as np
import pytest

from speqc.dialects.speq import SCHEDULES
from speqc.runtime.schedules import Calibration, Constant, Cost, Drafting, Heuristic, Schedule

DRAFT, FULL = 1.0, 4.0


def cost(function: str, rows: int, past: int) -> float:
    """A full pass takes four draft steps, however many rows it has."""
    del rows, past
    return DRAFT if function == "draft" else FULL


def round_of(schedule: Schedule, tokens: list[tuple[float, bool]], room: int) -> tuple[int, int]:
    """Tokens drafted and accepted of a round that would draft tokens of these probabilities.

    Each comes with whether it agrees with the full model.
    """
    limit = schedule.begin(0, room)
    drafted = 0
    for probability, _ in tokens[:limit]:
        drafted += 1
        if not schedule.goes_on(probability):
            break
    agreeing = [agrees for _, agrees in tokens[:drafted]]
    accepted = agreeing.index(False) if False in agreeing else drafted
    schedule.learn(drafted, accepted)
    return drafted, accepted


def rate(schedule: Schedule, tokens: list[tuple[float, bool]], longest: int = 40) -> float:
    """Tokens for each unit of cost over a long text; a round's drafts begin behind its last one."""
    place, emitted, spent = 0, 0, 0.0
    while place + longest < len(tokens):
        drafted, accepted = round_of(schedule, tokens[place : place + longest], longest)
        spent += drafted * DRAFT + FULL
        emitted += accepted + 1
        place += accepted + 1
    return emitted / spent


def text(
    seed: int, kinds: list[tuple[float, float]], count: int = 4000
) -> list[tuple[float, bool]]:
    """Tokens of kinds chosen at random: (probability, how often it agrees) each."""
    random = np.random.default_rng(seed)
    chosen = [kinds[kind] for kind in random.integers(len(kinds), size=count)]
    return [(probability, bool(random.random() < share)) for probability, share in chosen]


def test_constant_stops_at_its_length_its_room_and_under_its_threshold() -> None:
    sure, unsure = (0.5, True), (0.49, True)
    rule = Constant(4, 0.5)
    assert round_of(rule, [sure] * 9, 9) == (4, 4)
    assert round_of(rule, [sure] * 9, 3) == (3, 3)
    # The token that stops it is proposed still.
    assert round_of(rule, [sure, unsure, sure, sure], 9) == (2, 2)
    assert round_of(rule, [(0.5, False)] * 9, 9) == (4, 0)
    assert round_of(rule, [sure] * 9, 9) == (4, 4)


def test_heuristic_grows_by_two_and_shrinks_by_one() -> None:
    rule = Heuristic(3, 0.5)
    right, wrong = [(0.9, True)] * 20, [(0.9, False)] * 20
    lengths = [round_of(rule, tokens, 20)[0] for tokens in (right, right, wrong, wrong, right)]
    assert lengths == [3, 5, 7, 6, 5]
    assert [round_of(rule, wrong, 20)[0] for _ in range(9)] == [7, 6, 5, 4, 3, 2, 1, 1, 1]
    # A round that stops early, or has little room, counts by what it drafted.
    assert round_of(rule, [(0.1, True)], 20) == (1, 1)
    assert round_of(rule, right, 2) == (2, 2)
    assert rule.length() == 5


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.98])
def test_cost_finds_the_best_constant_length(share: float) -> None:
    # One kind of token: nothing to gain but the length that the costs ask for.
    tokens = text(1, [(0.6, share)])
    best = max(rate(Constant(length, 0.0), tokens) for length in range(1, 33))
    assert rate(Cost(32, 0.0, cost), tokens) > 0.97 * best


def test_cost_stops_where_tokens_are_doubtful() -> None:
    tokens = text(2, [(0.95, 0.98), (0.35, 0.3)])
    constant = max(rate(Constant(length, 0.0), tokens) for length in range(1, 33))
    thresholds = max(rate(Constant(length, 0.5), tokens) for length in range(1, 33))
    found = rate(Cost(32, 0.0, cost), tokens)
    assert found > 1.05 * constant
    assert found > 0.97 * thresholds


def test_cost_learns_that_a_draft_is_surer_than_it_should_be() -> None:
    # The probabilities say the reverse of what is so.
    tokens = text(3, [(0.95, 0.2), (0.35, 0.95)])
    assert rate(Cost(32, 0.0, cost), tokens) > 1.2 * rate(Constant(8, 0.5), tokens)


def test_cost_follows_costs() -> None:
    tokens = [(0.9, True)] * 40
    free = Cost(16, 0.0, lambda function, rows, past: float(function == "full"))
    assert round_of(free, tokens, 40) == (16, 16)
    assert round_of(free, tokens, 5) == (5, 5)
    # A draft step as dear as a full one never pays; one token is drafted all the same.
    dear = Cost(16, 0.0, lambda function, rows, past: 1.0)
    assert [round_of(dear, tokens, 40)[0] for _ in range(20)] == [1] * 20
    # So it is where each row to verify costs a pass of its own.
    rows = Cost(16, 0.0, lambda function, rows, past: rows if function == "full" else 0.01)
    assert [round_of(rows, tokens, 40)[0] for _ in range(20)] == [1] * 20


def test_cost_asks_for_the_passes_of_its_round() -> None:
    asked: list[tuple[str, int, int]] = []

    def remember(function: str, rows: int, past: int) -> float:
        asked.append((function, rows, past))
        return cost(function, rows, past)

    rule = Cost(4, 0.0, remember)
    rule.begin(7, 10)
    assert rule.goes_on(0.99)
    # The step for token 2, behind token 1, and a row more to verify, against a plain pass.
    assert set(asked) == {("draft", 1, 8), ("full", 3, 7), ("full", 2, 7), ("full", 1, 7)}
    asked.clear()
    rule.learn(2, 1)
    assert asked == [("draft", 1, 7), ("draft", 1, 8), ("full", 3, 7)]
    assert rule.rate() == 2 / (2 * DRAFT + FULL)


def test_cost_keeps_to_a_threshold_that_is_asked_for() -> None:
    rule = Cost(8, 0.8, cost)
    assert round_of(rule, [(0.79, True), *[(0.9, True)] * 9], 20) == (1, 1)


def test_calibration_counts_what_can_be_known() -> None:
    rule = Cost(8, 0.0, cost)
    rule.begin(0, 8)
    for probability in (0.95, 0.85, 0.75, 0.65):
        rule.goes_on(probability)
    before = [rule.calibration.acceptance(p) for p in (0.95, 0.85)]
    # The second is rejected: of those behind it nothing is known.
    rule.learn(4, 1)
    first, second = (rule.calibration.acceptance(p) for p in (0.95, 0.85))
    assert second < before[1]
    # A range of its own moves a token's estimate more than all ranges together do.
    assert (before[1] - second) / before[1] > (before[0] - first) / before[0]
    assert rule.calibration.mean == pytest.approx((1 + 0.8 * 4) / (2 + 4))


def test_calibration_tends_to_the_truth() -> None:
    calibration = Calibration()
    random = np.random.default_rng(5)
    for probability in random.random(20_000):
        calibration.count(probability, bool(random.random() < probability**2))
    for probability in (0.0, 0.15, 0.55, 0.95, 1.0):
        place = min(int(10 * probability), 9)
        # The mean of p^2 over the range.
        low, high = place / 10, (place + 1) / 10
        expected = (high**3 - low**3) / 3 / 0.1
        assert calibration.acceptance(probability) == pytest.approx(expected, abs=0.03)
    assert calibration.mean == pytest.approx(1 / 3, abs=0.02)


def test_estimates_stay_probabilities() -> None:
    for accepted in (True, False):
        calibration = Calibration()
        for _ in range(1000):
            calibration.count(1.0, accepted)
        estimates = [calibration.acceptance(p) for p in np.linspace(0, 1, 21)]
        assert all(0 <= estimate <= 1 for estimate in [*estimates, calibration.mean])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rule_repeats_itself(name: str) -> None:
    tokens = text(6, [(0.95, 0.9), (0.5, 0.6)], 400)

    def rounds() -> list[tuple[int, int]]:
        rule = Drafting(name, 5, 0.0).start(cost)
        return [round_of(rule, tokens[place : place + 30], 30) for place in range(0, 360, 7)]

    assert rounds() == rounds()
    assert type(Drafting(name, 5, 0.0).start(cost)).__name__.lower() == name
