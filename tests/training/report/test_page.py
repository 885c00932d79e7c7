"""report.html: one file that loads nothing, escapes everything, and shows no number that is not in report.json."""

import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.training.report.run import ODD, measure, real_report, report
from training.report import render
from training.report.page import STYLE
from training.report.values import FORMS, look_up, pointer

VOID = {"meta", "br", "link", "img", "input", "hr"}
NUMBER = re.compile(r"(?<![A-Za-z\d.,])[+−-]?\d[\d.,]*")  # not the digits of a name, as in p50 or dcnv2


class Page(HTMLParser):
    """Text nodes with the attributes of every element around them; refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, list[tuple[str, dict[str, str | None]]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> where <{self.open[-1][0]}> is open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((data, list(self.open)))

    def shown(self, tag: str) -> list[str]:
        """The whole text of each element of this kind."""
        found: dict[int, str] = {}
        for text, around in self.texts:
            for name, attributes in around:
                if name == tag:
                    found[id(attributes)] = found.get(id(attributes), "") + text
        return list(found.values())


def bound(page: Page) -> list[tuple[str, dict[str, Any]]]:
    """Each value on the page: its text, and the attributes that say where it comes from."""
    return [(text, around[-1][1]) for text, around in page.texts if around and "data-at" in around[-1][1]]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("truth", [True, False])
def test_every_number_on_the_page_is_in_the_json(seeds: int, truth: bool):
    """Bound to its place and written from it. Only ticks of an axis and the recipe, which is the JSON, are apart."""
    found = report(*(measure(seed) for seed in range(1, seeds + 1))) if truth else real_report(*range(1, seeds + 1))
    page = Page(render(found))

    for text, attributes in bound(page):
        value = look_up(found, attributes["data-at"])
        assert text == FORMS[attributes["data-form"]](value), attributes
    loose = [
        text
        for text, around in page.texts
        if NUMBER.search(text)
        and not any(tag in ("style", "pre") or "data-at" in a or a.get("class") == "tick" for tag, a in around)
    ]
    assert loose == []
    assert len(bound(page)) > 300


def test_written_numbers_say_what_the_values_are():
    """The forms themselves, by hand."""
    written = {
        ("figure", 0.72824): "0.7282",
        ("gain", 0.01236): "+0.0124",
        ("gain", -0.00514): "−0.0051",
        ("gain", -0.00001): "0.0000",
        ("share", 1.113): "111%",
        ("share", 0.0127): "1.3%",
        ("percent", 0.161): "16.1%",
        ("count", 185000): "185,000",
        ("ms", 0.05921): "0.059",
        ("ms", 2.345): "2.35",
        ("ms", 23.45): "23.4",
        ("bytes", 2_054_400): "2.1 MB",
        ("bytes", 27_400): "27.4 kB",
        ("tiny", 2.1e-07): "2.1e−07",
        ("moment", "2026-03-02T00:00:11+00:00"): "2026-03-02 00:00",
        ("ratio", 12.65): "12.7",
    }

    assert {key: FORMS[key[0]](key[1]) for key in written} == written


def test_the_answer_comes_first_and_is_honest():
    """Does the student win, by how much, against which control, at what cost."""
    said = {
        "in every seed": Page(render(report())).shown("h2")[0],
        "in one of two": Page(render(report(measure(1), measure(2, gain=-0.01)))).shown("h2")[0],
        "in none": Page(render(report(measure(1, gain=-0.01), measure(2, gain=-0.01)))).shown("h2")[0],
        "once": Page(render(report(measure(1)))).shown("h2")[0],
    }

    assert said == {
        "in every seed": "The student beats its control in 3 of 3 seeds.",
        "in one of two": "The student is ahead of its control in 1 of 2 seeds: not proven.",
        "in none": "The student does not beat its control.",
        "once": "The student is ahead of its control in the one seed that was run.",
    }


def test_names_are_escaped():
    """Teachers, values, files and descriptions are other people's text."""
    text = render(report())

    assert html.escape(ODD) in text
    assert ODD not in text.replace(html.escape(ODD), "")
    assert "<script" not in text
    assert "A log of &lt;ads&gt; &amp; clicks." in text


def test_a_name_finds_its_value_whatever_it_is_made_of():
    """JSON pointers escape their own separators."""
    tree = {"a/b": {"~c": [1, {"": 2}]}}

    assert look_up(tree, pointer("a/b", "~c", 1, "")) == 2


def test_the_page_loads_nothing():
    """No request leaves it: no addresses, no sources, no imports, no scripts."""
    text = render(report())

    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "image", "use"} == set()
    assert not any("src" in attributes for _, attributes in page.tags)
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links
    assert all(link is not None and link.startswith("#") for link in links)
    assert not re.search(r"https?:|//\w|@import|url\(", text)


def test_anchors_lead_somewhere():
    page = Page(render(report()))

    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = {(attributes["href"] or "").removeprefix("#") for _, attributes in page.tags if "href" in attributes}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)


def test_light_and_dark_define_the_same_colours():
    blocks = re.findall(r":root \{([^}]*)\}", STYLE.read_text(encoding="utf-8"))

    names = [set(re.findall(r"(--[\w-]+):", block)) for block in blocks]
    assert len(names) == 2
    assert names[0] == names[1]
    used = set(re.findall(r"var\((--[\w-]+)\)", STYLE.read_text(encoding="utf-8")))
    assert used <= names[0]


def test_every_drawing_says_what_it_is_and_has_a_table():
    page = Page(render(report()))

    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) == 3 + 4  # latency, reliability, gate, and a panel a fit
    assert all(labels)
    assert sum(tag == "table" for tag, _ in page.tags) >= len(labels)


def test_what_was_not_reached_is_listed_with_its_reason():
    page = Page(render(report(*(measure(seed, gain=0.002) for seed in (1, 2)))))

    reasons = "".join(page.shown("li"))
    assert (
        "student over the control, xAUC: by seed: +0.0022, +0.0024; its ensemble differs from the control by" in reasons
    )
    assert "What was not reached, and why" in page.shown("h3")


def test_a_real_log_shows_its_differences_and_promises_nothing():
    """No target, reached or missed: student against control, ensemble and best teacher, by seed and with spread."""
    page = Page(render(real_report(1, 2, 3)))

    assert "What was promised" not in page.shown("h2")
    assert "targets" not in "".join(page.shown("section"))
    rows = [row for row in page.shown("tr") if "student − " in row]
    for against in ("control, same rows", "ensemble (gate)", "best single teacher"):
        (row,) = [row for row in rows if f"student − {against}" in row]
        assert "±" in row
        assert re.search(r"[0-3]/3", row)


def test_what_is_not_known_is_a_dash():
    nothing = measure(1)
    nothing["test"]["student"]["gauc"] = None

    assert "–" in render(report(nothing))
    assert "None" not in render(report(nothing))
    assert "nan" not in re.sub(r"<[^>]*>", "", render(report(nothing)))


def test_the_recipe_is_shown_whole():
    found = report()

    assert json.loads(Page(render(found)).shown("pre")[0]) == found["recipe"]


def test_a_page_without_sweep_or_published_models_is_a_page():
    found = report(measure(1), sweep=None, published=[], seconds=None, world=None)

    assert "How the networks were tuned" not in render(found)
    Page(render(found))
