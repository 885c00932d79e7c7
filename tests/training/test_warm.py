"""The daily retrain: a network goes on from yesterday's weights over a vocabulary that has grown."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training.cli import main
from training.data.encoded_log import EncodedLog
from training.data.prepare import load_encoder
from training.data.seen_before import refuse_rows_seen_before
from training.data.synthetic import World
from training.errors import RecipeError, SplitError
from training.fit.loop import FitResult, NetworkSpec, load_network
from training.fit.warm import VERSION_FILE, Start, Version
from training.pipeline.plan import SeedSteps, plan, version_of
from training.pipeline.stages import in_order
from training.recipe import load_recipe
from training.zoo import NETWORKS, Encoded, FieldEmbedding, Fields, FieldSpec, options_of

THEN: Fields = (
    FieldSpec("user", 7, "context"),
    FieldSpec("recent", 5, "context", is_sequence=True),
    FieldSpec("hour", 4, "context"),
    FieldSpec("ad", 9, "candidate"),
    FieldSpec("tags", 6, "candidate", is_sequence=True),
    FieldSpec("price", 3, "candidate"),
)
GROWN = {"user": 11, "recent": 8, "ad": 10, "tags": 6}
NOW: Fields = tuple(replace(spec, size=GROWN.get(spec.name, spec.size)) for spec in THEN)
SMALL: dict[str, Any] = {"dim": 4, "hidden": [8, 6], "init_sd": 0.3}


def spec_of(name: str) -> NetworkSpec:
    return NetworkSpec(network=name, options={key: SMALL[key] for key in SMALL if key in options_of(name)})


def drawn(spec: NetworkSpec, fields: Fields, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = spec.build(fields).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network


def saved(network: nn.Module, spec: NetworkSpec, folder: Path) -> Start:
    FitResult(dict(network.state_dict()), 1, []).save(folder, spec)
    return Start(folder, THEN)


def rows(fields: Fields, count: int = 40) -> Encoded:
    """Ids that these fields have, sequences of 0 to 4 elements."""
    rng = np.random.default_rng(0)

    def plain(side: str) -> torch.Tensor:
        sizes = [spec.size for spec in fields if spec.side == side and not spec.is_sequence]
        return torch.from_numpy(np.stack([rng.integers(0, size, count) for size in sizes], axis=1).astype(np.int32))

    context, candidates = plain("context"), plain("candidate")
    sequences = {}
    for spec in fields:
        if spec.is_sequence:
            ends = np.concatenate([[0], rng.integers(0, 5, count).cumsum()])
            ids = rng.integers(0, spec.size, ends[-1]).astype(np.int32)
            sequences[spec.name] = torch.from_numpy(ids), torch.from_numpy(ends)
    return Encoded(context, candidates, None, sequences)


@pytest.mark.parametrize("name", NETWORKS)
def test_on_ids_that_were_there_the_grown_network_says_what_the_earlier_said(name: str, tmp_path: Path):
    """To the bit, for every network: fields behind one that grew have moved, and their vectors with them."""
    spec = spec_of(name)
    earlier, grown = drawn(spec, THEN, 1), drawn(spec, NOW, 2)
    batch = rows(THEN)

    saved(earlier, spec, tmp_path).into(grown, NOW)

    with torch.inference_mode():
        assert torch.equal(grown(batch)[0], earlier(batch)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_new_ids_keep_the_vectors_that_were_drawn_for_them(name: str, tmp_path: Path):
    spec = spec_of(name)
    grown = drawn(spec, NOW, 2)
    before = {key: weight.clone() for key, weight in grown.state_dict().items()}

    saved(drawn(spec, THEN, 1), spec, tmp_path).into(grown, NOW)

    tables = [f"{key}.table" for key, module in grown.named_modules() if isinstance(module, FieldEmbedding)]
    assert tables
    new = np.concatenate([np.arange(now.size) >= then.size for then, now in zip(THEN, NOW, strict=True)])
    for table in tables:
        same = (grown.state_dict()[table] == before[table]).all(dim=1).numpy()
        assert same[new].all()
        assert not same[~new].any()


def test_nothing_grown_is_the_same_network(tmp_path: Path):
    spec = spec_of("dcnv2")
    earlier, again = drawn(spec, THEN, 1), drawn(spec, THEN, 2)

    saved(earlier, spec, tmp_path).into(again, THEN)

    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in earlier.state_dict().items())


@pytest.mark.parametrize(
    ("options", "fields", "said"),
    [
        ({"hidden": [8, 7]}, NOW, "'.*' does not fit the network of now"),
        ({"dim": 5}, NOW, "does not fit the network of now"),
        ({"hidden": [8]}, NOW, "does not fit the network of now"),
        ({}, NOW[::-1], "expected a fit over the same fields"),
        ({}, (replace(NOW[0], size=6), *NOW[1:]), "field 'user': expected at least its 7 ids, got 6"),
    ],
)
def test_a_network_of_other_sizes_is_refused(options: dict[str, Any], fields: Fields, said: str, tmp_path: Path):
    spec = spec_of("dnn")
    now = NetworkSpec(network="dnn", options=spec.options | options)
    start = saved(drawn(spec, THEN, 1), spec, tmp_path)
    network = now.build(fields) if fields[0].side == "context" else now.build(NOW)

    with pytest.raises(RecipeError, match=said):
        start.into(network, fields)


def at(**days: int) -> dict[str, str]:
    return {part: f"2024-01-{day:02}T12:00:00+00:00" for part, day in days.items()}


def test_weights_that_learned_from_a_row_never_judge_it():
    """First fits go on from first fits and are judged by validation rows, refits from refits by test rows."""
    earlier = at(train=5, valid_a=6, valid_b=6, valid_c=6, test=7)

    refuse_rows_seen_before(earlier, at(train=1, valid_a=6, valid_b=6, valid_c=6, test=7), "runs/x")
    with pytest.raises(SplitError, match=r"first fits learned from rows up to 2024-01-05.*valid begins at 2024-01-05"):
        refuse_rows_seen_before(earlier, at(train=1, valid_a=5, valid_b=6, valid_c=6, test=7), "runs/x")
    with pytest.raises(SplitError, match=r"its refits learned from rows up to 2024-01-06.*test begins at 2024-01-06"):
        refuse_rows_seen_before(earlier, at(train=1, valid_a=6, valid_b=6, valid_c=6, test=6), "runs/x")
    refuse_rows_seen_before(earlier, at(valid_a=6, valid_b=6, valid_c=6, test=6), "runs/x", is_refitted=False)
    with pytest.raises(SplitError, match="expected logs with a timestamp"):
        refuse_rows_seen_before({}, {}, "runs/x")


FIT = {"learning_rate": 0.01, "max_epochs": 2, "batch_rows": 256}
DNN = {"network": "dnn", "options": {"dim": 2, "hidden": [8], "init_sd": 0.1}}


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of six days with its schema, and a recipe for it; runs of one day after the other go beside them."""
    folder = tmp_path_factory.mktemp("daily")
    World(seed=0, rows=6000, days=6).write(folder / "log.parquet")
    schema = json.loads(World.schema().to_json())
    (folder / "log.schema.json").write_text(json.dumps(schema))
    recipe = {
        "name": "daily",
        "source": {"kind": "files", "paths": ["log.parquet"]},
        "schema_file": "log.schema.json",
        "split": {"by": "time", "boundaries": boundaries(3)},
        "teachers": {"lr": {"network": "lr", "fit": FIT}, "dnn": DNN | {"fit": FIT}},
        "student": DNN | {"fit": FIT},
        "control": DNN | {"fit": FIT},
        "zoo": {"fm": {"network": "fm", "options": {"dim": 2}, "fit": FIT}},  # which a run does not train
    }
    (folder / "daily.json").write_text(json.dumps(recipe))
    return folder


def boundaries(number: int) -> dict[str, str]:
    """Train up to day `number` of six (from 0), validate on that, test on the one after, stop there."""
    days = [f"2026-03-{2 + day:02}" for day in range(number, min(number + 3, 6))]
    return dict(zip(("valid", "test", "end"), days, strict=False))


def split_at(number: int) -> str:
    return f"split.boundaries={json.dumps(boundaries(number))}"


def run(folder: Path, out: str, *overrides: str, warm: str = "") -> tuple[SeedSteps, Version]:
    """A run in this process, as far as every model's figures; once for one `out`."""
    settings = [*overrides, f"warm_start={warm}"] if warm else overrides
    runs = folder / out
    laid_out = plan(load_recipe(str(folder / "daily.json"), settings), [1], runs=runs, data=None)
    for step in in_order([laid_out.seeds[0].measure]):
        place = step.folder(runs)
        if not place.exists():
            place.mkdir(parents=True)
            needs = {name: needed.folder(runs) for name, needed in step.needs.items()}
            places = {"places": dict(step.places)} if step.places else {}
            try:
                step.run(place, lambda done, total, note="": None, **step.arguments, **needs, **places)
            except BaseException:
                shutil.rmtree(place)
                raise
    version_of(laid_out, runs).write()
    return laid_out.seeds[0], Version.read(runs)


def fields_of(version: Version) -> Fields:
    return EncodedLog.open(version.runs / version.prepared / "log").fields


PLACES = ("teachers.lr", "teachers.dnn", "student", "control")


def test_one_day_goes_on_from_the_last(day: Path):
    """Ids stay, vocabularies grow, every fit begins where its own ended; and a third day goes on from the second."""
    _, first = run(day, "first")
    steps, second = run(day, "second", split_at(4), warm="first")

    then, now = (load_encoder(version.runs / version.prepared).to_vocabularies() for version in (first, second))
    assert all(values == now[field][: len(values)] for field, values in then.items())
    assert any(len(values) < len(now[field]) for field, values in then.items())
    assert set(first.seeds["1"]) == set(PLACES)
    for place in PLACES:
        fit = steps.fits[place]
        assert fit.first.arguments["start"] == first.fit(1, place, "first")
        assert fit.again.arguments["start"] == first.fit(1, place, "again")
    later = plan(load_recipe(str(day / "daily.json"), ["warm_start=second"]), [1, 2], runs=day / "third", data=None)
    for seed in later.seeds:  # of a seed that was not there, the first that was
        assert seed.fits["student"].first.arguments["start"] == second.fit(1, "student", "first")


def test_where_no_step_moves_anything_the_weights_are_those_of_before(day: Path):
    """A learning rate of nothing: what comes out is what was put in."""
    still = [f"{place}.fit.learning_rate=1e-30" for place in PLACES]
    _, first = run(day, "first")
    _, second = run(day, "still", split_at(4), *still, warm="first")

    batch = rows(fields_of(first))
    for place in PLACES:
        for which in ("first", "again"):
            before = load_network(first.runs / str(first.fit(1, place, which)), fields_of(first))
            after = load_network(second.runs / str(second.fit(1, place, which)), fields_of(second))
            with torch.inference_mode():
                torch.testing.assert_close(after(batch)[0], before(batch)[0], rtol=0, atol=1e-6)


def test_a_day_that_would_be_judged_by_rows_already_learned_is_refused(day: Path):
    """An earlier split, from a run of a later one: nothing is trained."""
    run(day, "first")

    with pytest.raises(RecipeError, match=r"expected another run's folder, got this run's own; say another --out"):
        run(day, "first", split_at(4), warm="first")
    with pytest.raises(SplitError, match=r"learned from rows up to 2026-03-04T23.*valid begins at 2026-03-04"):
        run(day, "again", split_at(2), warm="first")


def test_a_schema_that_means_something_else_is_refused_as_the_recipes_fault(day: Path):
    run(day, "first")
    schema = json.loads((day / "log.schema.json").read_text())
    field = next(field for field in schema["fields"] if field["encoding"]["method"] == "vocabulary")
    field["encoding"] = {"method": "hash", "buckets": 50}
    (day / "other.schema.json").write_text(json.dumps(schema))

    with pytest.raises(RecipeError, match=rf"warm_start: field '{field['name']}': encoding: expected .* or leave"):
        run(day, "other", split_at(4), "schema_file=other.schema.json", warm="first")


def test_networks_that_train_together_start_warm_too(day: Path):
    """From those of a run in two steps; a teacher that was not there is drawn afresh."""
    _, first = run(day, "first")
    overrides = ["scheme=cotrain", 'teachers.fm={"network": "fm", "options": {"dim": 2}, "fit": {}}', split_at(4)]

    steps, _ = run(day, "together", *overrides, warm="first")

    together = steps.fits["student"].again.needs["source"]
    named = {"lr": "teachers.lr", "dnn": "teachers.dnn", "student": "student"}
    assert together.arguments["start"] == {name: first.fit(1, place, "again") for name, place in named.items()}


def test_the_command_takes_the_folder_and_refuses_one_without_a_run(day: Path, capsys: pytest.CaptureFixture[str]):
    """Before anything is read or trained."""
    code = main(["run", str(day / "daily.json"), "--out", str(day / "none"), "--warm-start", str(day / "nowhere")])

    assert code == 1
    said = capsys.readouterr().err
    assert f"warm_start: {day}/nowhere: expected the folder of a complete run" in said


def test_a_folder_without_a_complete_run_is_refused_in_words(tmp_path: Path, day: Path):
    with pytest.raises(RecipeError, match=rf"warm_start: .*expected the folder of a complete run.*{VERSION_FILE}"):
        Version.read(tmp_path)
    (tmp_path / VERSION_FILE).write_text("{}")
    with pytest.raises(RecipeError, match="cannot be read"):
        Version.read(tmp_path)
    (tmp_path / VERSION_FILE).write_text(json.dumps({"prepared": "prepare/x-1", "seeds": {}}))
    with pytest.raises(RecipeError, match="prepare/x-1: is gone"):
        Version.read(tmp_path)
