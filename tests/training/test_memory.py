"""What a fit needs memory for is told by setting and value, before it is needed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.small_log import FIELDS
from training.fit.loop import NetworkSpec
from training.fit.memory import what_to_lower
from training.pipeline.stages import ROOT
from training.zoo import NETWORKS, FieldSpec, options_of

MANY = (FieldSpec("user", 1_000_000, "context"), FieldSpec("ad", 5000, "candidate"))


def network(name: str, **options: object) -> NetworkSpec:
    return NetworkSpec(network=name, options=options)


def test_the_largest_need_comes_first_and_names_what_makes_it_large():
    """1,005,000 ids of 16 numbers of 4 bytes, held six times."""
    said = what_to_lower(MANY, {"teachers.a": network("dnn", dim=16, hidden=[8])}, ("teachers.a.fit.batch_rows", 1024))

    assert said.startswith(
        "it needs 385.9 MB of embeddings: lower teachers.a.options.dim (it is 16), or max_size, or hash buckets, of "
        "field 'user' in the schema (1,000,000 ids)"
    )
    assert "batch_rows" not in said
    assert said.endswith("--workers 1")


def test_a_batch_far_too_large_is_the_batchs_fault():
    said = what_to_lower(FIELDS, {"student": network("dnn", dim=64, hidden=[8])}, ("student.fit.batch_rows", 10**8))

    assert said.startswith("it needs about 307.2 GB for a batch: lower student.fit.batch_rows (it is 100000000)")


def test_layers_far_too_wide_are_the_layers_fault():
    said = what_to_lower(FIELDS, {"control": network("dnn", dim=4, hidden=[90_000, 90_000])}, ("b", 64))

    assert "of dense layers: lower control.options.hidden (it is [90000, 90000])" in said.partition(";")[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_needs_memory_to_be_measured(name: str):
    """A dim that no machine could hold costs nothing to talk about."""
    options = {key: value for key, value in {"dim": 10**7, "hidden": [4]}.items() if key in options_of(name)}

    said = what_to_lower(FIELDS, {"x": network(name, **options)}, ("x.fit.batch_rows", 1))

    assert "GB" in said or name == "lr"


def test_a_run_without_the_memory_for_its_tables_says_which_setting_to_lower(tmp_path: Path):
    """A real process that may address 12 GB, and a table of more: one line, no stack trace, exit code 1."""
    small = {"network": "dnn", "options": {"dim": 10_000_000, "hidden": [1]}, "fit": {}}
    recipe = {
        "name": "tiny",
        "source": {"kind": "synthetic", "seed": 0, "rows": 3000, "days": 4},
        "split": {"by": "time", "last_days": {"valid": 1, "test": 1}},
        "teachers": {"wide": small},
        "student": small,
        "control": small,
    }
    (tmp_path / "tiny.json").write_text(json.dumps(recipe))

    done = subprocess.run(
        [sys.executable, *f"-m training run {tmp_path}/tiny.json --out {tmp_path}/out --workers 1".split()],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)),
    )

    assert done.returncode == 1, done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert "memory ran out" in error
    assert ".options.dim (it is 10000000), or max_size, or hash buckets, of field '" in error
    assert "Traceback" not in error
