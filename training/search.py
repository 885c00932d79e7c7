"""`python -m training search`: how small may the student be?

Optuna proposes students (sizes, distillation weight, learning rate); each is trained as a run would train it, on
teachers and a gate that are trained once, and judged by AUC on validation part A and by the measured latency of its
graph. Test rows are not looked at.

Of many tries on one seed the best looks better than it is. So the few that are fast for what they give are trained
again with seeds that had no say in picking them, beside the recipe's own student; of those the fastest wins whose mean
AUC is within a stated loss of the best. Latencies nearer than the noise of their measurement are one latency: of such
students the one with the fewest parameters wins.

What was tried stands in search.sqlite (Optuna's own storage) once it is finished, and every trained network is a step
of `stages.py`, so a search that was killed goes on where it was and ends as if it had not been: a proposal depends on
the finished trials alone. Another recipe, log or space is another study in the same file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from training.errors import RecipeError, TrainingError
from training.export.size import CANDIDATES, measure_size
from training.pipeline.plan import Plan, plan
from training.pipeline.stages import Step, Watcher, run_steps
from training.pipeline.steps import read_json
from training.recipe import LoadedRecipe, Recipe, load_recipe
from training.sweep import judged
from training.whole import write_whole
from training.zoo import NETWORKS, options_of

WIDTHS = (16, 32, 64, 128, 256)
DEPTHS = (1, 2, 3)
DIMS = (4, 8, 16)
KD_WEIGHTS = (0.5, 0.7, 0.9, 1.0)
RATES = (0.5, 1.0, 2.0)
"""Learning rates that are tried unless others are named: these times the recipe's."""

LEAST_NOISE = 0.02
"""Relative: what two timings of one graph differ by on a machine with nothing else to do."""

FINALISTS = 5
"""At most so many are trained again with other seeds, beside the recipe's own student."""

JUDGED_BY = "AUC on validation part A, and the ratio of median session.run to that of the recipe's student"
_STARTING_TRIALS = 8
_TRIED = "tried"
"""Key of the attribute of a trial in the storage that holds what became of it."""

Tree = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What a student may be; every list in ascending order. `width` is that of the first hidden layer, each further
    one is half of the one before."""

    network: tuple[str, ...]
    width: tuple[int, ...]
    depth: tuple[int, ...]
    dim: tuple[int, ...]
    kd_weight: tuple[float, ...]
    learning_rate: tuple[float, ...]

    @property
    def size(self) -> int:
        """How many students there are to try."""
        return math.prod(len(values) for values in asdict(self).values())

    def distributions(self) -> dict[str, IntDistribution]:
        """Optuna sees places in the lists: neighbours are neighbours, whatever the numbers are."""
        return {name: IntDistribution(0, len(values) - 1) for name, values in asdict(self).items() if len(values) > 1}

    def point(self, places: Mapping[str, int]) -> Tree:
        """The student at these places of the lists, 0 where a list has one value."""
        return {name: values[places.get(name, 0)] for name, values in asdict(self).items()}


@dataclass(frozen=True)
class _Found:
    """One student trained and timed: `fits` a judgement a seed, `size` what `measure_size` wrote; or why not."""

    fits: Sequence[Mapping[str, float]] = ()
    size: Mapping[str, Any] | None = None
    error: str = ""

    @property
    def aucs(self) -> list[float]:
        return [fit["valid_auc"] for fit in self.fits]


def search(
    recipe: str,
    *,
    overrides: Sequence[str],
    trials: int,
    seeds: int,
    confirm: int,
    within: float,
    out: Path,
    data: Path | None,
    workers: int,
    watcher: Watcher,
    space: Mapping[str, Sequence[Any] | None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tree:
    """Try `trials` students in all (those of an earlier, same search among them), confirm the finalists, choose.

    `seeds` searches with seeds 1 to seeds; `confirm` decides with as many seeds after those. `space` replaces lists of
    `Space`. Writes `out`/search.json and returns the same; `say` is told a line a trial.
    """
    loaded = load_recipe(recipe, overrides)
    tried_space = _space(loaded.recipe, space or {})
    out.mkdir(parents=True, exist_ok=True)
    bench = _Bench(recipe, tuple(overrides), loaded, out, data, workers, watcher)
    bench.check(tried_space)

    searched = list(range(1, seeds + 1))
    (own,) = bench.try_all([None], searched)
    study = _open_study(out / "search.sqlite", tried_space, bench, searched)
    at_once = max(4, -(-workers // len(searched)))
    while (wanted := min(trials, tried_space.size) - len(_tried(study))) > 0:
        batch = propose(_tried(study), tried_space, min(at_once, wanted))
        points = [tried_space.point(places) for places in batch]
        results = bench.try_all(points, searched)
        number = len(_tried(study))
        study.add_trials([_finished(*each, tried_space) for each in zip(batch, points, results, strict=True)])
        for each, point, found in zip(itertools.count(number + 1), points, results, strict=False):
            say(f"trial {each} of {min(trials, tried_space.size)}: {_in_words(point, found, own)}")

    rows = [_row(number, trial, own.aucs) for number, trial in enumerate(_tried(study), start=1)]
    done = [row for row in rows if not row["error"]]
    if not done:
        raise TrainingError(f"search: every one of {len(rows)} students failed; the last: {rows[-1]['error']}")
    for row in done:
        row["on_front"] = not any(_beats(other, row) for other in done)
    confirmed = list(range(seeds + 1, seeds + confirm + 1)) or searched
    picked = finalists(done, within)
    say(f"{len(picked)} finalists and the recipe's student, seeds {confirmed[0]} to {confirmed[-1]}")
    again = bench.try_all([None, *(row["student"] for row in picked)], confirmed)
    # A finalist that fails now was never fit to serve.
    sound = [(row, found) for row, found in zip([None, *picked], again, strict=True) if not found.error]
    noise = _noise(own.size)
    judged_finalists = judge_finalists(
        [
            {
                "trial": None if row is None else row["trial"],
                "name": describe(bench.own_student if row is None else row["student"]),
                "student": bench.own_student if row is None else row["student"],
                "auc": found.aucs,
                "ratio": 1.0 if row is None else row["ratio"],
                "parameters": _parameters(own.size if row is None else row["size"]),
            }
            for row, found in sound
        ],
        within,
        noise,
    )
    own_ms = statistics.median([row["size"]["beside"]["p50_ms"] for row in done])
    for row in (*done, *judged_finalists):
        row["p50_ms"] = own_ms * row["ratio"]
    chosen = next(row for row in judged_finalists if row["chosen"])
    found_all: Tree = {
        "recipe": loaded.recipe.model_dump(mode="json"),
        "judged_by": JUDGED_BY,
        "within": within,
        "seeds": {
            "searched": searched,
            "confirmed": confirmed,
            "confirmed_count": len(confirmed),
            "are_apart": confirm > 0,
        },
        "space": asdict(tried_space),
        "space_size": tried_space.size,
        "trials_count": len(rows),
        "candidates": CANDIDATES,
        "conditions": done[0]["size"]["conditions"],
        "own": {
            "name": describe(bench.own_student),
            "student": bench.own_student,
            "auc": own.aucs,
            "p50_ms": own_ms,
            "ratio_to_itself": own.size["ratio"] if own.size else None,
            "noise": noise,
        },
        "trials": rows,
        "finalists": judged_finalists,
        "chosen": judged_finalists.index(chosen),
        "settings": [*overrides, *([] if chosen["trial"] is None else bench.settings(chosen["student"]))],
    }
    found_all["said"] = conclusion(found_all)
    text = json.dumps(found_all, indent=1, allow_nan=False)
    write_whole(out / "search.json", text + "\n")
    as_written: Tree = json.loads(text)
    return as_written


class _Bench:
    """Trains students of one recipe and times them; `None` stands for the recipe's own."""

    def __init__(
        self,
        recipe: str,
        overrides: tuple[str, ...],
        loaded: LoadedRecipe,
        out: Path,
        data: Path | None,
        workers: int,
        watcher: Watcher,
    ) -> None:
        self.recipe, self.overrides, self.loaded = recipe, overrides, loaded
        self.out, self.data, self.workers, self.watcher = out, data, workers, watcher

    @property
    def own_student(self) -> Tree:
        """The recipe's student, in the words of a point."""
        student = self.loaded.recipe.student
        return {
            "network": student.network,
            "hidden": list(student.options["hidden"]),
            "dim": student.options["dim"],
            "kd_weight": student.fit.kd_weight,
            "learning_rate": student.fit.learning_rate,
        }

    def settings(self, student: Mapping[str, Any]) -> list[str]:
        """The `--set` values that make the recipe's student this one, and its control of the same size."""
        own = self.loaded.recipe.student
        lines = []
        for side in ("student", "control"):
            if student["network"] != own.network:
                lines.append(f"{side}.network={student['network']}")
                unknown = sorted(set(own.options) - options_of(student["network"]))
                lines += [f"{side}.options.{name}=null" for name in unknown]
            lines += [f"{side}.options.{name}={json.dumps(student[name])}" for name in ("hidden", "dim")]
        return [*lines, *(f"student.fit.{name}={student[name]}" for name in ("kd_weight", "learning_rate"))]

    def check(self, space: Space) -> None:
        """RecipeError for a value that the recipe would refuse, before anything is trained."""
        first = space.point({})
        for name, values in asdict(space).items():
            for value in values:
                load_recipe(self.recipe, [*self.overrides, *self.settings(_student(first | {name: value}))])

    def plan(self, point: Mapping[str, Any] | None, seeds: Sequence[int]) -> tuple[Plan, Recipe]:
        """The run whose student this is."""
        changes = [] if point is None else self.settings(_student(point))
        loaded = load_recipe(self.recipe, [*self.overrides, *changes])
        return plan(loaded, list(seeds), runs=self.out, data=self.data), loaded.recipe

    def try_all(self, points: Sequence[Mapping[str, Any] | None], seeds: Sequence[int]) -> list[_Found]:
        """Each student trained with every seed, side by side; then timed, with nothing beside it.

        One that cannot be trained has its error in place of figures; where none can, or the recipe's own cannot, that
        is raised.
        """
        plans = [self.plan(point, seeds) for point in points]
        fits = [[of_seed.fits["student"].first for of_seed in laid_out.seeds] for laid_out, _ in plans]
        errors = [""] * len(points)
        try:
            run_steps([step for steps in fits for step in steps], self.out, workers=self.workers, watcher=self.watcher)
        except TrainingError:
            for index, steps in enumerate(fits):
                try:
                    run_steps(steps, self.out, workers=self.workers, watcher=self.watcher)
                except TrainingError as failure:
                    errors[index] = str(failure)
                    if points[index] is None:
                        raise
            if all(errors):
                raise
        timed = [self._timing(laid_out, recipe) for laid_out, recipe in plans]
        sound = [step for step, error in zip(timed, errors, strict=True) if not error]
        run_steps(sound, self.out, workers=1, watcher=self.watcher)
        correction = self.loaded.recipe.negatives.correction
        found = []
        for (laid_out, _), steps, size, error in zip(plans, fits, timed, errors, strict=True):
            if error:
                found.append(_Found(error=error))
                continue
            prepared = laid_out.prepare.folder(self.out)
            fitted = [judged(step.folder(self.out), prepared, correction) for step in steps]
            if not all(math.isfinite(fit["valid_auc"]) for fit in fitted):
                raise TrainingError("search: validation part A needs clicks and non-clicks; try a longer log or split")
            found.append(_Found(fitted, read_json(size.folder(self.out) / "size.json")))
        return found

    def _timing(self, laid_out: Plan, recipe: Recipe) -> Step:
        student, own = recipe.student, self.loaded.recipe.student
        hidden = "-".join(map(str, student.options["hidden"]))
        return Step(
            "size",
            f"{student.network}-{hidden}-dim{student.options['dim']}",
            measure_size,
            {
                "spec": {"network": student.network, "options": dict(student.options)},
                "beside": {"network": own.network, "options": dict(own.options)},
            },
            {"prepared": laid_out.prepare},
            ("package:torch", "package:onnxruntime", "training/export/size.py"),
        )


def finalists(trials: Sequence[Tree], within: float, most: int = FINALISTS) -> list[Tree]:
    """Those worth more seeds: on the front of AUC against latency, with no more than twice the loss allowed, for what
    one seed says is not sure. The best is always among them; of too many the fastest."""
    best = max(trials, key=lambda row: row["mean"])
    near = sorted(
        (row for row in trials if row["on_front"] and row["mean"] >= best["mean"] - 2 * within and row is not best),
        key=lambda row: row["ratio"],
    )
    return [*near[: most - 1], best]


def _noise(own: Mapping[str, Any] | None) -> float:
    """How far apart, relatively, two measured ratios may be and still be one: what the recipe's student timed against
    itself was off, and no less than `LEAST_NOISE`."""
    return max(LEAST_NOISE, abs(own["ratio"] - 1)) if own else LEAST_NOISE


def _parameters(size: Mapping[str, Any] | None) -> int | None:
    """Of a student, embeddings included."""
    return None if size is None else int(size["spec"]["parameters_dense"] + size["spec"]["parameters_embedding"])


def judge_finalists(rows: Sequence[Tree], within: float, noise: float = 0.0) -> list[Tree]:
    """The rows by latency, with mean and sd of `auc`, the paired `loss` to the best of them, and which is `chosen`.

    Chosen is the fastest within the loss; of those within it whose `ratio` is no more than `noise` (relative) above the
    fastest's, the one of the fewest `parameters`, then the faster.

    A loss has `mean`, its standard error `se` (null for one seed), `by_seed`, and `verdict`: `within` where all but
    the mean's own uncertainty (two standard errors) says so, `beyond` the same way, `unsure` between.
    """
    best = max(rows, key=lambda row: statistics.fmean(row["auc"]))
    judged_rows: list[Tree] = []
    for row in sorted(rows, key=lambda row: row["ratio"]):
        by_seed = [most - auc for most, auc in zip(best["auc"], row["auc"], strict=True)]
        loss = statistics.fmean(by_seed)
        se = statistics.stdev(by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else None
        verdict = "unsure"
        if row is best or (se is not None and loss + 2 * se <= within):
            verdict = "within"
        elif se is not None and loss - 2 * se > within:
            verdict = "beyond"
        judged_rows.append(
            {
                **row,
                "mean": statistics.fmean(row["auc"]),
                "sd": statistics.stdev(row["auc"]) if len(row["auc"]) > 1 else None,
                "is_best": row is best,
                "loss": {"mean": loss, "se": se, "by_seed": by_seed, "verdict": verdict},
                "chosen": False,
            }
        )
    near = [row for row in judged_rows if row["loss"]["mean"] <= within]
    tied = [row for row in near if row["ratio"] <= near[0]["ratio"] * (1 + noise)]
    if any(row.get("parameters") is None for row in tied):
        tied = tied[:1]
    chosen = min(tied, key=lambda row: (row.get("parameters") or 0, row["ratio"]))
    chosen["chosen"] = True
    return judged_rows


def conclusion(found: Tree) -> list[str]:
    """What came out, as sentences in which `{/search/...|form}` is a value of {"search": found}."""
    rows = found["finalists"]
    chosen = rows[found["chosen"]]
    places = {id(row): f"/search/finalists/{index}" for index, row in enumerate(rows)}
    at = places[id(chosen)]
    best = places[id(next(row for row in rows if row["is_best"]))]
    several = found["seeds"]["confirmed_count"] > 1
    seeds = "{/search/seeds/confirmed_count|count} seeds" if several else "one seed"
    limit = "{/search/within|plain} AUC"
    said = []
    if chosen["trial"] is None:
        said.append(f"The recipe’s own student stays: nothing faster that was tried is within {limit} of the best.")
    else:
        said.append(
            f"The fastest student within {limit} of the best: {{{at}/name|text}}. It takes {{{at}/ratio|share}} of "
            f"the time of the recipe’s student: {{{at}/p50_ms|ms}} ms of one core at {{/search/candidates|count}} "
            "candidates."
        )
    if any(row["ratio"] < chosen["ratio"] and row["loss"]["mean"] <= found["within"] for row in rows):
        said.append(
            "A faster one was within the loss too, but by less than timing the recipe’s student against itself was off "
            "({/search/own/noise|percent}): of two that nobody can tell apart the smaller one is taken "
            f"({{{at}/parameters|count}} parameters)."
        )
    if chosen["is_best"]:
        said.append(f"Its mean AUC is also the highest of the finalists, over {seeds}.")
    else:
        spread = f" ± {{{at}/loss/se|figure}}" if several else ""
        said.append(f"It loses {{{at}/loss/mean|figure}}{spread} AUC to the best ({{{best}/name|text}}), over {seeds}.")
    if chosen["loss"]["verdict"] == "unsure":
        why = "with the spread between seeds" if several else "of one seed nobody knows the spread, and"
        said.append(f"That is not certain: {why} its loss may be above {limit}; more seeds (--confirm) would tell.")
    unsure = [row for row in rows[: found["chosen"]] if row["loss"]["verdict"] == "unsure"]
    if unsure:
        names = "; ".join(f"{{{places[id(row)]}/name|text}}" for row in unsure)
        said.append(f"Faster, above {limit} of loss in the mean but not beyond the spread between seeds: {names}.")
    if not found["seeds"]["are_apart"]:
        said.append(
            "It was chosen by the seeds it was found with, which flatters the best of many; --confirm trains the "
            "finalists again with others."
        )
    return said


def describe(student: Mapping[str, Any]) -> str:
    """A student in a few words."""
    layers = "-".join(map(str, student["hidden"]))
    return (
        f"{student['network']} {layers}, dim {student['dim']}, kd_weight {student['kd_weight']:g}, "
        f"learning rate {student['learning_rate']:g}"
    )


def _space(recipe: Recipe, changes: Mapping[str, Sequence[Any] | None]) -> Space:
    student = recipe.student
    if not {"hidden", "dim"} <= set(student.options):
        raise RecipeError(
            f"search: expected a student with hidden layers and embeddings, got {student.network}; "
            "say --set student.network=dnn and the control's"
        )
    kd_weights = [weight for weight in KD_WEIGHTS if weight < 1 or "hint" not in student.fit.losses]
    lists: dict[str, Sequence[Any]] = {
        "network": (student.network,),
        "width": WIDTHS,
        "depth": DEPTHS,
        "dim": DIMS,
        "kd_weight": kd_weights,
        "learning_rate": [float(f"{times * student.fit.learning_rate:.6g}") for times in RATES],
    } | {name: values for name, values in changes.items() if values is not None}
    for name in lists:
        if not lists[name]:
            raise RecipeError(f"search: expected at least one {name}")
    for name in ("width", "depth", "dim"):
        for value in lists[name]:
            if value < 1:
                raise RecipeError(f"search: expected each {name} to be at least 1, got {value}")
    narrowest, deepest = min(lists["width"]), max(lists["depth"])
    if narrowest >> (deepest - 1) < 1:
        raise RecipeError(
            f"search: a width of {narrowest} cannot be halved {deepest - 1} times; see --widths, --depths"
        )
    for network in lists["network"]:
        if network not in NETWORKS:
            raise RecipeError(f"search: expected networks among {', '.join(sorted(NETWORKS))}, got {network}")
        if not {"hidden", "dim"} <= options_of(network):
            raise RecipeError(f"search: expected networks with hidden layers and embeddings, got {network}")
    return Space(**{name: tuple(sorted(set(values))) for name, values in lists.items()})


def _student(point: Mapping[str, Any]) -> Tree:
    """A point with the widths of its layers."""
    if "hidden" in point:
        return dict(point)
    kept = {name: value for name, value in point.items() if name not in ("width", "depth")}
    return {**kept, "hidden": [point["width"] >> layer for layer in range(point["depth"])]}


def _open_study(file: Path, space: Space, bench: _Bench, seeds: Sequence[int]) -> optuna.Study:
    """The study of exactly this search, new or as it was left."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    laid_out, recipe = bench.plan(None, seeds)
    facts = [
        [of_seed.fits["student"].first.key for of_seed in laid_out.seeds],
        bench._timing(laid_out, recipe).key,
        asdict(space),
    ]
    name = f"{recipe.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
    try:
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{file}"),
            study_name=name,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy's, Alembic's or Optuna's own: each says that the file is not theirs
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{file}: cannot be used as Optuna's storage ({reason}); move it away") from None


def _tried(study: optuna.Study) -> list[FrozenTrial]:
    """In order; whatever other tools put there is not ours."""
    return [trial for trial in study.get_trials(deepcopy=False) if _TRIED in trial.user_attrs]


def propose(tried: Sequence[FrozenTrial], space: Space, count: int) -> list[dict[str, int]]:
    """So many students that nobody tried, as places in the space's lists: a function of what was tried alone."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(tried)
    seen = {tuple(sorted(trial.params.items())) for trial in tried}
    distributions = space.distributions()
    batch: list[dict[str, int]] = []
    for attempt in range(20 * count):
        # A sampler of its own for each proposal: what a killed search drew before leaves no trace.
        study.sampler = TPESampler(seed=100_003 * len(tried) + attempt, n_startup_trials=_STARTING_TRIALS)
        places = study.ask({**distributions}).params  # asked and unanswered, so that the next keeps away from it
        key = tuple(sorted(places.items()))
        if key not in seen:
            seen.add(key)
            batch.append(places)
        if len(batch) == count:
            return batch
    lists = [range(distribution.high + 1) for distribution in distributions.values()]
    for chosen in itertools.product(*lists):  # little is left, and the sampler does not find it
        if len(batch) < count and tuple(sorted(zip(distributions, chosen, strict=True))) not in seen:
            batch.append(dict(zip(distributions, chosen, strict=True)))
    return batch


def _finished(places: Mapping[str, int], point: Tree, found: _Found, space: Space) -> FrozenTrial:
    """What is kept of a trial; whoever opens the storage with Optuna's own tools finds the student in it."""
    facts: Tree = {"student": _student(point), "fits": [dict(fit) for fit in found.fits], "error": found.error}
    values = None
    if found.size is not None:
        facts["size"] = dict(found.size)
        values = [statistics.fmean(found.aucs), found.size["ratio"]]
    return optuna.create_trial(
        state=TrialState.FAIL if values is None else TrialState.COMPLETE,
        values=values,
        params=dict(places),
        distributions={**space.distributions()},
        user_attrs={_TRIED: facts},
    )


def _row(number: int, trial: FrozenTrial, own: Sequence[float]) -> Tree:
    """A trial as search.json has it."""
    facts = trial.user_attrs[_TRIED]
    student = facts["student"]
    row: Tree = {"trial": number, "name": describe(student), "student": student, "error": facts["error"]}
    if facts["error"]:
        return row
    aucs = [fit["valid_auc"] for fit in facts["fits"]]
    return row | {
        "auc": aucs,
        "mean": statistics.fmean(aucs),
        "over_own": statistics.fmean(aucs) - statistics.fmean(own),
        "epochs": [fit["epochs"] for fit in facts["fits"]],
        "ratio": facts["size"]["ratio"],
        "size": facts["size"],
    }


def _beats(one: Tree, other: Tree) -> bool:
    """At least as good in both, and not the same in both."""
    ours, theirs = (one["mean"], -one["ratio"]), (other["mean"], -other["ratio"])
    return all(a >= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def _in_words(point: Tree, found: _Found, own: _Found) -> str:
    if found.size is None:
        return f"{describe(_student(point))}: failed, {found.error.splitlines()[0]}"
    auc, less = statistics.fmean(found.aucs), statistics.fmean(found.aucs) - statistics.fmean(own.aucs)
    return f"{describe(_student(point))}: AUC {auc:.4f} ({less:+.4f}) in {found.size['ratio']:.2f} of the time"
