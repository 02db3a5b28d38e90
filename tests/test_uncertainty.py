"""Intervals against published values, and the sign test against all its outcomes."""

from itertools import product

import pytest

from evaluation.uncertainty import mean_share, share_of, sign_test


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_the_interval_is_wilsons(successes: int, total: int, low: float, high: float) -> None:
    """As tables of Wilson's score interval have it, without continuity correction."""
    share = share_of(successes, total)
    assert share == pytest.approx((successes / total, low, high, total), abs=5e-5)
    assert 0 <= share.low <= share.value <= share.high <= 1


def test_a_task_solved_in_part_is_a_part_of_a_success() -> None:
    """Of 400 tasks and a share of 0.4 the standard deviation is 0.0245, twice that each way."""
    mean = mean_share([0.5] * 320 + [0.0] * 80)
    assert mean == share_of(160, 400)
    assert (mean.low, mean.high) == pytest.approx((0.4 - 0.048, 0.4 + 0.048), abs=0.003)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (0, 5), (3, 3), (8, 2), (4, 5)])
def test_the_sign_test_counts_all_ways_in_which_tasks_could_have_gone(
    gained: int, lost: int
) -> None:
    """Of those that differ: how many of the equally likely ways are as uneven."""
    ways = [sum(way) for way in product((0, 1), repeat=gained + lost)]
    uneven = [abs(2 * up - gained - lost) >= abs(gained - lost) for up in ways]
    assert sign_test(gained, lost) == pytest.approx(sum(uneven) / len(ways))
    assert sign_test(gained, lost) == sign_test(lost, gained)


def test_the_sign_test_by_hand() -> None:
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(8, 2) == 2 * (1 + 10 + 45) / 1024
    assert 0 < sign_test(600, 400) < 1e-9, "no number is too large for it"
