"""report.html: one file that loads nothing, escapes everything, and shows no number that is not in report.json."""

import html
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.training.report.run import (
    CONTROLS,
    COUNT,
    ODD,
    PREPARED,
    RECIPE,
    SEARCH,
    SWEEP,
    changed,
    figures,
    measure,
    put_tables,
    real_report,
    report,
    tables_of,
)
from training.errors import DataError
from training.recipe import load_recipe
from training.report import render, report_again, tables_before, write_report
from training.report.choices import unusual
from training.report.page import STYLE, render_search
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
    found["tables"] = tables_of(CONTROLS, COUNT)
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


def headline(*gains: float) -> str:
    """What the page says first of a student above its control by these, a seed each."""
    return Page(render(report(*(measure(seed, gain=gain) for seed, gain in enumerate(gains, start=1))))).shown("h2")[0]


def test_the_answer_comes_first_and_is_honest():
    """Does the student win, by how much, against which control, at what cost. Ahead in three of three is no win where
    the interval says that chance may have done it."""
    said = {
        "far above": headline(0.0124, 0.0124, 0.0124),
        "just above": headline(0.001, 0.009, 0.017),
        "now above, now below": headline(0.01, -0.01, 0.01),
        "far below": headline(-0.01, -0.01, -0.01),
        "in one of two": headline(0.0124, -0.01),
        "once below": headline(-0.01),
        "once": headline(0.0124),
        "twice": headline(0.0124, 0.0124),
    }

    is_open = "Whether the student beats its control is open: ahead in {} of 3 seeds, which chance may have done."
    assert said == {
        "far above": "The student beats its control.",
        "just above": is_open.format(3),
        "now above, now below": is_open.format(2),
        "far below": "The student is worse than its control.",
        "in one of two": "The student is ahead of its control in 1 of 2 seeds; fewer than three prove nothing.",
        "once below": "The student is not ahead of its control in the one seed that was run: not proven.",
        "once": "The student is ahead of its control in the one seed that was run: not proven.",
        "twice": "The student is ahead of its control in 2 of 2 seeds; fewer than three prove nothing.",
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
    assert len(names) == 3  # and in print
    assert names[0] == names[1] == names[2]
    used = set(re.findall(r"var\((--[\w-]+)\)", STYLE.read_text(encoding="utf-8")))
    assert used <= names[0]


def test_every_drawing_says_what_it_is_and_has_a_table():
    page = Page(render(report()))

    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) == 4 + 4  # latency, reliability, gate, search, and a panel a fit
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
    """No target, reached or missed: student against control, ensemble and best teacher, with interval and seeds."""
    page = Page(render(real_report(1, 2, 3)))

    assert "What was promised" not in page.shown("h2")
    assert "targets" not in "".join(page.shown("section"))
    rows = [row for row in page.shown("tr") if "student − " in row]
    for against in ("control, same rows", "ensemble (gate)", "best single teacher"):
        (row,) = [row for row in rows if f"student − {against}" in row]
        assert re.search(r"[+−]?[\d.]+ to [+−]?[\d.]+, ", row)
        assert re.search(r"[0-3]/3", row)


def test_what_is_not_known_is_a_dash():
    nothing = measure(1)
    nothing["test"]["student"]["gauc"] = None

    assert "–" in render(report(nothing))
    assert "None" not in render(report(nothing))
    assert "nan" not in re.sub(r"<[^>]*>", " ", render(report(nothing)))


def test_the_recipe_is_shown_whole():
    found = report()

    assert json.loads(Page(render(found)).shown("pre")[0]) == found["recipe"]


def test_a_page_without_sweep_or_published_models_is_a_page():
    found = report(measure(1), sweep=None, search=None, published=[], seconds=None, world=None)

    assert "How the networks were tuned" not in render(found)
    assert "How fast may the student be?" not in render(found)
    Page(render(found))


def test_a_report_of_before_is_a_page_too():
    """report.json of an earlier version lacks what was added since."""
    found = report()
    for key in ("student_less_ensemble", "kl_from_ensemble"):
        del found["answer"][key]
    del found["tables"], found["confidence"]
    del found["search"], found["choices"], found["gate"]["labels"]
    found["recipe"] = {"name": "synthetic", "source": {"kind": "synthetic"}, "student": {"fit": {"max_epochs": 30}}}

    Page(render(found))


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (0.0004, "nats away (KL), of the rows it learned from 0.0004: it knows its own labels better than"),
        (0.0019, "it has not learned its own labels either. A larger student"),
        (None, None),
    ],
)
def test_a_student_below_its_ensemble_has_its_reason_said(train: float | None, reason: str | None):
    """From rows it learned from and rows it did not; nothing where it is not below, or the run is of before."""
    found = report()
    found["answer"]["kl_from_ensemble"] = {"test": {"mean": 0.0021, "sd": None}, "train": train and {"mean": train}}

    found["answer"]["student_less_ensemble"] |= {"mean": -0.004}
    assert reason in text_of(found, "answer") if reason else "nats away" not in text_of(found, "answer")

    found["answer"]["student_less_ensemble"] |= {"mean": 0.001}
    assert "nats away" not in text_of(found, "answer")


def text_of(found: dict[str, Any], anchor: str) -> str:
    """All that a section says."""
    page = Page(render(found))
    return "".join(text for text, around in page.texts if any(a.get("id") == anchor for _, a in around))


def test_figures_as_served_stand_beside_those_of_the_log():
    """Of a log with fields that a request lacks; of another there is nothing to say."""
    served = {model: measure()["test"][model] | {"auc": 0.6789} for model in ("student", "ensemble")}
    served["teachers"] = {}

    said = text_of(report(*(measure(seed, as_served=served) for seed in (1, 2, 3))), "models")

    assert "As they are served" in said
    assert "0.6789" in said
    assert "As they are served" not in text_of(report(), "models")


def test_what_was_trained_is_said_in_words():
    said = text_of(report(), "trained")

    assert "learned by a share of 90% to imitate the ensemble’s click probabilities (soft labels)" in said
    assert "each by its own prediction (the gate)" in said
    assert "All choices of the method are the usual ones." in said
    assert "128 · 64" in said


def test_every_choice_that_is_not_the_usual_one_is_named():
    recipe = changed(
        scheme__kind="cotrain",
        gate__form="full",
        student__fit__losses={"soft": 1.0, "hint": 0.5},
        student__fit__fine_tune={"epochs": 2, "learning_rate": 0.0001},
        student__fit__auxiliary_head=True,
        merge_validation=False,
    )

    said = text_of(report(recipe=recipe), "trained")

    for expected in (
        "scheme.kind is cotrain (usual: pretrain)",
        "gate.form is full (usual: per_teacher)",
        "student.fit.losses is soft 1, hint 0.5 (usual: soft 1)",
        "student.fit.fine_tune is epochs 2, learning_rate 0.0001",
        "student.fit.auxiliary_head is true (usual: false)",
        "merge_validation is false (usual: true)",
        "Teachers, ensemble and student were trained at once",
        "(soft labels) and the teachers’ hidden layers (hints)",
        "validation rows were not learned from",
    ):
        assert expected in said
    assert "temperature" not in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("gate.form=full", [("gate.form", "full", "per_teacher")]),
        ("student.fit.temperature=2", [("student.fit.temperature", 2.0, 1.0)]),
        ("student.fit.losses={mse: 1}", [("student.fit.losses", {"mse": 1.0}, {"soft": 1.0})]),
        ("scheme=mutual", [("scheme.kind", "mutual", "pretrain")]),
        ("merge_validation=false", [("merge_validation", False, True)]),
        ("split.train_share=0.1", [("split.train_share", 0.1, 1.0)]),
        ("student.fit.learning_rate=0.5", []),
        ("description=other", []),
    ],
)
def test_a_choice_is_unusual_where_the_recipe_itself_has_another_default(
    override: str, expected: list[tuple[str, Any, Any]]
):
    """A new option of a recipe is on the page without a word said here."""
    found = unusual(load_recipe("synthetic", [override]).recipe.model_dump(mode="json"))

    assert [(one["setting"], one["value"], one["usual"]) for one in found] == expected


def test_copies_are_one_line_that_says_how_they_differ():
    recipe = changed(teachers__fm__copies={"by": "folds", "count": 3})

    assert "teachers fm, 3 copies, each without its own random part of the rows" in text_of(
        report(recipe=recipe), "trained"
    )


@pytest.mark.parametrize(
    ("ensemble", "advice"),
    [(-0.002, "there was nothing to teach"), (0.004, "the student did not learn it: a larger student")],
)
def test_a_student_that_loses_is_told_why(ensemble: float, advice: str):
    """Either the teachers know no more, or the student did not take it from them."""
    lost = [measure(seed, gain=-0.01) for seed in (1, 2, 3)]
    for one in lost:
        one["test"]["ensemble"] = figures(one["test"]["control_train_valid"]["xauc"] + ensemble)

    assert advice in text_of(report(*lost), "answer")


def test_a_share_of_nothing_certain_is_not_shown():
    unsure = [measure(seed) for seed in (1, 2, 3)]
    for one, gain in zip(unsure, (0.001, 0.011, 0.021), strict=True):
        one["test"]["ensemble"] = figures(one["test"]["control_train_valid"]["xauc"] + gain)

    assert "of what the ensemble gains over the control is kept" in text_of(report(), "answer")
    for seeds in (1, 2):
        few = text_of(report(*(measure(seed) for seed in range(1, seeds + 1))), "answer")
        assert "of what the ensemble gains" not in few
        assert "against the ensemble it imitates" in few
    assert "of what the ensemble gains" not in text_of(report(*unsure), "answer")
    assert "against the ensemble it imitates" in text_of(report(*unsure), "answer")
    assert "against the ensemble it imitates" in text_of(report(*(measure(s, gain=-0.01) for s in (1, 2, 3))), "answer")


def test_who_saw_which_rows_follows_the_recipe():
    together = text_of(report(recipe=changed(scheme__kind="cotrain", merge_validation=False)), "rows")

    assert "gate, scale, bias" in text_of(report(), "rows")
    assert "as they are served" in text_of(report(), "rows")
    assert "teachers, together with the student" in together
    assert "scale and bias of the ensemble" in together
    assert "as they are served" not in together


def test_a_learning_curve_shows_what_stopped_the_fit():
    """The distillation loss where it is more than KL, AUC where that decided; fine-tuning is another phase."""
    rows = [
        {"epoch": n, "train_loss": 0.4, "valid_kl": 0.01 / n, "valid_kd": 0.3 / n, "valid_auc": 0.7} for n in (1, 2)
    ]
    tuned = measure(1)
    tuned["fits"]["student"] = {
        "network": "dnn",
        "epochs": 2,
        "history": [*rows, {"epoch": 3, "train_loss": 0.4, "valid_kl": 0.02, "valid_auc": 0.7, "fine_tune": 1}],
    }

    by_distance = render(report(tuned))
    by_auc = render(report(tuned, recipe=changed(student__fit__stop_by="valid_auc")))

    assert "student</b> · distillation loss" in by_distance
    assert "fine-tuning on clicks alone" in by_distance
    assert "student</b> · AUC" in by_auc
    assert "line dashed" in by_auc


def test_every_table_has_a_name_and_names_its_rows():
    """A screen reader says what a table is, and which row and column a number is of; a keyboard can scroll it."""
    page = Page(render(report()))

    boxes = [attributes for tag, attributes in page.tags if attributes.get("class") == "scroll"]
    assert len(boxes) == sum(tag == "table" for tag, _ in page.tags)
    assert all(box["aria-label"] and box["role"] == "region" and box["tabindex"] == "0" for box in boxes)
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert set(scopes) == {"row", "col"}


def test_headings_go_down_one_step_at_a_time():
    levels = [int(tag[1]) for tag, _ in Page(render(report())).tags if re.fullmatch(r"h[1-6]", tag)]

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_contents_lead_to_every_section_but_the_answer():
    page = Page(render(report()))

    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    links = [text for text in (attributes.get("href") for tag, attributes in page.tags if tag == "a") if text]
    assert sections[0] == "answer"
    assert {f"#{name}" for name in sections[1:]} <= set(links)


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb, by WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_its_paper_and_marks_do_too():
    """WCAG AA: 4.5 for text, 3 for what a drawing is made of; in light, in dark and in print."""
    for block in re.findall(r":root \{([^}]*)\}", STYLE.read_text(encoding="utf-8")):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for paper in (colours["paper"], colours["raised"]):
            for name in ("ink", "soft", "s1", "s2", "s3", "yes", "no"):
                assert contrast(colours[name], paper) >= 4.5, (name, paper)
            assert contrast(colours["rest"], paper) >= 3


def test_a_search_is_shown_with_its_choice_and_by_itself():
    for text in (render(report()), render_search(SEARCH)):
        page = Page(text)
        assert "How fast may the student be?" in page.shown("h2")
        said = "".join(page.shown("section"))
        assert "The fastest student within 0.001 AUC of the best: dnn 32, dim 8." in said
        assert "failed: loss is <NaN>" in said
        assert "timed against itself, took 101%: so much is noise" in said


def test_the_page_says_what_training_each_model_took():
    """Of the student alone, and of the ensemble with all its teachers; a dash where nothing was kept."""
    (row,) = [row for row in Page(render(report())).shown("tr") if row.startswith("student") and " MB" in row]
    (ensemble,) = [row for row in Page(render(report())).shown("tr") if row.startswith("ensemble0")]

    assert row.endswith("44 s") or row.endswith("42 s")
    assert ensemble.endswith("1,260 s")
    assert "8.2 s" in text_of(report(), "cost")
    together = [{"seed": 1, "student": None, "control": 3.0, "ensemble": None, "together": 77.0, "teachers": {}}]
    assert "trained at once, in 77 s a seed" in text_of(report(measure(1), training=together), "cost")


def test_a_run_of_before_says_nothing_of_what_training_took():
    assert "Training is the time" not in text_of(report(training=()), "cost")


def test_what_else_could_explain_the_gain_is_on_the_page():
    """`ablate --table controls` of the same folder: each control with its difference, each claim with its verdict."""
    said = text_of(report(tables=tables_of(CONTROLS, COUNT)), "explains")

    for expected in (
        "DNN of itself",
        "it beats self-distillation: the other teachers matter: yes, +0.0110 (+0.0085 to +0.0135).",
        "it beats its own ensemble: open",
        "it beats every teacher: in 1 of 2 comparisons, 1 open.",
        "a DCN is best: in 1 of 2 comparisons, 1 not judged because nobody tuned a network of it.",
        "six teachers beat three: not judged, fewer than three seeds.",
        "from 3 seeds",
    ):
        assert expected in said
    assert "another recipe" not in said


def test_a_run_without_a_table_of_controls_says_nothing_of_it():
    assert 'id="explains"' not in render(report())
    assert "was not tried here" in text_of(report(tables=tables_of(COUNT)), "explains")


def test_controls_of_another_recipe_are_named_as_such():
    other = CONTROLS | {"recipe": changed(student__fit__kd_weight=0.5)}

    said = text_of(report(tables=tables_of(other)), "explains")

    assert "Trained by another recipe than this run, on the same log: student differ." in said


@pytest.mark.parametrize(
    "broken",
    [
        {"fingerprint": "cd" * 32},
        {"recipe": RECIPE | {"source": {"kind": "synthetic", "seed": 7}}},
        {"recipe": RECIPE | {"split": {"by": "time", "last_days": {"valid": 1, "test": 1}}}},
        {"claims": None, "rows": None, "table": None},
    ],
    ids=["other contents", "another log", "another split", "no table"],
)
def test_a_table_of_another_log_or_split_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: dict[str, Any]
):
    table = {key: value for key, value in (CONTROLS | broken).items() if value is not None}
    put_tables(tmp_path, controls=table)

    assert tables_before(tmp_path, RECIPE, PREPARED["fingerprint"]) is None
    assert "controls.json: " in capsys.readouterr().err


def test_a_table_of_before_that_has_no_fingerprint_is_taken_by_its_recipe(tmp_path: Path):
    put_tables(tmp_path, controls={key: value for key, value in CONTROLS.items() if key != "fingerprint"})

    assert tables_before(tmp_path, RECIPE, PREPARED["fingerprint"])["controls"]["rows"]


def test_a_report_of_before_is_judged_again_as_this_version_judges(tmp_path: Path):
    """Its headline said "wins" of three seeds out of three; its differences had no interval."""
    found = report(*(measure(seed, gain=gain) for seed, gain in enumerate((0.001, 0.009, 0.017), start=1)))
    found["answer"] |= {"verdict": "wins", "kept_of_ensemble_gain": 2.0, "kept_is_sure": True}
    for pair in found["differences"]:
        for metric in pair["metrics"].values():
            del metric["low"], metric["high"], metric["error"]
    del found["tables"], found["confidence"]
    (tmp_path / "report.json").write_text(json.dumps(found))
    put_tables(tmp_path, controls=CONTROLS)

    page = Page(report_again(tmp_path).read_text())

    assert page.shown("h2")[0].startswith("Whether the student beats its control is open: ahead in 3 of 3 seeds")
    assert "What else could explain the gain" in page.shown("h2")


def test_a_report_is_written_again_with_what_was_found_since(tmp_path: Path):
    write_report(tmp_path, report(sweep=None, search=None))
    (tmp_path / "search.json").write_text(json.dumps(SEARCH))
    elsewhere = SWEEP | {"recipe": {"source": {"kind": "files"}}}
    (tmp_path / "sweep.json").write_text(json.dumps(elsewhere))

    page = report_again(tmp_path)

    assert "How fast may the student be?" in page.read_text()
    assert "How the networks were tuned" not in page.read_text()
    assert json.loads((tmp_path / "report.json").read_text())["search"] == SEARCH


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"answer": 1, "recipe": {}}'])
def test_what_is_no_report_is_refused_in_words(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "report.json").write_text(content)

    with pytest.raises(DataError, match=r"report\.json"):
        report_again(tmp_path)


@pytest.mark.parametrize("ships", ["quantized", "float32"])
def test_a_graph_in_smaller_numbers_is_shown_with_what_was_decided(ships: str):
    """Both graphs' figures, and where it was refused why; a run that asked for none says nothing of it."""
    graph = {
        "metrics": {"auc": 0.7, "logloss": 0.4, "ece": 0.01, "predicted_over_actual": 1.0},
        "bytes": 1000,
        "latency": {count: {"p50_ms": 0.1, "p99_ms": 0.2} for count in ("1", "50", "200")},
    }
    reasons = [] if ships == "quantized" else ["AUC: 0.7 in float32 <b>"]
    found = {"ships": ships, "reasons": reasons, "layers": "int8", "tables": "float32", "rows": 2000}
    tree = report(measure(1)) | {"quantization": {"student": {**found, "float32": graph, "quantized": graph}}}

    page = render(tree)

    assert "In smaller numbers" in page
    assert ("It ships" in page) == (ships == "quantized")
    assert ("AUC: 0.7 in float32 &lt;b&gt;" in page) == (ships == "float32")
    assert "In smaller numbers" not in render(report(measure(1)))
