"""The page: what it says without its script, and what it does in a real browser."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import CHROMIUM, Browser, browser
from dataset.tasks import Pair
from evaluation.charts import Axis, Series, Table, draw_bars, draw_chart
from evaluation.gallery import OUTCOMES, Answers, Attempt, Case, Gallery, outcome_of
from evaluation.report import Page, Score, write_page
from evaluation.uncertainty import share_of
from test_gallery import ATTEMPTS, CASE, ONE_OFF, SOLUTION, grid

LARGE = grid(*["0123456789" * 3] * 30)
FIRST = replace(CASE, task_id="aaaa1111", answers=(Answers(ATTEMPTS[::-1], 16),), outcome="first")
WRONG = replace(
    CASE,
    task_id="bbbb2222",
    answers=(Answers((Attempt(ONE_OFF, 3, 0.25),), 5),),
    outcome="unsolved",
    kinds={"size": "21–30", "subset": "evaluation"},
)
HIDDEN = replace(CASE, task_id="cccc3333", solution=None, outcome="hidden", step_answers=())
WIDE = replace(WRONG, task_id="dddd4444", test_index=1, test_input=LARGE, solution=LARGE,
               demonstrations=(Pair(LARGE, LARGE),) * 4, step_answers=(LARGE,) * 16,
               step_targets=())  # fmt: skip
TITLES = {"size": "Longest side", "subset": "Test set"}


def chart(title: str = "A curve", count: int = 2) -> Any:
    points = [(1, 0.25), (10, 0.5)]
    series = [Series(f"line {n}", points, [(0.2, 0.3), (0.4, 0.6)]) for n in range(count)]
    table = Table(("k", "share"), [("1", "25.0%"), ("10", "50.0%")])
    return draw_chart(title, "What it shows.", Axis("attempts", (1, 10), True), series, table)


def page(*cases: Case, **changes: Any) -> Page:
    values: dict[str, Any] = {
        "title": "Answers on a test set",
        "summary": "2 of 4 test inputs right",
        "gallery": Gallery(cases, OUTCOMES, TITLES),
        "scores": [Score("pass@2", share_of(2, 4), "over 4 tasks")],
        "facts": {"loss": "0.431", "checkpoint 1": "step_9"},
        "charts": [chart()],
        "bars": draw_bars("By kind", "All.", {"Size": {"small": share_of(1, 2)}}),
    }
    return Page(**{**values, **changes})


class Parsed(HTMLParser):
    """The parts of a page that the tests make claims about."""

    VOID = ("meta", "img", "input", "link", "br", "line", "path", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.words: dict[str, list[str]] = {}
        self.attributes: dict[str, list[dict[str, str | None]]] = {}
        self.headings: list[int] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"elements left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.setdefault(tag, []).append(dict(attrs))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        inside = {tag for tag, _ in self._open}
        inside |= {f".{name}" for _, names in self._open for name in names.split()}
        for place in inside if (words := " ".join(data.split())) else ():
            self.words.setdefault(place, []).append(words)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(*cases: Case, **changes: Any) -> Parsed:
        path = tmp_path / "report.html"
        write_page(path, page(*cases, **changes))
        return Parsed(path.read_text(encoding="utf-8"))

    return write


# ---- without a script ----


def test_the_top_has_the_score_with_its_interval_and_the_facts_in_order(written: Any) -> None:
    found = written(CASE)
    assert found.words["h1"] == ["Answers on a test set"]
    assert found.words[".summary"] == ["2 of 4 test inputs right"]
    assert found.words[".score"] == ["pass@2", "50.0%", "95%: 15.0–85.0%", "over 4 tasks"]
    assert found.words["dl"] == ["loss", "0.431", "checkpoint 1", "step_9"]


def test_a_chart_says_its_numbers_in_words_too(written: Any) -> None:
    found = written(CASE)
    (drawing,) = found.attributes["svg"]
    assert drawing["role"] == "img"
    assert drawing["aria-label"] == "A curve. line 0 ends at 50.0%; line 1 ends at 50.0%"
    assert found.words[".numbers"] == ["Numbers", "k", "share", "1", "25.0%", "10", "50.0%"]
    assert found.words[".bars"][-3:] == ["small", "50.0%", "2"]


def test_what_there_is_not_is_left_out(written: Any) -> None:
    found = written(HIDDEN, scores=[], facts={}, charts=[], bars=None)
    assert not {"svg", "dl"} & set(found.attributes)
    assert "Figures" not in found.words["h2"]


def test_without_a_script_the_list_says_how_each_case_ended(written: Any) -> None:
    """And no control is shown that would do nothing."""
    found = written(FIRST, CASE, WRONG, HIDDEN)
    cards = " ".join(found.words[".card"])
    assert cards.startswith("aaaa1111 test input 1 ✓ Solved by the first 1 of 16 votes")
    assert "bbbb2222 test input 1 ✗ Not solved 3 of 5 votes, 1 cell wrong" in cards
    assert "cccc3333 test input 1 – Not scored 12 of 16 votes" in cards
    (form,) = found.attributes["form"]
    assert "hidden" in form
    assert not any("hidden" in card for card in found.attributes["li"])
    assert found.words["noscript"]


def test_the_filters_are_what_the_cases_differ_in(written: Any) -> None:
    found = written(FIRST, CASE, WRONG)
    choices = [a["value"] for a in found.attributes["input"] if a.get("type") == "radio"]
    assert choices == ["", "first", "second", "unsolved"]
    assert [a["name"] for a in found.attributes["select"]] == ["size"]


def test_the_headings_descend_one_level_at_a_time(written: Any) -> None:
    headings = written(FIRST, WRONG).headings
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_a_task_id_is_text_and_never_markup(written: Any) -> None:
    evil = '</script><script>alert("1")</script>'
    found = written(replace(CASE, task_id=evil), title=evil, facts={evil: evil})
    assert evil in found.words[".card"]
    assert found.words["dl"] == [evil, evil]
    assert len(found.attributes["script"]) == 3, "colours, data and the page's own"


def test_the_page_refers_to_nothing_outside_itself(written: Any) -> None:
    found = written(CASE, HIDDEN)
    assert not re.search(r"https?://|url\(|@import", found.text)
    (policy,) = [a["content"] for a in found.attributes["meta"] if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    targets = [
        value or ""
        for elements in found.attributes.values()
        for attributes in elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert targets and all(target.startswith("#") for target in targets)


def test_400_tasks_of_30_by_30_cells_stay_below_15_megabytes(written: Any) -> None:
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, (30, 30), np.uint8) for _ in range(8)]
    text = "/".join(["9" * 30] * 30)
    case = replace(
        CASE,
        demonstrations=tuple(Pair(one, two) for one, two in zip(grids[:4], grids[4:], strict=True)),
        test_input=grids[0],
        solution=grids[1],
        answers=(Answers((Attempt(grids[2], 1, 0.5), Attempt(grids[3], 1, 0.5)), 2),),
        step_answers=tuple(grids[:6]),
        step_targets=(text,) * 6,
    )
    other = replace(case, task_id="another")
    assert 400 * (len(written(case, other).text) - len(written(case).text)) < 15e6


# ---- in a browser ----

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
SHOWN = "[...document.querySelectorAll('.card:not([hidden]) a')].map((link) => link.textContent)"
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests of this module."""
    with browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def tab(chromium: Browser, tmp_path: Path) -> Iterator[Browser]:
    """A desktop's window on a page of four cases, which must not complain."""
    write_page(tmp_path / "report.html", page(FIRST, CASE, WRONG, WIDE, HIDDEN))
    chromium.complaints.clear()
    chromium.prefer()
    chromium.resize(*DESKTOP)
    chromium.open(tmp_path / "report.html")
    yield chromium
    assert chromium.complaints == []


def opened(tab: Browser) -> str | None:
    """The heading of the case that is open; None: the list is shown."""
    heading: str | None = tab.run(
        "document.querySelector('.viewer').open"
        " ? document.querySelector('#viewer-title .id').textContent : null"
    )
    return heading


def fragment(tab: Browser) -> str:
    found: str = tab.run("decodeURIComponent(location.hash)")
    return found


@needs_browser
def test_the_list_is_filtered_by_how_cases_ended_and_by_kind(tab: Browser) -> None:
    assert tab.run(SHOWN) == ["aaaa1111", "007bbfb7", "bbbb2222", "dddd4444", "cccc3333"]
    tab.click("input[value=unsolved] + span")
    assert tab.run(SHOWN) == ["bbbb2222", "dddd4444"]
    assert tab.run("document.querySelector('.filter output').textContent") == "showing 2 of 5"
    tab.run("(() => { const s = document.querySelector('[name=size]'); s.value = 'up to 10';"
            " s.dispatchEvent(new Event('input', {bubbles: true})); })()")  # fmt: skip
    assert tab.run(SHOWN) == []
    assert fragment(tab) == "#size=up+to+10&outcome=unsolved"
    tab.click(".reset")
    assert len(tab.run(SHOWN)) == 5


@needs_browser
def test_a_slash_searches_by_task_id_and_typing_there_is_no_command(tab: Browser) -> None:
    tab.press("/", *"B2")
    assert tab.run(SHOWN) == ["bbbb2222"]
    assert fragment(tab) == "#q=B2"
    tab.press("j", "p", "k")
    assert opened(tab) is None
    assert tab.run("document.querySelector('[name=q]').value") == "B2jpk"


@needs_browser
@pytest.mark.parametrize(
    ("address", "shown", "case"),
    [
        ("#outcome=second", 1, None),
        ("#outcome=nonsense&size=99", 5, None),
        ("#case=bbbb2222:1", 5, "bbbb2222"),
        ("#case=bbbb2222:2", 5, None),
        ("#outcome=first&case=cccc3333:1", 1, "cccc3333"),
    ],
)
def test_the_address_brings_a_choice_back(
    tab: Browser, tmp_path: Path, address: str, shown: int, case: str | None
) -> None:
    tab.open(tmp_path / "report.html", address)
    assert len(tab.run(SHOWN)) == shown
    assert opened(tab) == case


@needs_browser
def test_keys_go_from_case_to_case_among_those_shown(tab: Browser) -> None:
    """In the list they move the focus; Escape brings back to the card of the case."""
    tab.click("input[value=unsolved] + span")
    tab.run("document.activeElement.blur()")
    tab.press("j", "j", "k", "Enter")
    assert opened(tab) == "bbbb2222"
    tab.press("ArrowRight")
    assert (opened(tab), fragment(tab)) == ("dddd4444", "#outcome=unsolved&case=dddd4444:2")
    tab.press("j")
    assert opened(tab) == "dddd4444", "it is the last one"
    tab.press("k", "Escape")
    assert opened(tab) is None
    tab.wait_for("location.hash === '#outcome=unsolved'")
    assert tab.run("document.activeElement.textContent") == "bbbb2222"


@needs_browser
def test_the_back_button_closes_what_it_has_opened(tab: Browser) -> None:
    tab.click(".card:nth-child(2) a")
    assert opened(tab) == "007bbfb7"
    tab.run("history.back()")
    tab.wait_for("!document.querySelector('.viewer').open")
    tab.click(".card:nth-child(3) a")
    tab.click(".viewer .close")
    tab.wait_for("location.hash === ''")
    assert len(tab.run(SHOWN)) == 5


@needs_browser
def test_a_case_opens_to_demonstrations_attempts_and_steps(tab: Browser) -> None:
    tab.click(".card:nth-child(2) a")
    words = tab.run("document.querySelector('.viewer').innerText.split(/\\s*\\n\\s*/)")
    assert [w for w in words if w.startswith(("Input", "Output"))] == [
        "Input 1", "Output 1", "Input 2", "Output 2"
    ]  # fmt: skip
    for said in ("Attempt 1", "✗ wrong", "✓ right", "12 of 16 votes", "1 cell wrong", "2 of 5"):
        assert said in words, said
    labels = tab.run(
        "[...document.querySelectorAll('.stage canvas')].map((c) => c.getAttribute('aria-label'))"
    )
    assert labels == [
        "Answer after step 2, 2 rows by 3 columns", "Target of step 2, 2 rows by 3 columns"
    ]  # fmt: skip


def cells(tab: Browser, selector: str, rows: int, cols: int) -> list[list[list[int]]]:
    """Colours in the middle of each cell of a drawn grid, alpha included."""
    width, height, data = tab.run(
        f"(() => {{ const c = document.querySelector('{selector}');"
        f" const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        f" return [c.width, c.height, [...d]]; }})()"
    )
    pixels, side = np.array(data).reshape(height, width, 4), (width - 1) // cols
    assert (height - 1) // rows == side
    middles: list[list[list[int]]] = pixels[side // 2 :: side, side // 2 :: side].tolist()
    return middles


@needs_browser
def test_a_grid_is_drawn_in_its_colours_with_dots_where_it_is_wrong(tab: Browser) -> None:
    """Attempt 1 has black in place of magenta; its dot is white. A target's blank is no colour."""
    tab.click(".card:nth-child(2) a")
    blue, red, green, yellow, grey = ([0x00, 0x74, 0xD9, 255], [0xFF, 0x41, 0x36, 255],
        [0x2E, 0xCC, 0x40, 255], [0xFF, 0xDC, 0x00, 255], [0xAA, 0xAA, 0xAA, 255])  # fmt: skip
    drawn = cells(tab, ".attempts figure:nth-child(2) canvas", 2, 3)
    assert drawn == [[blue, red, green], [yellow, grey, [255, 255, 255, 255]]]
    tab.run("document.querySelector('.strip button').click()")
    target = cells(tab, ".stage figure:nth-child(2) canvas", 2, 3)
    assert target[0] == [[0xFF, 0x85, 0x1B, 255], [0, 0, 0, 0], green]


@needs_browser
@pytest.mark.parametrize("key", ["p", " "])
def test_the_strip_plays_to_its_last_step_and_stops(tab: Browser, key: str) -> None:
    """It begins at the first step; the key again would stop it."""
    step = "Number(document.querySelector('#step').value)"
    tab.run("document.querySelector('.card:nth-child(2) a').click()")
    assert tab.run(step) == 2
    tab.press(key)
    assert (tab.run(step), tab.run("document.querySelector('.play .word').textContent")) == (
        1, "Pause"
    )  # fmt: skip
    tab.wait_for(f"{step} === 2")
    assert tab.run("document.querySelector('.play .word').textContent") == "Play"
    assert tab.run("document.querySelector('.strip [aria-current]').textContent") == "Step 2"


@needs_browser
def test_playing_can_be_stopped_and_stops_with_the_case(tab: Browser) -> None:
    word = "document.querySelector('.play .word').textContent"
    tab.click(".card:nth-child(4) a")
    tab.press("p", "p")
    assert tab.run(word) == "Play"
    tab.press("p", "k")
    assert (opened(tab), tab.run(word)) == ("bbbb2222", "Play")


@needs_browser
def test_who_prefers_less_motion_gets_slower_steps_and_nothing_that_glides(
    tab: Browser, tmp_path: Path
) -> None:
    duration = "getComputedStyle(document.querySelector('.card')).transitionDuration"
    waits = []
    for motion in ("no-preference", "reduce"):
        tab.prefer(prefers_reduced_motion=motion)
        tab.open(tmp_path / "report.html")
        tab.run("window.waits = []; window.setInterval = (_, wait) => { waits.push(wait); }")
        tab.run("document.querySelector('.card:nth-child(2) a').click()")
        tab.press("p")
        waits.append((tab.run("waits")[0], tab.run(duration) == "0s"))
    assert waits == [(700, False), (1500, True)]


@needs_browser
def test_a_case_without_steps_has_no_strip(tab: Browser) -> None:
    tab.click(".card:nth-child(5) a")
    assert tab.run("document.querySelector('.steps').hidden")
    tab.press("p")
    assert "hidden" in tab.run("document.querySelector('.attempts').innerText")


SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"
TOO_SMALL = """[...document.querySelectorAll('button, select, input, summary, .choices span')]
  .filter((e) => e.checkVisibility() && e.type !== 'radio' && e.getBoundingClientRect().height < 40)
  .map((e) => e.outerHTML.slice(0, 80))"""
CUT_OFF = """[...document.querySelectorAll('.viewer .answered *, .viewer .demonstrations *')]
  .filter((e) => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML.slice(0, 80))"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 640)])
def test_nothing_is_wider_than_the_window_nor_too_small_for_a_finger(
    tab: Browser, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    """Also not of a case of the largest grids and sixteen steps, which scrolls in itself."""
    tab.prefer(prefers_color_scheme=scheme)
    tab.resize(*size, is_phone=size != DESKTOP)
    tab.open(tmp_path / "report.html")
    assert tab.run(SIDEWAYS) == 0
    if size != DESKTOP:
        assert tab.run(TOO_SMALL) == []
    tab.run("document.querySelector('.card:nth-child(4) a').click()")
    assert (opened(tab), tab.run(SIDEWAYS), tab.run(CUT_OFF)) == ("dddd4444", 0, [])
    if size != DESKTOP:
        assert tab.run(TOO_SMALL) == []


WORDS = """[...document.querySelectorAll('.chart svg')].map((svg) => {
  const box = ({left, right, top, bottom}) => [left, right, top, bottom];
  return [box(svg.getBoundingClientRect()), [...svg.querySelectorAll('text')]
    .map((e) => [e.textContent, ...box(e.getBoundingClientRect())])];
})"""


@needs_browser
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_no_words_of_a_chart_overlap_or_leave_it(
    chromium: Browser, tmp_path: Path, size: tuple[int, int]
) -> None:
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    axis, table = Axis("variants", counts, True), Table(("n",), [])
    dense = draw_chart("Dense", "", axis, [Series("one", [(n, 0.5) for n in counts])], table)
    right = Series("one", [(0.5, 0.5)], [(0.4, 0.6)], False)
    shares = draw_chart("Shares", "", Axis("share", (0, 0.2, 1), False, True), [right], table, True)
    write_page(tmp_path / "charts.html", page(CASE, charts=[chart(), dense, shares]))
    chromium.resize(*size, is_phone=size == PHONE)
    chromium.open(tmp_path / "charts.html")
    charts = chromium.run(WORDS)
    assert len(charts) == 3
    for (left, right_edge, top, bottom), words in charts:
        for text, *edges in words:
            assert left - 1 <= edges[0] < edges[1] <= right_edge + 1, text
            assert top - 1 <= edges[2] < edges[3] <= bottom + 1, text
        for (one, *a), (two, *b) in combinations(words, 2):
            overlap = a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
            assert not overlap, f"{one} on {two}"


@needs_browser
def test_every_case_that_comes_into_view_is_drawn(chromium: Browser, tmp_path: Path) -> None:
    """Not before: of four hundred cases those far below are left for later."""
    cases = [replace(CASE, task_id=f"task{n}", outcome=outcome_of(ATTEMPTS, SOLUTION))
             for n in range(400)]  # fmt: skip
    write_page(tmp_path / "many.html", page(*cases))
    chromium.resize(*DESKTOP)
    chromium.open(tmp_path / "many.html")
    drawn = "document.querySelectorAll('.card canvas').length"
    assert chromium.run(drawn) < 400
    chromium.run("document.querySelector('.card:nth-child(400)').scrollIntoView()")
    chromium.wait_for("document.querySelectorAll('.card:nth-child(400) canvas').length === 3")
