"""Voting stops early only where full voting would agree: always, or but for a stated error."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations_with_replacement, permutations
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.stopping import ExactRule, RunningVote, SequentialRule, simulate

Answers = Sequence[Hashable | None]


def voted(answers: Answers, total: int) -> RunningVote:
    vote = RunningVote(total)
    vote.add(answers)
    return vote


def standings(counts: Counter[Hashable], places: int) -> set[tuple[Hashable, ...]]:
    """Every first `places` that full voting may rank so: ties may go either way."""
    return {
        order
        for order in permutations(counts, min(places, len(counts)))
        if all(
            counts[answer] >= counts[below]
            for place, answer in enumerate(order)
            for below in counts.keys() - set(order[: place + 1])
        )
    }


def completions(answers: Answers, remaining: int) -> Iterator[Counter[Hashable]]:
    """The final count of everything that the remaining votes may be."""
    choices = [*dict.fromkeys(answers), None, *(f"new {i}" for i in range(min(remaining, 3)))]
    for rest in combinations_with_replacement(dict.fromkeys(choices), remaining):
        yield Counter(a for a in (*answers, *rest) if a is not None)


def nothing_can_change(answers: Answers, total: int, places: int) -> bool:
    outcomes: set[tuple[Hashable, ...]] = set()
    for counts in completions(answers, total - len(answers)):
        outcomes |= standings(counts, places)
        if len(outcomes) > 1:
            return False
    return True


@st.composite
def streams(draw: st.DrawFn, most: int) -> list[Hashable | None]:
    """Answers of all variants in order; lopsided, so that some votes are decided early."""
    pool = st.sampled_from(["a"] * draw(st.integers(1, 8)) + ["b", "b", "b", "c", "d", None])
    return draw(st.lists(pool, min_size=1, max_size=most))


@given(answers=streams(most=8), remaining=st.integers(0, 8), places=st.integers(1, 2))
@settings(max_examples=300)
def test_the_exact_rule_stops_when_and_only_when_no_completion_changes_a_place(
    answers: list[Hashable | None], remaining: int, places: int
) -> None:
    spent = answers[: max(len(answers) - remaining, 0)]
    expected = spent == answers or nothing_can_change(spent, len(answers), places)
    assert ExactRule(places).decided(voted(spent, len(answers))) == expected


@pytest.mark.parametrize("places", [1, 2])
def test_the_exact_rule_agrees_with_brute_force_for_all_small_counts(places: int) -> None:
    decisions: Counter[bool] = Counter()
    for counts in combinations_with_replacement(range(8), 3):
        answers = [
            answer for answer, votes in zip("abc", counts, strict=True) for _ in range(votes)
        ]
        for remaining in (1, 2, 3):
            total = len(answers) + remaining
            decided = ExactRule(places).decided(voted(answers, total))
            assert decided == nothing_can_change(answers, total, places), (counts, remaining)
            decisions[decided] += 1
    assert min(decisions[True], decisions[False]) >= 20


@given(
    answers=streams(most=40),
    rest=st.lists(st.sampled_from(["a", "b", "c", "new", "newer", None]), min_size=40, max_size=40),
    places=st.integers(1, 2),
    round_size=st.integers(1, 7),
)
@settings(max_examples=300)
def test_an_adversary_cannot_change_the_places_after_the_exact_rule_stopped(
    answers: list[Hashable | None],
    rest: list[Hashable | None],
    places: int,
    round_size: int,
) -> None:
    spent = simulate(ExactRule(places), answers, round_size)
    if spent == len(answers):
        return
    before = standings(Counter(a for a in answers[:spent] if a is not None), places)
    (places_then,) = before
    remaining = len(answers) - spent
    for attack in (rest, ["b"] * remaining, ["c"] * remaining, ["new"] * remaining):
        final = Counter(a for a in (*answers[:spent], *attack[:remaining]) if a is not None)
        assert standings(final, places) == {places_then}


def test_unseen_answers_are_rivals() -> None:
    # Three remain: a new answer may draw level with b, who has three votes, but not with a.
    answers = ["a"] * 8 + ["b"] * 3
    assert not ExactRule(2).decided(voted(answers, 14))
    assert ExactRule(2).decided(voted(answers, 13))
    assert ExactRule(1).decided(voted(answers, 14))
    # Only new answers can take a place from those who are unopposed.
    assert not ExactRule(1).decided(voted(["a"] * 3, 6))
    assert ExactRule(1).decided(voted(["a"] * 4, 7))
    assert not SequentialRule(1e-9, places=1).decided(voted(["a"] * 3, 6))
    assert SequentialRule(1e-9, places=1).decided(voted(["a"] * 4, 7))


def test_a_tie_is_not_decided() -> None:
    # The two that remain may bring b level with a, whose confidence may be less.
    assert not ExactRule(1).decided(voted(["a"] * 5 + ["b"] * 3, 10))
    assert ExactRule(1).decided(voted(["a"] * 5 + ["b"] * 3, 9))
    for rule in (ExactRule(1), SequentialRule(0.9, 1)):
        assert not rule.decided(voted(["a"] * 40 + ["b"] * 40, 81))
    for rule in (ExactRule(2), SequentialRule(0.9, 2)):
        assert not rule.decided(voted(["a"] * 60 + ["b"] * 40 + ["c"] * 40, 141))


def test_the_order_of_the_two_matters_to_the_exact_rule_only() -> None:
    vote = voted(["a"] * 20 + ["b"] * 20, 45)
    assert not ExactRule(2).decided(vote)
    assert SequentialRule(1e-9, 2).decided(vote)


def test_an_empty_second_place_is_decided_only_at_the_end() -> None:
    for rule in (ExactRule(2), SequentialRule(0.3, 2)):
        assert simulate(rule, ["a"] * 100, 9) == 100
    for rule in (ExactRule(1), SequentialRule(0.3, 1)):
        assert not rule.decided(voted([None] * 99, 100))
        assert simulate(rule, [None] * 100, 9) == 100


@pytest.mark.parametrize("places", [1, 2])
def test_with_nothing_remaining_the_vote_is_decided(places: int) -> None:
    for rule in (ExactRule(places), SequentialRule(0.05, places)):
        for answers in (["a"], [None], [], ["a", "b"], ["a", "a", "b", "b", None]):
            assert rule.decided(voted(answers, len(answers)))
        assert not rule.decided(voted([], 1))
        assert simulate(rule, ["a"], 32) == 1
        assert simulate(rule, list(range(50)), 8) == 50, "all different"


def test_the_vote_counts_what_was_spent() -> None:
    vote = RunningVote(9)
    vote.add([b"x", None, b"y", b"y"])
    vote.add([b"z", b"z", b"z", None])
    assert vote.counts == {b"x": 1, b"y": 2, b"z": 3}
    assert (vote.seen, vote.remaining) == (8, 1)
    assert vote.votes[:8].tolist() == [0, -1, 1, 1, 2, 2, 2, -1]
    with pytest.raises(AssertionError, match="2 votes where 1 remain"):
        vote.add([b"x", b"x"])


@given(answers=streams(most=30))
def test_the_leaders_before_each_vote_are_those_with_most_votes(
    answers: list[Hashable | None],
) -> None:
    """Nothing of a vote itself may show in the bet on it."""
    vote = voted(answers, len(answers))
    for spent in range(len(answers)):
        before = Counter(vote.votes[:spent][vote.votes[:spent] >= 0].tolist())
        expected = [count for _, count in before.most_common(3)]
        leaders = [leader for leader in vote.leaders[spent].tolist() if leader >= 0]
        assert [before[leader] for leader in leaders] == expected
        assert vote.leader_counts[spent].tolist() == expected + [0] * (3 - len(expected))


@given(answers=streams(most=40), places=st.integers(1, 2))
@settings(max_examples=200)
def test_at_a_tiny_error_only_the_certain_is_decided(
    answers: list[Hashable | None], places: int
) -> None:
    """Certain: the last of the first places leads every rival, seen or not, by more than remain."""
    vote = RunningVote(len(answers))
    for answer in answers:
        vote.add([answer])
        counts = [*sorted(vote.counts.values(), reverse=True), 0, 0, 0]
        certain = counts[places - 1] - counts[places] > vote.remaining or vote.remaining == 0
        assert SequentialRule(1e-200, places).decided(vote) == certain


def capital(answers: Answers, total: int, rival: Hashable, exempt: Hashable) -> float:
    """Largest M(rival, exempt) of the rule's docstring, vote by vote in the paper's form."""
    counts: Counter[Hashable] = Counter()
    reached: dict[Hashable, int] = {}
    money = most = 1.0
    for j, answer in enumerate(answers, start=1):
        leading = sorted(counts.keys() - {rival, exempt}, key=lambda w: (-counts[w], reached[w]))
        if leading:
            w = leading[0]
            x = 1.0 if answer == w else 0.0 if answer == rival else 0.5
            mu = (total / 2 - (j - 1 + counts[w] - counts[rival]) / 2) / (total - j + 1)
            eta = (30 * 0.7 + counts[w]) / (30 + counts[w] + counts[rival])
            if 0 < mu < eta:
                money *= x * eta / mu + (1 - x) * (1 - eta) / (1 - mu)
                most = max(most, money)
        if answer is not None:
            counts[answer] += 1
            reached[answer] = j
    return most


@given(
    answers=streams(most=40),
    share=st.floats(0.3, 1),
    error=st.floats(0.02, 0.98),
    places=st.integers(1, 2),
)
@settings(max_examples=300)
def test_the_sequential_rule_agrees_with_a_loop_over_rivals_and_votes(
    answers: list[Hashable | None], share: float, error: float, places: int
) -> None:
    total = len(answers)
    spent = answers[: int(share * total)]
    counts = Counter(a for a in spent if a is not None)
    ranked = [answer for answer, _ in counts.most_common()]
    first, rivals = ranked[:places], [*ranked[places:], "unseen"]
    least = counts[first[-1]] if len(first) == places else 0
    exempt = ["nobody", *ranked] if places == 2 else ["nobody"]
    expected = len(spent) == total or (
        all(counts[rival] < least for rival in rivals)
        and all(
            least - counts[rival] > total - len(spent)
            or all(capital(spent, total, rival, e) >= places / error for e in exempt)
            for rival in rivals
        )
    )
    assert SequentialRule(error, places).decided(voted(spent, total)) == expected


def test_a_rival_with_fewer_votes_may_be_the_one_that_is_not_ruled_out() -> None:
    # c was ruled out before its three votes came; d had its two when they counted most.
    answers = [*"dd", *"a" * 12, *"ccc"]
    of_c, of_d, of_new = (capital(answers, 100, rival, "nobody") for rival in ("c", "d", "new"))
    assert of_d < of_c <= of_new
    assert not SequentialRule(1 / (of_c * of_d) ** 0.5, 1).decided(voted(answers, 100))
    assert SequentialRule(1.001 / of_d, 1).decided(voted(answers, 100))


def test_the_error_is_shared_by_the_places() -> None:
    answers = [*"ab" * 15, *"cab" * 2]
    rivals = ["c", "new"]
    least = min(capital(answers, 100, rival, e) for rival in rivals for e in ["nobody", *"abc"])
    assert least == capital(answers, 100, "c", "a"), "b against c is the closest"
    assert SequentialRule(2.001 / least, 2).decided(voted(answers, 100))
    assert not SequentialRule(1.999 / least, 2).decided(voted(answers, 100))


def wrong_stops(
    population: Answers, right: set[Hashable], rule: SequentialRule, orders: int, round_size: int
) -> float:
    """Share of random orders in which voting stops at other answers than the right ones."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(orders):
        answers = [population[i] for i in generator.permutation(len(population))]
        spent = simulate(rule, answers, round_size)
        counts = Counter(a for a in answers[:spent] if a is not None)
        wrong += spent < len(answers) and (
            {answer for answer, _ in counts.most_common(rule.places)} != right
        )
    return wrong / orders


HARDEST = {
    # Exact ties may go either way by confidence; here they always go against who led.
    "tie": (1, "a" * 30 + "b" * 30, "a"),
    "near tie": (1, "a" * 51 + "b" * 50 + "." * 19, "a"),
    "three level": (1, "a" * 20 + "b" * 20 + "c" * 20, "a"),
    "tie for the second place": (2, "a" * 40 + "b" * 20 + "c" * 20, "ab"),
    "three for two places": (2, "a" * 20 + "b" * 20 + "c" * 20 + "." * 10, "ab"),
    "many for two places": (2, "aabbccddeeffgg" * 5, "ab"),
}


@pytest.mark.parametrize("case", HARDEST)
def test_the_error_probability_holds_where_it_is_hardest(case: str) -> None:
    places, letters, right = HARDEST[case]
    population = [None if letter == "." else letter for letter in letters]
    limit, orders = 0.2, 300
    rule = SequentialRule(limit, places)
    error = wrong_stops(population, set(right), rule, orders, round_size=3)
    assert error <= limit + 3 * sqrt(limit * (1 - limit) / orders)


def test_the_error_probability_is_used() -> None:
    """A looser error stops earlier and errs where it may, or the tests above would say nothing."""
    population = ["a"] * 200 + ["b"] * 200
    loose = wrong_stops(population, {"a"}, SequentialRule(0.4, 1), 200, 10)
    assert 0.08 < loose < 0.5
    generator = np.random.default_rng(1)
    answers = generator.permutation(["a"] * 240 + ["b"] * 130 + list("cdefghijkl") * 3).tolist()
    spent = [simulate(SequentialRule(error, 1), answers, 5) for error in (0.3, 0.05, 0.001)]
    assert spent == sorted(set(spent))
    assert spent[-1] < simulate(ExactRule(1), answers, 5) / 2


@pytest.mark.parametrize("round_size", [1, 4, 33])
def test_a_clear_vote_stops_early(round_size: int) -> None:
    answers = ["a", "a", None, "a", "b", "a", "a", "a", "a", "a", "b"] * 30
    spent = simulate(SequentialRule(0.05, 1), answers, round_size)
    assert spent % round_size == 0
    assert spent <= 33
    assert simulate(SequentialRule(0.05, 2), answers, round_size) < len(answers) / 3


def test_the_martingale_by_hand() -> None:
    """N = 4 and the votes a, a against an answer not seen, one place.

    There is no leader before the first vote, so no bet. Before the second, a leads by 1: the rest
    has the mean μ = (2 - 1) / 3 = 1/3 if they end level (S = (1 + 1 - 0) / 2 = 1), and
    η = (30 · 0.7 + 1) / 31 = 22/31; the vote for a multiplies the capital by η / μ = 66/31 = 2.13.
    """
    vote = voted(["a", "a"], 4)
    assert SequentialRule(31 / 66 + 0.001, 1).decided(vote)
    assert not SequentialRule(31 / 66 - 0.001, 1).decided(vote)


def capital_against_share(answers: Answers, total: int, small: Hashable, share: float) -> float:
    """Largest capital of bets that `small` ends below a share, vote by vote in the paper's form."""
    money = most = 1.0
    others = 0
    for j, answer in enumerate(answers, start=1):
        mu = (total * (1 - share) - others) / (total - j + 1)
        if mu < 0:
            return float("inf")
        x = float(answer != small)
        eta = (30 * (1 - share / 4) + others) / (30 + j - 1)
        if 0 < mu < eta:
            money *= x * eta / mu + (1 - x) * (1 - eta) / (1 - mu)
            most = max(most, money)
        others += int(x)
    return most


@given(
    answers=streams(most=40),
    part=st.floats(0.3, 1),
    error=st.floats(0.02, 0.98),
    share=st.sampled_from([0.05, 0.1, 0.25, 0.5]),
)
@settings(max_examples=300)
def test_a_small_second_place_is_not_waited_for_as_a_loop_over_answers_says(
    answers: list[Hashable | None], part: float, error: float, share: float
) -> None:
    total = len(answers)
    spent = answers[: int(part * total)]
    vote = voted(spent, total)
    counts = Counter(a for a in spent if a is not None)
    others = [answer for answer, _ in counts.most_common()[1:]]
    small = all(
        counts[answer] < share * total
        and capital_against_share(spent, total, answer, share) >= 4 / error
        for answer in [*others, "unseen"]
    )
    # Four claims share the error: of two rules of two claims each.
    expected = SequentialRule(error / 2, 2).decided(vote) or (
        SequentialRule(error / 4, 1).decided(vote) and small
    )
    assert SequentialRule(error, 2, share).decided(vote) == expected


def test_a_vote_of_one_answer_stops_early_only_if_a_small_second_place_is_not_wanted() -> None:
    answers = ["a"] * 1000
    assert simulate(SequentialRule(0.01), answers, 8) == 1000
    assert simulate(SequentialRule(0.01, min_share=0.1), answers, 8) < 100
    # Of a large second place nothing is lost: it is known, or waited for.
    even = ["a", "b"] * 500
    assert simulate(SequentialRule(0.01, min_share=0.1), even, 8) < 100


@pytest.mark.parametrize("second", [10, 15])
def test_a_second_place_of_the_share_is_missed_no_more_often_than_stated(second: int) -> None:
    """Exactly a tenth of the votes, which is hardest, and a little more."""
    population = ["a"] * (100 - second) + ["b"] * second
    limit, orders = 0.3, 300
    rule = SequentialRule(limit, min_share=0.1)
    error = wrong_stops(population, {"a", "b"}, rule, orders, round_size=3)
    assert error <= limit + 3 * sqrt(limit * (1 - limit) / orders)


def test_a_second_place_below_the_share_may_be_missed() -> None:
    population = ["a"] * 197 + ["b"] * 2 + ["c"]
    rule = SequentialRule(0.1, min_share=0.1)
    assert wrong_stops(population, {"a", "b"}, rule, 100, round_size=8) > 0.3


def test_an_answer_that_can_still_have_the_share_is_not_certainly_small() -> None:
    """One vote is left, and with it b would have exactly two of twenty."""
    vote = voted([*"a" * 18, "b"], 20)
    assert not SequentialRule(1e-12, min_share=0.1).decided(vote)
    assert SequentialRule(1e-12, min_share=0.11).decided(vote)
