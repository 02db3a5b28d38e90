"""What chance leaves open: the interval of a share, and the paired test of two evaluations."""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

CONFIDENCE: Final = 0.95
_Z: Final = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Share(NamedTuple):
    """A share of `total` things, and between what values it lies with CONFIDENCE."""

    value: float
    low: float
    high: float
    total: int


def share_of(successes: float, total: int) -> Share:
    """Wilson's interval of a share: had other things of the same kind been drawn.

    A task whose test inputs are solved in part is a fraction of a success. Of 0 to 1 its spread is
    at most that of all or nothing, so the interval is rather too wide than too narrow.
    """
    assert total > 0, "a share of nothing"
    value, z2 = successes / total, _Z**2
    centre = (value + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * sqrt(value * (1 - value) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    # What rounding adds or takes must not leave the share outside, nor the limits beyond 0 and 1.
    low, high = max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))
    return Share(value, low, high, total)


def mean_share(shares: Sequence[float]) -> Share:
    """The mean of shares, one a task, with Wilson's interval over the tasks."""
    return share_of(float(sum(shares)), len(shares))


def sign_test(gained: int, lost: int) -> float:
    """How likely is a balance this uneven, either way, if neither is better: exact, two-sided.

    Of the tasks that differ; each would be gained or lost with probability 1/2. With tasks that
    are solved or not, this is the exact McNemar test.
    """
    differing = gained + lost
    tail = sum(comb(differing, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**differing)
