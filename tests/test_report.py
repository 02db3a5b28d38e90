"""The report page: what it says about hand-made cases, what it draws, what a browser does."""

import base64
import io
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.tasks import Grid, Pair
from evaluation.report import Attempt, ReportCase, write_report

# By hand, from the ARC site: black, blue, red, green, yellow, grey, magenta, orange, sky, maroon.
HEX = "000000 0074D9 FF4136 2ECC40 FFDC00 AAAAAA F012BE FF851B 7FDBFF 870C25"
COLOURS = [tuple(bytes.fromhex(colour)) for colour in HEX.split()]


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


SOLUTION = grid("123", "456")
ONE_OFF = grid("123", "450")
CASE = ReportCase(
    task_id="007bbfb7",
    test_index=0,
    demonstrations=(Pair(grid("1"), grid("22")), Pair(grid("3"), grid("44"))),
    test_input=grid("7", "8", "9"),
    solution=SOLUTION,
    attempts=(Attempt(ONE_OFF, 12, 0.914), Attempt(SOLUTION, 1, 0.5)),
    step_answers=(ONE_OFF, SOLUTION),
)
WRONG = replace(CASE, task_id="wrong", attempts=(Attempt(ONE_OFF, 3, 0.25),))
HIDDEN = replace(CASE, task_id="hidden", solution=None)


@dataclass
class ParsedFigure:
    label: str = ""
    badge: str = ""
    notes: list[str] = field(default_factory=list)
    empty: str = ""
    alt: str = ""
    src: str = ""

    def pixels(self) -> Image.Image:
        header, data = self.src.split(",")
        assert header == "data:image/png;base64"
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def centre_colours(self, shape: tuple[int, int]) -> list[list[tuple[int, ...]]]:
        image = self.pixels()
        side = (image.width - 1) // shape[1]
        assert image.size == (shape[1] * side + 1, shape[0] * side + 1)
        rows, cols = ([cell * side + side // 2 for cell in range(count)] for count in shape)
        return [[image.getpixel((x, y)) for x in cols] for y in rows]


@dataclass
class ParsedCase:
    heading: str = ""
    badge: str = ""
    figures: list[ParsedFigure] = field(default_factory=list)

    def figure(self, label: str) -> ParsedFigure:
        (found,) = [figure for figure in self.figures if figure.label == label]
        return found


class Page(HTMLParser):
    """The parts of a page that the tests make claims about."""

    VOID = ("meta", "img", "input", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.cases: list[ParsedCase] = []
        self.facts: list[str] = []
        self.summary = ""
        self.status = ""
        self.headings: list[int] = []
        self.attributes: dict[str, list[dict[str, str | None]]] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"elements left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes.setdefault(tag, []).append(values)
        if tag == "article":
            self.cases.append(ParsedCase())
        elif tag == "figure":
            self.cases[-1].figures.append(ParsedFigure())
        elif tag == "img":
            self.cases[-1].figures[-1].src = values["src"] or ""
            self.cases[-1].figures[-1].alt = values["alt"] or ""
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self._open.append((tag, values.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        inside = {tag for tag, _ in self._open}
        inside |= {f".{name}" for _, names in self._open for name in names.split()}
        words = " ".join(data.split())
        if not words:
            return
        if "figure" in inside:
            figure = self.cases[-1].figures[-1]
            if ".label" in inside:
                figure.label += words
            elif ".badge" in inside:
                figure.badge += words
            elif ".notes" in inside:
                figure.notes.append(words)
            else:
                figure.empty += words
        elif "h2" in inside and ".badge" in inside:
            self.cases[-1].badge += words
        elif "h2" in inside:
            self.cases[-1].heading = f"{self.cases[-1].heading} {words}".strip()
        elif "dl" in inside:
            self.facts.append(words)
        elif ".summary" in inside:
            self.summary = f"{self.summary} {words}".strip()
        elif "output" in inside:
            self.status += words


@pytest.fixture
def report(tmp_path):
    def write(
        *cases: ReportCase, title: str = "a run", facts: dict[str, str] | None = None
    ) -> Page:
        path = tmp_path / "report.html"
        write_report(path, title, facts or {}, cases)
        return Page(path.read_text(encoding="utf-8"))

    return write


def test_the_top_counts_right_test_inputs_and_lists_the_facts_in_order(report):
    page = report(CASE, WRONG, WRONG, HIDDEN, facts={"pass@2": "24.0 %", "checkpoint": "step_9"})
    assert page.summary == "1 of 3 test inputs right, 1 not scored"
    assert page.facts == ["pass@2", "24.0 %", "checkpoint", "step_9"]
    assert report(CASE).summary == "1 of 1 test input right"


@pytest.mark.parametrize(
    ("attempts", "badge", "badges"),
    [
        ((SOLUTION, ONE_OFF), "✓right", ["✓right", "✗wrong"]),
        ((ONE_OFF, SOLUTION), "✓right", ["✗wrong", "✓right"]),
        ((ONE_OFF, SOLUTION[:1]), "✗wrong", ["✗wrong", "✗wrong"]),
        ((ONE_OFF,), "✗wrong", ["✗wrong", ""]),
        ((), "✗wrong", ["", ""]),
    ],
)
def test_a_case_is_right_if_one_of_its_attempts_is_the_solution(report, attempts, badge, badges):
    answers = tuple(Attempt(answer, 1, 0.5) for answer in attempts)
    (case,) = report(replace(CASE, attempts=answers)).cases
    assert case.badge == badge
    assert [case.figure(f"attempt {number}").badge for number in (1, 2)] == badges


def test_a_hidden_solution_is_neither_shown_nor_scored(report):
    page = report(HIDDEN)
    (case,) = page.cases
    assert case.badge == "–not scored"
    assert page.summary == "0 of 0 test inputs right, 1 not scored"
    assert case.figure("solution").empty == "hidden" and not case.figure("solution").src
    assert case.figure("attempt 1").notes == ["12 votes", "mean confidence 0.91"]
    assert case.figure("step 2").notes == ["1 cell changed"]
    assert not any(figure.badge for figure in case.figures)


def test_an_attempt_says_its_votes_its_confidence_and_what_is_wrong_with_it(report):
    (case,) = report(CASE).cases
    assert case.figure("attempt 1").notes == ["12 votes", "mean confidence 0.91", "1 cell wrong"]
    assert case.figure("attempt 2").notes == ["1 vote", "mean confidence 0.50"]
    (case,) = report(replace(CASE, attempts=(Attempt(SOLUTION[:1], 2, 0.5),))).cases
    assert case.figure("attempt 1").notes[2] == "wrong size, 1 × 3"
    assert case.figure("attempt 2").empty == "no answer"


def test_steps_say_what_changed_and_what_is_still_wrong(report):
    answers = (None, SOLUTION[:1], grid("000", "456"), grid("123", "456"), SOLUTION, None)
    (case,) = report(replace(CASE, step_answers=answers)).cases
    assert [case.figure(f"step {step}").notes for step in range(1, 7)] == [
        [],
        ["3 cells changed", "wrong size, 1 × 3"],
        ["6 cells changed", "size changed", "3 cells wrong"],
        ["3 cells changed", "0 cells wrong"],
        ["0 cells changed", "0 cells wrong"],
        [],
    ]
    assert case.figure("step 1").empty == case.figure("step 6").empty == "no grid"


def test_an_input_whose_original_was_not_predicted_has_no_steps(report):
    """Attempts, and nothing about their development."""
    page = report(replace(CASE, step_answers=()), CASE)
    without, case = ([figure.label for figure in case.figures] for case in page.cases)
    assert without == [label for label in case if not label.startswith("step")]
    assert page.headings == [1, 2, 3, 2, 3, 3]


def test_only_cells_that_changed_carry_a_dot(report):
    (case,) = report(replace(CASE, step_answers=(ONE_OFF, SOLUTION, SOLUTION))).cases
    plain = [[COLOURS[cell] for cell in row] for row in SOLUTION]
    dotted = [plain[0], [*plain[1][:2], (0, 0, 0)]]
    assert case.figure("step 2").centre_colours((2, 3)) == dotted
    assert case.figure("step 3").centre_colours((2, 3)) == plain
    assert case.figure("step 1").centre_colours((2, 3))[1][2] == COLOURS[0]


def test_the_dot_stands_out_on_every_colour(report):
    steps = grid("1234567890"), grid("0123456789")
    (case,) = report(replace(CASE, step_answers=steps)).cases
    (dots,) = case.figure("step 2").centre_colours((1, 10))
    for number, (colour, dot) in enumerate(zip(COLOURS, dots, strict=True)):
        lighter, darker = sorted((luminance(colour), luminance(dot)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, f"colour {number}"


def luminance(colour: tuple[int, ...]) -> float:
    """WCAG's relative luminance."""
    linear = [
        channel / 3294.6 if channel <= 10 else ((channel / 255 + 0.055) / 1.055) ** 2.4
        for channel in colour
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("shape", [(1, 1), (2, 10), (11, 7), (30, 30), (30, 1)])
def test_a_grid_is_drawn_in_the_standard_colours_at_most_151_pixels_wide(report, shape):
    cells = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape) * 7 % 10
    (case,) = report(replace(CASE, test_input=cells.astype(np.uint8))).cases
    figure = case.figure("test input")
    assert figure.centre_colours(shape) == [[COLOURS[cell] for cell in row] for row in cells]
    image = figure.pixels()
    assert max(image.size) <= 151
    assert {image.getpixel((x, 0)) for x in range(image.width)} == {(0x70, 0x70, 0x70)}


def test_images_are_described_and_carry_their_size(report):
    page = report(CASE)
    (case,) = page.cases
    assert case.figure("test input").alt == "test input, 3 rows by 1 column"
    assert case.figure("attempt 2").alt == "attempt 2, 2 rows by 3 columns"
    images = [figure for figure in case.figures if figure.src]
    for figure, attributes in zip(images, page.attributes["img"], strict=True):
        size = (int(attributes["width"] or 0), int(attributes["height"] or 0))
        assert size == figure.pixels().size


def test_a_case_is_headed_by_its_test_input_and_ends_with_its_demonstrations(report):
    """The headings descend by one level at a time; the demonstrations are folded away."""
    page = report(CASE, replace(WRONG, test_index=2))
    headings = [case.heading for case in page.cases]
    assert headings == ["007bbfb7 test input 1", "wrong test input 3"]
    assert page.headings == [1, 2, 3, 3, 2, 3, 3]
    for case in page.cases:
        labels = [figure.label for figure in case.figures][-4:]
        assert labels == ["input 1", "output 1", "input 2", "output 2"]
    assert page.attributes["details"] == [{}, {}]


def test_a_task_id_is_text_and_never_markup(report):
    evil = '<script>alert("1")</script>'
    page = report(replace(CASE, task_id=evil), title=evil, facts={evil: evil})
    assert page.cases[0].heading == f"{evil} test input 1"
    assert page.facts == [evil, evil]
    assert len(page.attributes["script"]) == 1


def test_the_page_refers_to_nothing_outside_itself(report):
    page = report(CASE, HIDDEN)
    assert not re.search(r"https?://|url\(|@import", page.text)
    targets = [
        value or ""
        for elements in page.attributes.values()
        for attributes in elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert targets and all(target.startswith(("data:image/png", "#")) for target in targets)


def test_a_page_without_script_shows_every_case_and_no_dead_filter(report):
    page = report(CASE, WRONG)
    assert page.attributes["html"] == [{"lang": "en"}]
    assert page.attributes["main"] == [{}], "nothing is filtered before the script runs"
    assert "hidden" in page.attributes["fieldset"][0]
    assert not any("hidden" in attributes for attributes in page.attributes["article"])


def test_the_filter_offers_what_there_is(report):
    def choices(page: Page) -> list[str | None]:
        return [attributes["value"] for attributes in page.attributes["input"]]

    assert choices(report(CASE)) == ["all", "right", "wrong"]
    assert choices(report(HIDDEN)) == ["all", "right", "wrong", "not-scored"]


def test_a_page_of_400_tasks_of_30_by_30_cells_stays_below_15_megabytes(report):
    generator = np.random.default_rng(0)
    # Two-fold repetition: about what the busiest ARC task has.
    grids = [np.tile(generator.integers(0, 10, (15, 15), np.uint8), (2, 2)) for _ in range(6)]
    case = replace(
        CASE,
        demonstrations=tuple(Pair(one, two) for one, two in zip(grids[:3], grids[3:], strict=True)),
        test_input=grids[0],
        solution=grids[1],
        attempts=(Attempt(grids[2], 1, 0.5), Attempt(grids[3], 1, 0.5)),
        step_answers=tuple(grids),
    )
    assert 400 * (len(report(case, case).text) - len(report(case).text)) < 15e6


CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr"
)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("fragment", "shown", "status"),
    [
        ("", "all", "showing 3 of 3"),
        ("#show=wrong", "wrong", "showing 2 of 3"),
        ("#show=right", "right", "showing 1 of 3"),
        ("#case-2", "all", "showing 3 of 3"),
    ],
)
def test_a_browser_shows_and_filters_the_cases(report, tmp_path, fragment, shown, status):
    report(CASE, WRONG, WRONG)
    address = (tmp_path / "report.html").as_uri() + fragment
    page, log = dump_dom(address, tmp_path / "profile")
    assert "Uncaught" not in log and "Content Security Policy" not in log
    assert [case.badge for case in page.cases] == ["✓right", "✗wrong", "✗wrong"]
    assert page.attributes["main"] == [{"data-show": shown}]
    assert "hidden" not in page.attributes["fieldset"][0]
    assert page.status == status


def dump_dom(address: str, profile: Path) -> tuple[Page, str]:
    """The document as it is after its script ran, and the browser's log."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout), done.stderr
