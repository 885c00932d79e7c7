"""Rows without clicks: the student learns what the ensemble says of them, and nobody else learns anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.training.data.logs import write
from tests.training.data.test_prepare import BY_PART, SAME, csv_of, rows_of, simple_schema
from tests.training.small_log import write_small_log
from tests.training.test_choices import RECIPE, done
from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import PrepareReport, load_encoder, prepare
from training.data.readers import FileSource
from training.data.synthetic import World
from training.distillation.distill import DistillOptions, EnsembleTargets, Imitation, Target, fit_student, kl_divergence
from training.errors import DataError, RecipeError, SplitError
from training.fit.loop import NetworkSpec, load_fit
from training.pipeline.plan import Plan, plan
from training.recipe import load_recipe

# reading


def prepared(folder: Path, text: str, **more: Any) -> tuple[EncodedLog, PrepareReport]:
    """The log of `SAME`, and behind it these lines without clicks."""
    folder.mkdir(exist_ok=True)
    log, further = write(folder / "log.csv", csv_of(rows_of(SAME))), write(folder / "further.csv", text)
    report = prepare(
        FileSource((log,)), simple_schema(**more), BY_PART, folder / "out", unlabelled=FileSource((further,))
    )
    return EncodedLog.open(folder / "out" / "log"), report


def test_rows_without_clicks_stand_behind_the_others_and_their_label_is_none(tmp_path: Path):
    """A column for clicks, or for the split, is not asked for; what stands in one is not looked at."""
    log, report = prepared(tmp_path, "n,ad,user,click\n1,a,u1,maybe\n2,b,u2,\n")

    assert (report.rows["unlabelled"], report.rows["train"], "unlabelled_stop" in report.rows) == (2, 24, False)
    assert log.part[-2:].tolist() == [Part.UNLABELLED, Part.UNLABELLED]
    assert np.isnan(log.label[-2:]).all()
    assert not np.isnan(log.label[:-2]).any()
    assert "unlabelled" not in report.label_rate


def test_no_encoder_is_fitted_on_them(tmp_path: Path):
    """What only they hold is unknown, as it will be when serving; vocabularies and edges are those without them."""
    _, report = prepared(tmp_path / "with", "n,ad,user\n" + "9999,new,u1\n" * 500)
    prepare(FileSource((tmp_path / "with" / "log.csv",)), simple_schema(), BY_PART, tmp_path / "without")

    assert report.unknown["ad"] == {"train": 0, "valid_a": 0, "valid_b": 0, "valid_c": 0, "test": 0, "unlabelled": 1}
    with_, without = (load_encoder(tmp_path / place).to_vocabularies() for place in ("with/out", "without"))
    assert with_ == without


def test_a_log_with_a_known_truth_needs_none_of_them(tmp_path: Path):
    rows = [{**row, "truth": "0.5"} for row in rows_of(SAME)]
    log = write(tmp_path / "log.csv", csv_of(rows))
    further = write(tmp_path / "further.csv", "n,ad,user\n1,a,u1\n")

    schema = simple_schema(truth={"column": "truth"})
    prepare(FileSource((log,)), schema, BY_PART, tmp_path / "out", unlabelled=FileSource((further,)))

    truth = EncodedLog.open(tmp_path / "out" / "log").truth
    assert truth is not None
    assert np.isnan(truth).tolist() == [False] * len(rows) + [True]


def test_a_share_of_them_by_unit_stops_the_student(tmp_path: Path):
    log = write(tmp_path / "log.csv", csv_of(rows_of(SAME)))
    further = write(tmp_path / "further.csv", "n,ad,user\n" + "".join(f"1,a,v{i % 40}\n" for i in range(400)))
    schema = simple_schema(unit={"column": "user"})

    report = prepare(
        FileSource((log,)), schema, BY_PART, tmp_path / "out", unlabelled=FileSource((further,)), stopping_share=0.25
    )

    found = EncodedLog.open(tmp_path / "out" / "log")
    teaches, stops = (set(found.unit[found.rows([part])]) for part in (Part.UNLABELLED, Part.UNLABELLED_STOP))
    assert len(teaches) + len(stops) == 40
    assert not teaches & stops
    assert report.rows["unlabelled"] + report.rows["unlabelled_stop"] == 400
    assert 0 < report.rows["unlabelled_stop"] < 250


@pytest.mark.parametrize(
    ("text", "share", "error", "said"),
    [
        ("n,ad\n1,a\n", 0.0, DataError, r"further\.csv:1: expected a column 'user'"),
        ("n,ad,user\n", 0.0, SplitError, "unlabelled: expected rows to learn from, got 0 and 0"),
        ("n,ad,user\n1,a,u1\n", 0.5, SplitError, "unlabelled: expected rows to learn from, and rows to stop by, got"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    text: str, share: float, error: type[Exception], said: str, tmp_path: Path
):
    log, further = write(tmp_path / "log.csv", csv_of(rows_of(SAME))), write(tmp_path / "further.csv", text)

    with pytest.raises(error, match=said):
        prepare(
            FileSource((log,)),
            simple_schema(),
            BY_PART,
            tmp_path / "out",
            unlabelled=FileSource((further,)),
            stopping_share=share,
        )


# learning


def test_a_row_without_a_click_is_worth_its_distillation_loss_and_no_more():
    """L_S of a batch is the mean over its rows of (1 - w) CE(y, .) + w L_KD, the first term only where y is known."""
    z_s, z_e = torch.tensor([0.3, -2.0, 1.5]), torch.tensor([1.0, -1.0, -0.5])
    options = DistillOptions(kd_weight=0.7)

    def loss(rows: list[int], labels: list[float]) -> float:
        imitation = Imitation(options, None, has_unlabelled=True)
        return float(imitation(z_s[rows], None, torch.tensor(labels), Target(z_e[rows]))[0])

    alone = float(Imitation(DistillOptions(kd_weight=1), None)(z_s[1:2], None, torch.zeros(1), Target(z_e[1:2]))[0])
    assert loss([1], [torch.nan]) == pytest.approx(0.7 * alone)
    assert loss([0, 1, 2], [1.0, torch.nan, 0.0]) == pytest.approx(
        (loss([0], [1.0]) + loss([1], [torch.nan]) + loss([2], [0.0])) / 3
    )
    plain = Imitation(options, None)(z_s, None, torch.tensor([1.0, 0.0, 1.0]), Target(z_e))[0]
    assert loss([0, 1, 2], [1.0, 0.0, 1.0]) == pytest.approx(float(plain))


def without_clicks(log: EncodedLog, share: float) -> EncodedLog:
    """The same log, of whose training rows so many have lost their click."""
    part, label = log.part.copy(), log.label.copy()
    lost = log.rows([Part.TRAIN])[: int(share * (log.part == Part.TRAIN).sum())]
    part[lost], label[lost] = Part.UNLABELLED, np.nan
    return replace(log, part=part, label=label)


def test_a_student_learns_from_rows_without_clicks_what_the_ensemble_knows(tmp_path: Path):
    """Of an ensemble that knows the truth: with 5% of the clicks and all rows nearer to it than with those 5% alone."""
    log = without_clicks(write_small_log(tmp_path / "log", rows=4000), 0.95)
    assert log.truth is not None
    truth = np.clip(log.truth, 1e-6, 1 - 1e-6)
    targets = EnsembleTargets(np.log(truth) - np.log1p(-truth))
    dnn = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [16], "init_sd": 0.1})
    options = DistillOptions(learning_rate=0.01, batch_rows=100, max_epochs=8)

    def kl(unlabelled: list[Part]) -> float:
        found = fit_student(
            log, dnn, options, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A], unlabelled=unlabelled
        )
        return min(row["valid_kl"] for row in found.history)

    assert kl([Part.UNLABELLED]) < 0.5 * kl([])


# a run


def write_world(folder: Path, rows: int = 3000) -> dict[str, Any]:
    """A synthetic log, and 30% of it in a file without clicks; the recipe that reads both."""
    World(seed=0, rows=rows, days=4).write(folder / "whole.parquet")
    table = pq.read_table(folder / "whole.parquet")
    is_first = pa.array(np.arange(len(table)) < 0.3 * len(table))
    pq.write_table(table.filter(is_first).drop_columns(["click", "true_pctr"]), folder / "without.parquet")
    keep = pa.array(~is_first.to_numpy(zero_copy_only=False))
    pq.write_table(table.filter(keep), folder / "log.parquet")
    (folder / "schema.json").write_text(World.schema().to_json())
    recipe = RECIPE | {
        "source": {"kind": "files", "paths": ["log.parquet"]},
        "schema_file": "schema.json",
        "unlabelled": {"source": {"paths": ["without.parquet"]}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return recipe


def planned(folder: Path, *overrides: str) -> Plan:
    return plan(load_recipe(str(folder / "tiny.yaml"), overrides), [1], runs=folder / "runs", data=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


def test_a_run_teaches_its_student_alone_with_them(world: Path):
    """Teachers and control come out to the bit as without such rows; the student does not, and is stopped by them where
    the recipe says so."""
    runs = world / "runs"
    with_ = planned(world, "unlabelled.stopping_share=0.3").seeds[0].fits
    without = planned(world, "unlabelled=null").seeds[0].fits

    def weights(fits: Any, name: str) -> dict[str, Any]:
        return dict(np.load(done(fits[name].first, runs) / "weights.npz"))

    for name in ("teachers.dnn", "control"):
        first, second = weights(with_, name), weights(without, name)
        assert all((first[key] == second[key]).all() for key in first)
    first, second = weights(with_, "student"), weights(without, "student")
    assert any((first[key] != second[key]).any() for key in first)
    log = EncodedLog.open(planned(world, "unlabelled.stopping_share=0.3").prepare.folder(runs) / "log")
    logit = np.load(with_["student"].first.folder(runs) / "logit.npy")
    assert len(logit) == len(log)
    stops = log.rows([Part.UNLABELLED_STOP])
    _, epochs, history = load_fit(with_["student"].first.folder(runs))
    ensemble = np.load(with_["ensemble"].first.folder(runs) / "logit.npy")
    assert history[epochs - 1]["valid_kl"] == pytest.approx(kl_divergence(ensemble[stops], logit[stops]), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("scheme=cotrain", "unlabelled: expected scheme pretrain"),
        ("student.fit.kd_weight=0", r"unlabelled: expected student\.fit\.kd_weight above 0"),
        ("unlabelled={source: {paths: [a.csv]}, stopping_share: 1}", "stopping_share"),
    ],
)
def test_a_recipe_in_which_they_teach_nobody_is_refused(override: str, said: str, world: Path):
    with pytest.raises(RecipeError, match=said):
        planned(world, override)


def test_rows_without_clicks_do_not_stop_by_auc(world: Path):
    with pytest.raises(RecipeError, match=r"stopping_share: expected student\.fit\.stop_by: kd"):
        planned(world, "student.fit.stop_by=valid_auc", "unlabelled.stopping_share=0.2")


def test_the_logs_own_file_is_no_file_without_clicks(world: Path):
    with pytest.raises(RecipeError, match=r"unlabelled\.source: .*log\.parquet: expected other files than the log's"):
        planned(world, "unlabelled.source.paths=[log.parquet]")
    with pytest.raises(DataError, match=r"absent\.csv"):
        planned(world, "unlabelled.source.paths=[absent.csv]")
