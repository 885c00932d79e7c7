"""The tables: which rows each has, what a row is compared with, and what the paper claims of them.

`schemes`, `teachers` and `count` have the shape of the paper's Tables 2, 3 and 4; `baselines` that of its overall
comparison; `gates`, `stopping`, `controls` and `data` are ours. A row is a recipe (as overrides of the one at hand)
and a model of it. Rows that have teachers, control or student in common share them: a step is done once.

3T is DeepFM, DCN and xDeepFM, as in the paper; 6T adds FiBiNET, IPNN and AutoInt+. D is one network on different parts
of the rows, S one network from different seeds. "no KD" is the control: the student's network on clicks, on the same
rows, with a student's budget of epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np

from training.ablate.variations import Variations
from training.data.encoded_log import EncodedLog, Part
from training.distillation.gate import Form
from training.distillation.shares import DAY_US, By
from training.recipe import NOT_OF_MUTUAL
from training.zoo import NETWORKS

THREE = ("deepfm", "dcn", "xdeepfm")
SIX = (*THREE, "fibinet", "ipnn", "autoint")
STUDENTS = ("dnn", "deepfm", "dcn", "xdeepfm")
HINT_WEIGHTS = (0.01, 0.1, 1.0)
COTRAINED_HINT = "hint x 0.1"
"""The one that is co-trained too: that takes a teacher's time for each row."""
REPEATED = "dcn"
"""The network that D and S repeat, and 1T: the paper's on Avazu."""
TITLES = {
    "lr": "LR",
    "fm": "FM",
    "ffm": "FFM",
    "dnn": "DNN",
    "widedeep": "Wide&Deep",
    "ipnn": "IPNN",
    "nfm": "NFM",
    "deepfm": "DeepFM",
    "dcn": "DCN",
    "xdeepfm": "xDeepFM",
    "fibinet": "FiBiNET",
    "autoint": "AutoInt+",
    "dcnv2": "DCN-V2",
    "finalmlp": "FinalMLP",
    "gdcn": "GDCN",
    "onn": "ONN",
    "din": "DIN",
}


@dataclass(frozen=True)
class LogFacts:
    """What a table needs to know of the log."""

    has_history: bool
    """Whether the context has a sequence for DIN to attend to."""
    train_days: int
    """Days that training rows fall on."""

    @classmethod
    def of(cls, log: EncodedLog) -> LogFacts:
        """Of a prepared log."""
        days = np.unique(log.time[log.rows([Part.TRAIN])] // DAY_US)
        return cls(any(spec.is_sequence and spec.side == "context" for spec in log.fields), len(days))


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    cells: tuple[str, ...]
    """What it says under the table's heads; unique in its table."""
    settings: tuple[str, ...]
    """Overrides of the recipe."""
    model: str
    """Which of that recipe's models: a key of `pipeline.SeedSteps.fits`."""
    against: tuple[str, ...] | None = None
    """The row that it is compared with, seed by seed."""
    ensemble: tuple[str, ...] | None = None
    """A student's ensemble: how much of its gain over `against` the student has."""

    def uses(self, networks: Collection[str]) -> bool:
        """Whether one of these networks is among those that the row trains, beside the recipe's own."""
        zoo, _, name = self.model.partition(".")
        if zoo == "zoo":
            return name in networks
        return any(f'"network": "{network}"' in setting for network in networks for setting in self.settings)

    def is_student(self, networks: Collection[str]) -> bool:
        """Whether its model is a student of one of these networks, in place of the recipe's own."""
        own = [setting for setting in self.settings if self.model == "student" and setting.startswith("student={")]
        return any(f'"network": "{network}"' in setting for network in networks for setting in own)


@dataclass(frozen=True)
class Claim:
    """A sentence that pairs of rows bear out: in each, the first has the higher AUC."""

    text: str
    pairs: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@dataclass(frozen=True)
class Table:
    """Rows to be filled."""

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def without(self, left_out: Collection[tuple[str, ...]]) -> Table:
        """The same but for these rows, and for all that is said of them."""

        def kept(other: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if other in left_out else other

        rows = [row for row in self.rows if row.cells not in left_out]
        claims = [
            Claim(claim.text, tuple(pair for pair in claim.pairs if not set(pair) & set(left_out)))
            for claim in self.claims
        ]
        return replace(
            self,
            rows=tuple(replace(row, against=kept(row.against), ensemble=kept(row.ensemble)) for row in rows),
            claims=tuple(claim for claim in claims if claim.pairs),
        )


def baselines(vary: Variations, log: LogFacts) -> Table:
    """Every network by itself, and what distillation makes of two of them."""
    names = [name for name in NETWORKS if name != "din" or log.has_history]
    alone = vary.zoo(names)
    teachers = vary.teachers(THREE)
    rows = [Row((TITLES[name], "clicks"), tuple(alone), f"zoo.{name}") for name in names]
    rows.append(Row(("3T ensemble", "clicks"), tuple(teachers), "ensemble"))
    for name in ("dnn", "dcn"):
        settings = (*teachers, *vary.student(name))
        control = (TITLES[name], "clicks, a student's epochs")
        rows.append(Row(control, settings, "control"))
        rows.append(Row((TITLES[name], "3T"), settings, "student", control, ("3T ensemble", "clicks")))
    others = [row.cells for row in rows if row.model.startswith("zoo.")]
    claims = [
        Claim(
            f"the student {TITLES[name]} is above every network alone", tuple(((TITLES[name], "3T"), o) for o in others)
        )
        for name in ("dnn", "dcn")
    ]
    return Table(
        "baselines", "All networks, alone and as students", ("network", "learns from"), tuple(rows), tuple(claims)
    )


def schemes(vary: Variations, log: LogFacts) -> Table:
    """The paper's Table 2, and 3T with its one-stage rival."""
    own = vary.recipe.student.network
    control = ("none", "no KD", "")
    rows = [Row(control, (), "control")]
    losses = {
        "soft": "{soft: 1.0}",
        **{f"hint x {weight:g}": f"{{hint: {weight:g}}}" for weight in HINT_WEIGHTS},
        "soft + hint": "{soft: 1.0, hint: 0.1}",
        "mse": "{mse: 1.0}",
    }
    hints = [loss for loss in losses if loss.startswith("hint")]
    for title, teachers in [*((TITLES[name], [name]) for name in THREE), ("3T", list(THREE))]:
        wanted = list(losses) if title == "3T" else ["soft", *hints]
        for loss in wanted:
            for scheme in ["pretrain"] if loss in hints and loss != COTRAINED_HINT else ["pretrain", "cotrain"]:
                settings = (*vary.teachers(teachers), f"student.fit.losses={losses[loss]}", f"scheme={scheme}")
                rows.append(Row((title, loss, scheme), settings, "student", control))
    # As its authors weigh it, and without the settings of losses that it does not have.
    mutual = ("scheme=mutual", "student.fit.kd_weight=0.5", *(f"student.fit.{name}=null" for name in NOT_OF_MUTUAL))
    rows.append(Row(("3T", "mutual", "one stage"), (*vary.teachers(THREE), *mutual), "student", control))
    best = [
        ((title, "soft", "pretrain"), (title, loss, scheme))
        for title in [*(TITLES[name] for name in THREE), "3T"]
        for loss, scheme in (("soft", "cotrain"), *((hint, "pretrain") for hint in hints), (COTRAINED_HINT, "cotrain"))
    ]
    claims = (
        Claim("soft label with pre-train is best (Table 2), beside hints of any weight here", tuple(best)),
        Claim("every way of distilling beats none (Table 2)", tuple((row.cells, control) for row in rows[1:])),
        Claim(
            "soft label with pre-train beats mutual co-training (not in the paper)",
            ((("3T", "soft", "pretrain"), ("3T", "mutual", "one stage")),),
        ),
    )
    weight = vary.recipe.student.fit.kd_weight
    notes = (
        f"distillation weighs {weight:g} whatever the loss, as the recipe has it for its own, and mutual learning .5 "
        "as its authors have it. Hints are a squared distance, whose size is that of hidden layers: they are shown at "
        f"weights of {', '.join(f'{weight:g}' for weight in HINT_WEIGHTS)}, of which nobody chose",
    )
    heads = ("teacher", "loss", "scheme")
    return Table("schemes", f"Losses and schemes, student {TITLES[own]}", heads, tuple(rows), claims, notes)


def teachers(vary: Variations, log: LogFacts) -> Table:
    """The paper's Table 3: who teaches whom."""
    rows, by_any, three_best = [], [], []
    for name in STUDENTS:
        student = vary.student(name)
        control = (TITLES[name], "no KD")
        rows.append(Row(control, tuple(student), "control"))
        for title, taught_by in [*((TITLES[teacher], [teacher]) for teacher in STUDENTS), ("3T", list(THREE))]:
            cells = (TITLES[name], title)
            rows.append(Row(cells, (*vary.teachers(taught_by), *student), "student", control))
            by_any.append((cells, control))
            if title != "3T":
                three_best.append(((TITLES[name], "3T"), cells))
    claims = (
        Claim("every student beats itself without a teacher (Table 3)", tuple(by_any)),
        Claim("three teachers are better than any one of them (Table 3)", tuple(three_best)),
        Claim("a DNN taught by a DNN beats the DNN (Table 3)", ((("DNN", "DNN"), ("DNN", "no KD")),)),
        Claim("the best student of 3T is a DCN (Table 3, Avazu)", ((("DCN", "3T"), ("DNN", "3T")),)),
    )
    return Table("teachers", "Students by teachers", ("student", "teacher"), tuple(rows), claims)


def count(vary: Variations, log: LogFacts) -> Table:
    """The paper's Table 4: how many teachers, and what makes them differ."""
    parted: list[By] = ["folds", "bags", "disjoint"]
    if log.train_days >= 3:
        parted += ["days", "leave_one_out"]
    kinds: list[tuple[str, list[str]]] = [
        (f"1T, {TITLES[REPEATED]}", vary.teachers([REPEATED])),
        ("3T(M)", vary.teachers(THREE)),
        ("3T(S)", vary.copies(REPEATED, "seeds", 3)),
        *((f"3T(D), {by}", vary.copies(REPEATED, by, 3)) for by in parted),
        ("6T(M)", vary.teachers(SIX)),
        ("6T(S)", vary.copies(REPEATED, "seeds", 6)),
        ("6T(D), folds", vary.copies(REPEATED, "folds", 6)),
    ]
    control = ("no KD", "student")
    rows = [Row(control, (), "control")]
    for title, settings in kinds:
        rows.append(Row((title, "ensemble"), tuple(settings), "ensemble", control))
        rows.append(Row((title, "student"), tuple(settings), "student", control, (title, "ensemble")))
        if "(D)" in title:
            everyone = (*settings, "student.fit.taught_by=all")
            rows.append(Row((title, "student of all"), everyone, "student", control, (title, "ensemble")))
    named = dict(kinds)
    claims = (
        Claim(
            "the student beats its own ensemble (Table 4, all eight cells)",
            tuple(((title, "student"), (title, "ensemble")) for title in named if not title.startswith("1T")),
        ),
        Claim(
            "different data beats different networks (Table 4, D over M)",
            ((("3T(D), folds", "student"), ("3T(M)", "student")), (("6T(D), folds", "student"), ("6T(M)", "student"))),
        ),
        Claim(
            "six teachers beat three (Table 4, at most .0007)",
            ((("6T(M)", "student"), ("3T(M)", "student")), (("6T(D), folds", "student"), ("3T(D), folds", "student"))),
        ),
        Claim("three teachers beat one (Table 4)", ((("3T(M)", "student"), (f"1T, {TITLES[REPEATED]}", "student")),)),
        Claim(
            "labels by teachers that did not see the row are better than by all (not in the paper)",
            tuple(((title, "student"), (title, "student of all")) for title in named if "(D)" in title),
        ),
    )
    notes = (
        "of 3T(D) and 6T(D), the student is labelled by the teachers that did not learn from a row, "
        "the student of all by every teacher",
    )
    return Table(
        "count", "How many teachers, and what makes them differ", ("teachers", "model"), tuple(rows), claims, notes
    )


def gates(vary: Variations, log: LogFacts) -> Table:
    """What the ensemble's weights depend on, which rows they are learned from, and by which loss."""
    six = (*vary.teachers(SIX), "scheme=pretrain")  # only there a gate comes after its teachers
    control = ("no KD", "", "student")
    rows = [Row(control, (), "control")]
    average = ("average", "", "ensemble")
    forms: list[Form] = list(get_args(Form))
    for form in forms:
        for learns_on in ["held_out"] if form == "average" else ["held_out", "train"]:
            settings = (*six, *_gate(form, learns_on=learns_on))
            rows_of = "" if form == "average" else learns_on.replace("_", " ")
            ensemble = (form, rows_of, "ensemble")
            rows.append(Row(ensemble, settings, "ensemble", average if form != "average" else None))
            rows.append(Row((form, rows_of, "student"), settings, "student", control, ensemble))
    for loss in ("distillation", "divergence"):
        settings = (*six, *_gate("per_teacher", learns_by=loss))
        ensemble = ("per_teacher", f"held out, by {loss}", "ensemble")
        rows.append(Row(ensemble, settings, "ensemble", average))
        rows.append(Row((*ensemble[:2], "student"), settings, "student", control, ensemble))
    mixed = (*six, *_gate("per_teacher"), "student.fit.aggregate=probabilities")
    rows.append(
        Row(
            ("per_teacher", "held out", "student of sum_i alpha_i L_KD"),
            mixed,
            "student",
            control,
            ("per_teacher", "held out", "ensemble"),
        )
    )
    learned = [form for form in forms if form != "average"]
    claims = (
        Claim(
            "the gate beats the average (held-out rows; not shown in the paper)",
            tuple(((form, "held out", "ensemble"), average) for form in learned),
        ),
        Claim(
            "a gate learns better from held-out rows than from training rows (not in the paper)",
            tuple(((form, "held out", "ensemble"), (form, "train", "ensemble")) for form in learned),
        ),
        Claim(
            "a gate learns better from clicks than from the distillation loss, or that less entropy (not in the paper)",
            tuple(
                (("per_teacher", "held out", "ensemble"), ("per_teacher", f"held out, by {loss}", "ensemble"))
                for loss in ("distillation", "divergence")
            ),
        ),
    )
    notes = (
        "by distillation: the loss of a student that learned from the average, as a gate would learn that the "
        "student's gradient reaches; by divergence: that loss less the ensemble's entropy",
    )
    return Table("gates", "Gates of 6T(M)", ("gate", "learns on", "model"), tuple(rows), claims, notes)


def _gate(form: Form, *, learns_on: str = "held_out", learns_by: str = "clicks") -> tuple[str, ...]:
    """That gate, whether it beats the average or not; what the recipe says of it beside stays."""
    settings = {"form": form, "learns_on": learns_on, "learns_by": learns_by, "fallback": "false"}
    return tuple(f"gate.{name}={value}" for name, value in settings.items())


def stopping(vary: Variations, log: LogFacts) -> Table:
    """What stops a student, and what merging validation rows is worth."""
    teachers_ = vary.teachers(THREE)
    rows, ways = [], {"kd": "distillation loss, held out", "valid_auc": "validation AUC"}
    for merged in ("no", "yes"):
        merge = f"merge_validation={'true' if merged == 'yes' else 'false'}"
        control = ("no KD", "validation AUC", merged)
        rows.append(Row(control, (merge,), "control"))
        for stop_by, title in ways.items():
            settings = (*teachers_, merge, f"student.fit.stop_by={stop_by}")
            rows.append(Row(("3T", title, merged), settings, "student", control))
    kd, auc = ways["kd"], ways["valid_auc"]
    claims = (
        Claim(
            "stopping by the distillation loss, which needs no labels, is better than by AUC",
            tuple((("3T", kd, merged), ("3T", auc, merged)) for merged in ("no", "yes")),
        ),
        Claim(
            "merging validation rows helps (Table 3 less Table 2: Avazu +.0016 to +.0031, Criteo 0)",
            ((("3T", kd, "yes"), ("3T", kd, "no")), (("no KD", auc, "yes"), ("no KD", auc, "no"))),
        ),
    )
    heads = ("teachers", "stopped by", "validation merged")
    return Table("stopping", "When to stop, and merging validation rows", heads, tuple(rows), claims)


def controls(vary: Variations, log: LogFacts) -> Table:
    """The recipe's own student beside everything that could explain its gain."""
    own = TITLES[vary.recipe.student.network]
    trained = (f"{own}, clicks of train",)
    fair = (f"{own}, clicks of train + validation",) if vary.recipe.merge_validation else trained
    taught, itself, plain = (f"{own} of the ensemble",), (f"{own} of itself",), (f"{own} of the plain average",)
    ensemble, average = ("ensemble",), ("plain average",)
    alone = [Row((f"teacher {name}",), (), f"teachers.{name}") for name in vary.recipe.teacher_names]
    rows = (
        *([Row(trained, ("merge_validation=false",), "control")] if vary.recipe.merge_validation else []),
        Row(fair, (), "control"),
        Row(itself, tuple(vary.self_taught()), "student", fair),
        Row(plain, ("gate.form=average", "gate.learns_by=clicks"), "student", fair, average),
        Row(taught, (), "student", fair, ensemble),
        Row(average, (), "average", fair),
        Row(ensemble, (), "ensemble", fair),
        *alone,
    )
    claims = (
        Claim("the student beats the same network on clicks of the same rows", ((taught, fair),)),
        Claim("it beats self-distillation: the other teachers matter", ((taught, itself),)),
        Claim("it beats every teacher", tuple((taught, row.cells) for row in alone)),
        Claim("the gate's student beats the plain average's", ((taught, plain),)),
        Claim("it beats its own ensemble", ((taught, ensemble),)),
    )
    return Table("controls", "What else could explain the gain", ("model",), rows, claims)


def data(vary: Variations, log: LogFacts) -> Table:
    """The recipe's own models on less data."""
    rows, pairs, all_of_it = [], [], vary.recipe.split.train_share
    for percent in (10, 30, 100):
        # Validation rows would be added whole to each: a third of the largest log here, and most of the smallest.
        settings: tuple[str, ...] = ("merge_validation=false",)
        if percent < 100:
            settings += (f"split.train_share={all_of_it * percent / 100:g}",)
        share = f"{percent}%"
        control, ensemble, student = (share, "no KD"), (share, "ensemble"), (share, "student")
        rows += [
            Row(control, settings, "control"),
            Row(ensemble, settings, "ensemble", control),
            Row(student, settings, "student", control, ensemble),
        ]
        pairs.append((student, control))
    claims = (Claim("distillation helps at every size of the log (not in the paper)", tuple(pairs)),)
    notes = (
        "settings as tuned on all rows; validation and test rows are the same throughout, and nobody learns from "
        "validation rows but gate and calibration",
    )
    return Table("data", "Less data", ("training rows", "model"), tuple(rows), claims, notes)


TABLES: dict[str, Callable[[Variations, LogFacts], Table]] = {
    "baselines": baselines,
    "schemes": schemes,
    "teachers": teachers,
    "count": count,
    "gates": gates,
    "stopping": stopping,
    "controls": controls,
    "data": data,
}


def table(name: str, vary: Variations, log: LogFacts) -> Table:
    """A table by its name. Every row it compares with is one of its own."""
    found = TABLES[name](vary, log)
    there = {row.cells for row in found.rows}
    assert len(there) == len(found.rows), name
    named: Sequence[tuple[str, ...] | None] = [
        *(other for row in found.rows for other in (row.against, row.ensemble)),
        *(side for claim in found.claims for pair in claim.pairs for side in pair),
    ]
    assert {cells for cells in named if cells is not None} <= there, name
    return found
