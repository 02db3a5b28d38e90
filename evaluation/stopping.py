"""Voting that stops when it is decided: rules over the votes spent so far on one test input.

Each of a test input's N variants is spent on one vote for an answer, or on none where the canvas
shows no grid. Full voting (`evaluation.voting`) ranks the answers by votes, ties by confidence.
`ExactRule` stops when nothing that remains can change the first places; `SequentialRule` stops at
a stated probability of error, as an election audit does, by ALPHA (Stark 2022, arXiv 2201.02707).
The paper's x_j, S_{j-1}, N, μ_j, η_j, d and η_0 keep their names below.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from math import log
from typing import Protocol

import numpy as np
import numpy.typing as npt

MAX_PLACES = 2
_NOBODY, _UNSEEN = -1, -2
"""Not the number of any answer: of a variant without a vote, and of an answer not seen so far."""
_D, _ETA_0 = 30, 0.7
"""The estimate η_j starts at η_0, with the weight of d votes. They affect speed, never validity."""


class RunningVote:
    """Votes on one test input so far; answers are numbered as they first appear."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.counts: Counter[Hashable] = Counter()
        self.seen = 0
        self._number: dict[Hashable, int] = {}
        self._leading: list[Hashable] = []
        self.votes = np.full(total, _NOBODY)
        """[N] number of the answer that each variant voted for, in the order of spending."""
        self.leaders = np.full((total, MAX_PLACES + 1), _NOBODY)
        """[N, 3] the answers with most votes before each variant, best first, then _NOBODY."""
        self.leader_counts = np.zeros((total, MAX_PLACES + 1), dtype=np.int64)
        """[N, 3] their votes before that variant."""

    @property
    def remaining(self) -> int:
        """Variants not spent so far."""
        return self.total - self.seen

    def add(self, answers: Sequence[Hashable | None]) -> None:
        """Spend one variant for each answer, in the order given; None casts no vote."""
        assert len(answers) <= self.remaining, f"{len(answers)} votes where {self.remaining} remain"
        for answer in answers:
            for place, leader in enumerate(self._leading):
                self.leaders[self.seen, place] = self._number[leader]
                self.leader_counts[self.seen, place] = self.counts[leader]
            if answer is not None:
                self.votes[self.seen] = self._number.setdefault(answer, len(self._number))
                self.counts[answer] += 1
                # Only this answer can have risen, so that those below the leaders stay there.
                candidates = dict.fromkeys([*self._leading, answer])
                by_votes = sorted(candidates, key=self.counts.__getitem__, reverse=True)
                self._leading = by_votes[: MAX_PLACES + 1]
            self.seen += 1

    def ranked(self) -> list[tuple[int, int]]:
        """Number and votes of each answer, most votes first."""
        return [(self._number[answer], count) for answer, count in self.counts.most_common()]


class StoppingRule(Protocol):
    """Says when the votes that remain need not be taken."""

    def decided(self, vote: RunningVote) -> bool:
        """Whether voting may stop here; always true once all variants are spent."""
        ...


class ExactRule:
    """Decided when no outcome of the remaining votes changes who stands at the first places.

    A change of any kind needs some answer to draw level with one that stands above it, at a first
    place: level suffices, as confidence breaks ties. It must gain at least the gap between the two,
    so that none is possible if every such gap exceeds the remaining votes; and where a gap does
    not, giving all of them to the lower of the two makes the change. So attacks by one rival
    suffice, and of these the one on the next place, whose gap is least. Answers not seen so far are
    rivals with no vote: an empty place is decided only when nothing remains.
    """

    def __init__(self, places: int = MAX_PLACES) -> None:
        self.places = places

    def decided(self, vote: RunningVote) -> bool:
        """Whether each of the first places leads the next by more than the remaining votes."""
        counts = [count for _, count in vote.counts.most_common(self.places + 1)]
        counts += [0] * (self.places + 1 - len(counts))
        gaps = -np.diff(counts)
        return vote.remaining == 0 or bool((gaps > vote.remaining).all())


class SequentialRule:
    """Decided when the set of the first places is known but for `error_probability`.

    Guarantee: for variants spent in uniformly random order, the probability that voting stops at
    another set than full voting ends with is at most `error_probability` for each test input,
    however many answers there are and however often the rule is asked. The order within the set
    is not covered.

    With `min_share`, a second answer is waited for only if it can have that share of all N votes:
    voting also stops when the first place is known and every other answer is known to end below.
    Where one answer has nearly all votes, a second place that the noise decides would else take
    all variants.

    For each rival l outside the present set W the rule tests "l ends among the first places". For
    one place this means that no answer gets more votes than l; for two, that none does but one
    exempt answer e. While that is so, a bet before each vote on any answer w other than l and e
    against l has no expected gain, so that the capital M(l, e) exceeds 1/α with probability at most
    α (Ville). l is ruled out when M(l, e) has been there for *every* e. If W is wrong, an answer
    that belongs to the true set was ruled out, against its true e: a union bound over those
    `places` answers is all that is needed, and with `min_share` over two more: the true first
    taken for beaten, the true second for small. Choosing w beforehand (the answer leading at the
    time) is what spares one over all the answers that might seem ahead.

    All rivals are tested, as M depends on the order of votes and the one with most votes need not
    be the hardest; those not seen so far share one test. An empty place is decided only at the
    end, unless by `min_share`: that no other answer exists could not be claimed before (1 - α) N
    variants anyway.
    """

    def __init__(
        self, error_probability: float, places: int = MAX_PLACES, min_share: float = 0.0
    ) -> None:
        assert 0 < error_probability < 1, f"{error_probability=} is not between 0 and 1"
        assert 1 <= places <= MAX_PLACES, f"{places=} is not between 1 and {MAX_PLACES}"
        assert min_share == 0 or places == MAX_PLACES, "a share is asked of the second place"
        self.places = places
        self.min_share = min_share
        num_claims = places + (2 if min_share else 0)
        self._required = log(num_claims / error_probability)

    def decided(self, vote: RunningVote) -> bool:
        """Whether the first places are known, or the first one and that no other matters."""
        if vote.remaining == 0 or self._are_known(vote, self.places):
            return True
        return self.min_share > 0 and self._are_known(vote, 1) and self._others_are_small(vote)

    def _are_known(self, vote: RunningVote, places: int) -> bool:
        """Whether every rival outside the first places is certainly or very probably beaten."""
        ranked = [*vote.ranked(), (_UNSEEN, 0)]
        first, rivals = ranked[:places], ranked[places:]
        if not rivals or first[-1][1] == rivals[0][1]:
            return False  # An empty place, or a tie for the last: the set is not defined.
        least = first[-1][1]
        within_reach = [rival for rival, count in rivals if least - count <= vote.remaining]
        # The leader first: without it the bets gain least, and most tests end here.
        exempt = [_NOBODY]
        if places > 1:
            exempt = [first[0][0], *np.unique(vote.leaders[: vote.seen]).tolist()]
        return all(
            _log_capital(vote, rival, e) >= self._required for rival in within_reach for e in exempt
        )

    def _others_are_small(self, vote: RunningVote) -> bool:
        """Whether all answers but the first certainly or very probably end below `min_share`."""
        others = vote.ranked()[1:]
        if others and others[0][1] >= self.min_share * vote.total:
            return False
        capital = _log_capital_against_share(
            vote, np.array([*(number for number, _ in others), _UNSEEN]), self.min_share
        )
        return bool((capital >= self._required).all())


def _log_capital(vote: RunningVote, rival: int, exempt: int) -> float:
    """Largest log M(rival, exempt) so far, betting on the leader before each vote."""
    n, total = vote.seen, vote.total
    rows, votes, leaders = np.arange(n), vote.votes[:n], vote.leaders[:n]
    eligible = (leaders != rival) & (leaders != exempt) & (leaders != _NOBODY)
    column = eligible.argmax(axis=1)
    for_rival = votes == rival
    a = vote.leader_counts[rows, column]
    b = np.cumsum(for_rival) - for_rival
    x = 0.5 + 0.5 * (votes == leaders[rows, column]) - 0.5 * for_rival
    # Mean of what remains if the leader and the rival end level: 1/2 over all N variants.
    mu = (total / 2 - (rows + a - b) / 2) / (total - rows)
    # Stark shrinks the mean of all x_j. The leader's share of the votes for the two is as
    # predictable, and bets right where most votes are for neither (x_j = 1/2).
    eta = (_D * _ETA_0 + a) / (_D + a + b)
    bets = eligible.any(axis=1) & (mu > 0) & (mu < eta)
    mu, eta = mu[bets], eta[bets]
    gains = 1 + (x[bets] - mu) * (eta - mu) / (mu * (1 - mu))
    return float(np.cumsum(np.log(gains)).max(initial=0.0))


def _log_capital_against_share(
    vote: RunningVote, answers: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.float64]:
    """Largest log capital so far [K] of bets that each answer [K] ends below `share` of all N.

    Here x_j is 1 for a vote that is not for the answer; infinite where all else is impossible.
    """
    n, total = vote.seen, vote.total
    rows = np.arange(n)
    for_answer = vote.votes[:n] == answers[:, None]
    others = rows - (np.cumsum(for_answer, axis=1) - for_answer)
    # Mean of what remains if the answer ends with exactly that share.
    mu = ((1 - share) * total - others) / (total - rows)
    eta = (_D * (1 - share / 4) + others) / (_D + rows)
    bets = (mu > 0) & (mu < eta)
    safe = np.where(bets, mu, 0.5)  # Where there is no bet, its gain is not used.
    gains = np.where(for_answer, (1 - eta) / (1 - safe), eta / safe)
    capital = np.cumsum(np.where(bets, np.log(gains), 0.0), axis=1)
    capital[mu < 0] = np.inf
    largest: npt.NDArray[np.float64] = capital.max(axis=1, initial=0.0)
    return largest


def simulate(rule: StoppingRule, answers: Sequence[Hashable | None], round_size: int) -> int:
    """Variants spent if the answers are taken in rounds until the rule says decided."""
    vote = RunningVote(len(answers))
    while not rule.decided(vote):
        vote.add(answers[vote.seen : vote.seen + round_size])
    return vote.seen
