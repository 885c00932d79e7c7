"""Measures of every seed -> the tree that is report.json.

    test, train, before_refit   {model: [{seed, auc, logloss, ...}], teachers: {name: [...]}}, one entry a seed
    summary                     the same with mean, sd, least and most over seeds
    differences                 one model against another, seed by seed
    answer                      what a reader wants first
    targets                     what the recipe `synthetic` promises; empty for others
    training_seconds            what training each model took, by model; null of a run of before
    cost, conditions            milliseconds of session.run, sizes; on what machine
    quantization                of a graph in smaller numbers, by model: both graphs' figures, which ships, why
    recipe, choices, overrides  what was trained, what of it is not the default, what the command line set
    data, parts, fields         on what
    calibration, gate, curves   why it came out so

Units: AUCs and losses as they are, shares from 0 to 1, times in milliseconds or seconds. What is not defined is null.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from training.ablate.paired import CONFIDENCE, paired, share_of_gap, verdict
from training.data.split import PART_NAMES, UNLABELLED_NAMES
from training.report.choices import unusual
from training.report.targets import find_difference, judge

Tree = dict[str, Any]

FORMAT_VERSION = 1
MODELS = ("student", "control_train_valid", "control_train", "average", "ensemble")
SECTIONS = ("test", "train", "before_refit")
LOWER_IS_BETTER = frozenset({"logloss", "xlogloss", "normalised_entropy", "ece", "xece"})
COMPARED = ("auc", "xauc", "logloss", "xlogloss", "normalised_entropy", "gauc", "ece")
PAIRS = (
    ("student", "control_train_valid"),
    ("student", "control_train"),
    ("student", "best_teacher"),
    ("student", "average"),
    ("student", "ensemble"),
    ("ensemble", "control_train_valid"),
    ("ensemble", "best_teacher"),
    ("ensemble", "average"),
    ("average", "best_teacher"),
    ("best_teacher", "control_train_valid"),
    ("control_train_valid", "control_train"),
)
COUNTS = ("1", "50", "200")
VERDICTS = {"holds": "wins", "does not hold": "loses", "open": "open"}
"""What `ablate` says of a claim, in the words of the headline."""


def build_report(
    measures: Sequence[Mapping[str, Any]],
    *,
    recipe: Mapping[str, Any],
    prepared: Mapping[str, Any],
    costs: Mapping[str, Any],
    published: Sequence[Mapping[str, Any]],
    world: Mapping[str, Any] | None = None,
    sweep: Any = None,
    search: Any = None,
    tables: Any = None,
    seconds: float | None = None,
    training: Sequence[Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
) -> Tree:
    """The report of one run: `measures` are measure.json of each seed, `prepared` the prepare step's report.json,
    `costs` the export step's cost.json, `world` what the best possible model would reach where that is known.

    `sweep` and `search` are sweep.json and search.json as they were written, `tables` what `tables_before` found.
    `seconds` is how long this run took, cached steps left out; `training` what each network's training took, a seed
    each (`took.training_seconds`); `overrides` what the command line set in the recipe.
    """
    sections = {section: _by_model(measures, section) for section in SECTIONS}
    summary = {section: _summary(models) for section, models in sections.items()}
    headline = "xauc" if summary["test"]["student"].get("xauc") else "auc"
    loss = "xlogloss" if headline == "xauc" else "logloss"
    best_teacher = _best_teacher(summary["test"], headline)
    differences = _differences(sections["test"], best_teacher)
    report: Tree = {
        "format_version": FORMAT_VERSION,
        "name": recipe.get("name", ""),
        "description": recipe.get("description", ""),
        "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "seeds": [measure["seed"] for measure in measures],
        "seconds": None if seconds is None else round(seconds, 1),
        "headline": {"auc": headline, "logloss": loss},
        "best_teacher": best_teacher,
        **sections,
        "summary": summary,
        "bayes": {"test": measures[0].get("truth"), "log": dict(world) if world else None},
        "differences": differences,
        "candidates": [int(count) for count in COUNTS],
        "cost": costs["cost"],
        "training_seconds": _training(training),
        "conditions": costs["conditions"],
        "parity_error": costs.get("parity_error", {}),
        "quantization": costs.get("quantization", {}),
        "published": [dict(model) for model in published],
        "parts": _parts(prepared),
        "data": _data(prepared),
        "fields": _fields(prepared),
        "calibration": _calibration(measures, summary),
        "gate": _gate(measures),
        "curves": _curves(measures),
        "kl_ensemble_student": [measure["kl_ensemble_student"] for measure in measures],
        "kl_ensemble_student_train": [measure.get("kl_ensemble_student_train") for measure in measures],
        "sweep": sweep,
        "search": search,
        "tables": tables,
        "recipe": dict(recipe),
        "choices": unusual(recipe),
        "overrides": list(overrides),
    }
    if all("as_served" in measure for measure in measures):  # the log has fields that a request does not
        report["as_served"] = _by_model(measures, "as_served")
        summary["as_served"] = _summary(report["as_served"])
    return report | _judged(report)


def _by_model(measures: Sequence[Mapping[str, Any]], section: str) -> Tree:
    """{model: [{seed, ...}], teachers: {name: [...]}} from one section of every seed."""
    found: Tree = {}
    teachers: Tree = {}
    for measure in measures:
        for model, figures in measure[section].items():
            if model == "teachers":
                for name, of_teacher in figures.items():
                    teachers.setdefault(name, []).append({"seed": measure["seed"], **of_teacher})
            else:
                found.setdefault(model, []).append({"seed": measure["seed"], **figures})
    ordered = {model: found[model] for model in MODELS if model in found}
    return ordered | {"teachers": teachers}


def _summary(models: Mapping[str, Any]) -> Tree:
    flat = {model: _spreads(seeds) for model, seeds in models.items() if model != "teachers"}
    return flat | {"teachers": {name: _spreads(seeds) for name, seeds in models["teachers"].items()}}


def _spreads(seeds: Sequence[Mapping[str, Any]]) -> Tree:
    return {metric: _spread(entry[metric] for entry in seeds) for metric in seeds[0] if metric != "seed"}


def _spread(values: Iterable[float | None]) -> Tree | None:
    """mean, sd (null for one seed), least, most; null where a seed left the figure undefined."""
    found = list(values)
    if not found or any(value is None for value in found):
        return None
    numbers = [float(value) for value in found if value is not None]
    sd = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "sd": sd, "least": min(numbers), "most": max(numbers)}


def _best_teacher(test: Mapping[str, Any], metric: str) -> str | None:
    """Chosen by its test figure: the teacher's best case, so the student's hardest comparison."""
    known = {name: found[metric]["mean"] for name, found in test["teachers"].items() if found.get(metric)}
    return max(known, key=lambda name: known[name]) if known else None


def _differences(test: Mapping[str, Any], best_teacher: str | None) -> list[Tree]:
    """model minus against, seed by seed, for every metric both have."""
    sides = {**test, "best_teacher": test["teachers"].get(best_teacher)}
    found = []
    for model, against in PAIRS:
        one, other = sides.get(model), sides.get(against)
        if not one or not other:
            continue
        metrics = {
            metric: _difference(metric, one, other)
            for metric in COMPARED
            if all(entry.get(metric) is not None for entry in (*one, *other))
        }
        found.append({"model": model, "against": against, "metrics": metrics})
    return found


def _difference(metric: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Tree:
    """By `ablate`'s own rule, so that report and tables agree: its interval is Student's t over seeds."""
    found = paired([entry[metric] for entry in ours], [entry[metric] for entry in theirs])
    by_seed = found["by_seed"]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return {
        **(_spread(by_seed) or {}),
        **found,
        "better_in": sum(sign * value > 0 for value in by_seed),
        "of": len(by_seed),
    }


def judged_again(report: Mapping[str, Any]) -> Tree:
    """A report of before with its intervals and what they say as this version judges, from its own figures by seed."""
    found = {**report, "differences": _differences(report["test"], report["best_teacher"])}
    return found | _judged(found)


def _judged(report: Mapping[str, Any]) -> Tree:
    """`answer` and `targets`."""
    answer = _answer(report)
    targets = judge({**report, "answer": answer})
    reached = sum(target["reached"] for target in targets)
    return {
        "confidence": CONFIDENCE,
        "answer": answer | {"targets": len(targets), "targets_reached": reached},
        "targets": targets,
    }


def _answer(report: Mapping[str, Any]) -> Tree:
    """Does the student win, by how much, against which control, at what cost."""
    headline, loss = report["headline"]["auc"], report["headline"]["logloss"]
    against = "control_train_valid" if "control_train_valid" in report["test"] else "control_train"
    gain = find_difference(report, "student", against, headline)
    ensemble = find_difference(report, "ensemble", against, headline)
    cost = report["cost"]
    return {
        "seeds": len(report["seeds"]),
        "against": against,
        "verdict": _verdict(_first(gain)),
        "gain": None if gain is None else gain[0],
        "logloss": _first(find_difference(report, "student", against, loss)),
        "ensemble_gain": _first(ensemble),
        "kept_of_ensemble_gain": share_of_gap(gain[0], ensemble[0]) if gain and ensemble else None,
        "student_less_ensemble": _first(find_difference(report, "student", "ensemble", headline)),
        "kl_from_ensemble": {
            "test": _spread(report["kl_ensemble_student"]),
            "train": _spread(report.get("kl_ensemble_student_train") or ()),
        },
        "times_cheaper_than_ensemble": {
            count: cost["ensemble"][count]["p50_ms"] / cost["student"][count]["p50_ms"] for count in COUNTS
        },
    }


def _verdict(gain: Tree | None) -> str:
    """wins or loses: the 95% interval over seeds lies above zero, or below. open: on both sides. few: too few seeds to
    say (`paired.LEAST_SEEDS`), whatever they say. unknown: nothing to compare."""
    if gain is None:
        return "unknown"
    said = verdict(gain)
    return "few" if said is None else VERDICTS[said]


def _training(seeds: Sequence[Mapping[str, Any]]) -> Tree | None:
    """Seconds by model: spreads over seeds, null where a seed lacks the figure."""
    if not seeds:
        return None
    models = ("student", "control", "ensemble", "together")
    found: Tree = {model: _spread(seed[model] for seed in seeds) for model in models}
    return found | {
        "teachers": {name: _spread(seed["teachers"][name] for seed in seeds) for name in seeds[0]["teachers"]}
    }


def _first(found: tuple[Tree, str] | None) -> Tree | None:
    return None if found is None else found[0]


_PARTS = tuple(PART_NAMES.values())


def _parts(prepared: Mapping[str, Any]) -> list[Tree]:
    return [
        {
            "part": name,
            "rows": prepared["rows"].get(name, 0),
            "click_rate": prepared["label_rate"].get(name),
            "level_noise": _level_noise(prepared["rows"].get(name, 0), prepared["label_rate"].get(name)),
            "first": prepared["first_time"].get(name) or None,
            "last": prepared["last_time"].get(name) or None,
        }
        for name in _PARTS
    ]


def _unlabelled(rows: Mapping[str, int]) -> Tree:
    """How many rows had no click to learn, where there are any."""
    found = {name: rows[name] for name in UNLABELLED_NAMES.values() if name in rows}
    return (
        {"unlabelled_rows": {"taught": found["unlabelled"], "stopped": found.get("unlabelled_stop", 0)}}
        if found
        else {}
    )


def _level_noise(rows: int, click_rate: float | None) -> float | None:
    """Relative standard deviation of the number of clicks among so many impressions, by the chance of clicks alone.

    That of independent clicks at one rate, sqrt((1 - p) / (n p)): a bound, because rates that vary give less.
    """
    return math.sqrt((1 - click_rate) / (rows * click_rate)) if rows and click_rate else None


def _data(prepared: Mapping[str, Any]) -> Tree:
    """Files by name alone: a report is sent around, and a path says things about a machine."""
    return {
        "files": [PurePath(file).name for file in prepared["files"]],
        "fingerprint": prepared["fingerprint"],
        "rows": sum(count for part, count in prepared["rows"].items() if part in _PARTS),
        "unused_rows": prepared["rows"].get("unused", 0),
        **_unlabelled(prepared["rows"]),
        "bad_rows": prepared["bad_rows"],
        "bad_cells": {field: fault["count"] for field, fault in prepared["bad_cells"].items()},
    }


def _fields(prepared: Mapping[str, Any]) -> list[Tree]:
    return [
        {
            "field": name,
            "ids": size,
            "missing_in_train": prepared["missing"].get(name, {}).get("train"),
            "missing_in_test": prepared["missing"].get(name, {}).get("test"),
            "unknown_in_test": prepared["unknown"].get(name, {}).get("test"),
        }
        for name, size in prepared["vocabulary"].items()
    ]


def _calibration(measures: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Tree:
    """Platt by model and seed, reliability bins of the first seed, and figures before and after the refit."""
    before_after = {}
    for model in ("student", "ensemble", "average"):
        before, after = summary["before_refit"].get(model), summary["test"].get(model)
        if before and after:
            before_after[model] = {
                metric: {"before": before[metric], "after": after[metric]}
                for metric in ("ece", "ece_floor", "xece", "predicted_over_actual", "logloss")
                if before.get(metric) and after.get(metric)
            }
    first = measures[0]
    return {
        "platt": {
            model: [
                {"seed": measure["seed"], "scale": scale, "bias": bias}
                for measure in measures
                for scale, bias in [measure["platt"][model]]
            ]
            for model in first["platt"]
            if model != "teachers"
        },
        "reliability": {model: bins for model, bins in first["reliability"].items() if model != "teachers"},
        "before_after_refit": before_after,
    }


def _gate(measures: Sequence[Mapping[str, Any]]) -> Tree:
    """Mean weights over seeds; the choice and its evidence of each; segments of the first seed, which is exported."""
    first = measures[0]["gate"]
    return {
        "teachers": first["teachers"],
        "mean_weights": {
            name: _spread(measure["gate"]["mean_weights"][name] for measure in measures) for name in first["teachers"]
        },
        "by_seed": [
            {
                "seed": measure["seed"],
                "chosen": measure["gate"]["gate"]["chosen"],
                "scale": measure["gate"]["gate"]["scale"],
                "bias": measure["gate"]["gate"]["bias"],
                **measure["gate"]["evidence"],
            }
            for measure in measures
        ],
        "by_segment": first["by_segment"],
        "labels": [{"seed": measure["seed"], **measure["gate"].get("labels", {})} for measure in measures],
    }


def _curves(measures: Sequence[Mapping[str, Any]]) -> list[Tree]:
    """Every fit's epochs, seed by seed: student, control, then teachers."""
    first = measures[0]["fits"]
    places = [("student", None), ("control", None), *(("teachers", name) for name in first.get("teachers", {}))]
    curves = []
    for model, teacher in places:
        fits = [
            measure["fits"]["teachers"][teacher] if teacher is not None else measure["fits"][model]
            for measure in measures
        ]
        curves.append(
            {
                "model": model if teacher is None else teacher,
                "is_teacher": teacher is not None,
                "network": fits[0]["network"],
                "seeds": [
                    {"seed": measure["seed"], "epochs": fit["epochs"], "history": fit["history"]}
                    for measure, fit in zip(measures, fits, strict=True)
                ],
            }
        )
    return curves
