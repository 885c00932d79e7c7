"""`python -m benchmarks.training_speed`: an epoch beside FuxiCTR and DeepCTR-Torch, and steps of slower networks.

39 fields, a million ids, dim 16, 3x400 ReLU, batch 4096, Adam 1e-3, no regularization, no averaging; what the log is,
`training_log.py` says. Every turn is a process of its own; contenders take turns within a round, and a ratio is taken
within each round. Each peer has an environment of its own, which this command makes (`--environments`). Where a machine
has other work, processor seconds, over all threads, are the steadier figure: rows by either are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import training_log
from benchmarks.machine import ROOT, commit, facts
from benchmarks.results import conditions, publish
from benchmarks.training_epoch import OPTIONS, encoded
from training.fit.allocator import keep_freed_memory
from training.fit.loop import ClickLearner, FitOptions, NetworkSpec, seeded
from training.fit.optimizer import Optimizer
from training.fit.precision import multiplies_bfloat16
from training.whole import write_whole

PEERS = {
    "FuxiCTR": (("fuxictr==2.3.10",), "fuxictr_epoch.py"),
    "DeepCTR-Torch": (
        ("deepctr-torch==0.3.0", "requests"),
        "deepctr_epoch.py",
    ),  # it imports requests without saying so
}
OURS = {"Retort": "float32", "Retort, bfloat16": "bfloat16"}
FIRST = "FuxiCTR"
STEPS_OF = ("dnn", "deepfm", "dcnv2", "autoint", "xdeepfm")
LIMITS = {"autoint": 9, "xdeepfm": 14}

Turn = dict[str, float]


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment that holds one peer and the torch that we have; made where it is not there yet."""
    python = folder / packages[0].partition("=")[0] / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        torch_version = torch.__version__.partition("+")[0]
        command = [str(python), "-m", "pip", "install", "--quiet", f"torch=={torch_version}", *packages]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            python.unlink()  # so that the next run tries again
            raise
    return python


def turn(command: Sequence[str], threads: int) -> Turn:
    """What one process found."""
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    variables.pop("OMP_WAIT_POLICY", None)  # `training` has set it for itself, in here too; peers are as they come
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: Turn = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Kept:
    """Turns in a file, so that a run that was stopped goes on: where a machine is shared, quiet minutes are few."""

    def __init__(self, path: Path | None, facts: Sequence[object]) -> None:
        self.path, self.facts = path, list(facts)
        self.turns: dict[str, Turn] = {}
        if path is not None and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["facts"] != self.facts:
                raise SystemExit(f"{path}: expected turns of {self.facts}, got {kept['facts']}; name another file")
            self.turns = kept["turns"]

    def turn(self, name: str, command: Sequence[str], threads: int) -> Turn:
        if name not in self.turns:
            self.turns[name] = turn(command, threads)
            if self.path is not None:
                write_whole(self.path, json.dumps({"facts": self.facts, "turns": self.turns}, indent=1))
        return self.turns[name]


def epochs(
    networks: Sequence[str], seeds: int, log: Path, environments: Path, threads: int, batch_rows: int, kept: Kept
) -> dict[tuple[str, str], list[Turn]]:
    """Every contender's turns by (network, contender), one a seed."""
    found: dict[tuple[str, str], list[Turn]] = {}
    pythons = {name: environment(environments, packages) for name, (packages, _) in PEERS.items()}
    for seed in range(seeds):
        for network in networks:
            commands: dict[str, list[str]] = {}
            for name, (_, script) in PEERS.items():
                if not (name == "DeepCTR-Torch" and network == "dnn"):
                    commands[name] = [str(pythons[name]), str(ROOT / "benchmarks" / "peers" / script)]
            for name, precision in OURS.items():
                if precision == "float32" or multiplies_bfloat16():
                    commands[name] = [sys.executable, "-m", "benchmarks.training_epoch"]
            order = list(commands) if seed % 2 == 0 else list(reversed(commands))
            for name in order:
                asked = [network, str(log), str(seed), str(batch_rows), str(threads)]
                if name in OURS:
                    asked.append(OURS[name])
                result = kept.turn(f"{network} {name} {seed}", [*commands[name], *asked], threads)
                found.setdefault((network, name), []).append(result)
                print(f"{network} seed {seed} {name}: {result}", file=sys.stderr, flush=True)
    return found


def table(found: dict[tuple[str, str], list[Turn]]) -> list[str]:
    """Markdown, a line a contender."""
    lines = [
        "| network | library | rows/s | x FuxiCTR | rows a processor second | x FuxiCTR | logloss | worse by | MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (network, name), turns in found.items():
        first = found[network, FIRST]

        def rate(figure: str, turns: list[Turn] = turns, first: list[Turn] = first) -> str:
            ratios = [other[figure] / one[figure] for one, other in zip(turns, first, strict=True)]
            rows = median(one["rows"] / one[figure] for one in turns)
            return f"{rows:,.0f} | {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"

        loss = median(one["logloss"] for one in turns)
        worse = median(one["logloss"] - other["logloss"] for one, other in zip(turns, first, strict=True))
        memory = max(one["peak_mb"] for one in turns)
        rates = f"{rate('seconds')} | {rate('cpu_seconds')}"
        lines.append(f"| {network} | {name} | {rates} | {loss:.5f} | {worse:+.5f} | {memory:,.0f} |")
    return lines


def floor(threads: int, batch_rows: int) -> list[str]:
    """Processor milliseconds of the products of one DNN step and nothing else."""
    torch.set_num_threads(threads)
    widths = [len(training_log.field_sizes()) * OPTIONS["dim"], *OPTIONS["hidden"]]
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16 and not multiplies_bfloat16():
            continue
        costs = []
        for _ in range(7):
            cost = 0.0
            for width_in, width_out in pairwise(widths):
                x, w = torch.randn(batch_rows, width_in).to(dtype), torch.randn(width_out, width_in).to(dtype)
                above = torch.randn(batch_rows, width_out).to(dtype)
                started = time.process_time()
                _ = x @ w.T, above @ w, above.T @ x
                cost += time.process_time() - started
            costs.append(cost)
        rows = batch_rows / min(costs)
        lines.append(
            f"Floor, the matrix products of a DNN step alone, {str(dtype).removeprefix('torch.')}: "
            f"{1e3 * min(costs):.0f} ms of processor time, {rows:,.0f} rows a processor second."
        )
    return lines


def steps(log_path: Path, batch_rows: int, rounds: int) -> list[str]:
    """Processor time of a float32 step of each network in steps of a DNN, one thread, networks taking turns."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `run_epochs` does
    with tempfile.TemporaryDirectory() as folder, seeded(0):
        log = encoded(str(log_path), Path(folder))
        options = FitOptions(batch_rows=batch_rows)
        learners, optimizers = {}, {}
        for name in STEPS_OF:
            learners[name] = ClickLearner(log, NetworkSpec(network=name, options=OPTIONS), options)
            groups = learners[name].parameter_groups()
            optimizers[name] = Optimizer(
                learners[name], groups, learning_rate=1e-3, averaged_steps=100, batch_rows=batch_rows
            )
        costs: dict[str, list[float]] = {name: [] for name in STEPS_OF}
        shuffler = np.random.default_rng(0)
        for turn_ in range(rounds + 1):
            for name, learner in learners.items():
                rows = shuffler.permutation(len(log))[:batch_rows]
                started = time.process_time()
                optimizers[name].step(learner.loss(log.batch(rows), rows).objective)
                if turn_:  # the first is a warm-up
                    costs[name].append(time.process_time() - started)
    lines = ["| network | processor ms a step | in DNN steps | at most |", "|---|---:|---:|---:|"]
    for name, cost in costs.items():
        ratios = [one / other for one, other in zip(cost, costs["dnn"], strict=True)]
        limit = LIMITS.get(name, "")
        spread = f"{median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
        lines.append(f"| {name} | {1e3 * median(cost):.0f} | {spread} | {limit} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=400_000, metavar="N", help="rows of the epoch (default 400,000)")
    parser.add_argument("--valid-rows", type=int, default=40_000, metavar="N", help="rows that judge (default 40,000)")
    parser.add_argument("--batch-rows", type=int, default=4096, metavar="N", help="rows of a batch (default 4096)")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="rounds, each with its seed (default 2)")
    parser.add_argument("--networks", default="dnn,deepfm", metavar="A,B", help="which (default dnn,deepfm)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), metavar="N", help="of torch (default: all cores)"
    )
    parser.add_argument("--step-rounds", type=int, default=5, metavar="N", help="steps of each network; 0: none")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache" / "retort-peers",
        metavar="FOLDER",
        help="where the peers are installed, outside the repository (default ~/.cache/retort-peers; 2 GB)",
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep turns in here, and go on from those in it")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the tables between their markers in here")
    options = parser.parse_args(arguments)
    machine: dict[str, Any] = facts()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.npz"
        training_log.write(log, options.rows, options.valid_rows)
        kept = Kept(options.keep, [options.rows, options.valid_rows, options.batch_rows, options.threads, commit()])
        found = epochs(
            options.networks.split(","),
            options.seeds,
            log,
            options.environments,
            options.threads,
            options.batch_rows,
            kept,
        )
        measured = steps(log, options.batch_rows, options.step_rounds) if options.step_rounds else []
    names = ("rows", "valid_rows", "batch_rows", "seeds", "networks", "threads", "step_rounds")
    asked = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    more = (
        f"{', '.join(machine['vector_instructions'])}; torch {torch.__version__}, {options.threads} threads, "
        f"{options.rows:,} rows, seeds: {options.seeds}, median (least-greatest)"
    )
    found_by = conditions("training_speed", asked, machine, more)
    lines = [found_by, "", *table(found), "", *floor(1, options.batch_rows), "", *measured]
    publish(lines, options.write, "training")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
