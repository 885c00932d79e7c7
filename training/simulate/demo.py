"""`python -m training demo`: a service, its traffic and the results, together, until they are told or Ctrl-C.

The service is a program like any other here: started, asked over HTTP, told to stop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.simulate.options import positive_number, whole

DESCRIPTION = """\
The whole loop alive, in one command: `make demo-live`.

Trains the recipe `synthetic` where --repository has no student and ensemble yet (as `make run` does), starts the
service over them with its exposure log, plays the synthetic world against it, says where to look meanwhile, and prints
what the experiment has shown, beside the truth. Ctrl-C ends the traffic, prints the results and stops the service; once
more, and it ends at once. Everything it writes is in a new folder under --out.

  make demo-live
  python -m training demo --duration 60 --rate 100
  python -m training demo --harm student            the student shows its worst ad: a guard-rail stops it
"""
WINDOW_SECONDS = 15
"""The attribution window: ten times the median delay of a click is the longest."""
PATIENCE_MS = 5000.0
"""More than an ad server has: a busy laptop is to show an experiment too."""
START_SECONDS = 120.0
STOP_SECONDS = 60.0
NAME = "student-vs-ensemble"
EXPERIMENTS = f"""\
# Of the demonstration; every key: docs/experiments.md. It may be edited while the service runs.
format_version: 1
experiments:
  - name: {NAME}
    salt: {NAME}-1
    phase: 1
    default: true
    arms: # the first is control
      - {{name: ensemble, model: ensemble, version: latest, follow: true, weight: 0.5}}
      - {{name: student, model: student, version: latest, follow: true, weight: 0.5}}
    shadow: {{arm: student, sample: 0.2}}
    guard_rails: {{max_ctr_loss: 0.1, max_error_rate: 0.05}}
    analysis: {{minimum_effect: -0.05, attribution_window_seconds: {WINDOW_SECONDS}}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="[models/repository]")
    add("--port", type=whole, default=8000, metavar="N", help="of the service; 0 takes a free one [8000]")
    add("--workers", type=whole, default=1, metavar="N", help="of the service [1]")
    add("--rate", type=positive_number, default=50.0, metavar="X", help="arrivals a second, on average [50]")
    add("--duration", type=positive_number, default=120.0, metavar="S", help="seconds of traffic [120]")
    add("--seed", type=whole, default=1, metavar="N", help="of the traffic [1]")
    add("--harm", choices=("ensemble", "student"), help="this arm shows the ad with its lowest score")
    add("--stay", action="store_true", help="the service goes on after the results, until Ctrl-C")
    add("--out", type=Path, default=Path("runs/demo-live"), metavar="DIR", help="[runs/demo-live]")


def command(arguments: argparse.Namespace) -> int:
    """Trains if need be, serves, plays, answers; returns the exit code."""
    from training.simulate.auctions import Terms
    from training.simulate.connection import Address
    from training.simulate.run import simulate, table
    from training.simulate.traffic import Play

    models = [arguments.repository / name for name in ("student", "ensemble")]
    if not all(any(model.glob("[0-9]*/manifest.json")) for model in models):
        _say(f"no student and ensemble in {arguments.repository} yet: training them first, under two minutes")
        done = _program("training", "run", "synthetic", "--repository", arguments.repository)
        if done:
            return done
    world = world_of(arguments.repository)
    folder = _new_folder(arguments.out)
    files = {"experiments": folder / "experiments.yaml", "log": folder / "log", "truth": folder / "truth.json"}
    files |= {"token": folder / "admin.token", "page": folder / "results.html"}
    files["experiments"].write_text(EXPERIMENTS, encoding="utf-8")
    descriptor = os.open(files["token"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    options = ["--repository", arguments.repository, "--experiments", files["experiments"], "--log", files["log"]]
    options += ["--log-features", "1", "--admin-token-file", files["token"]]
    options += ["--port", arguments.port, "--workers", arguments.workers]
    with serving(folder / "service.txt", options) as url:
        _say(f"the service listens on {url} (what it says: {folder / 'service.txt'})")
        _say(f"look at      {url}/console      token: {files['token']}")
        _say(f"             {url}/metrics, {url}/docs, {url}/experiments/{NAME}/results")
        _say("Ctrl-C ends the traffic and shows the results")
        terms = Terms(**world, seed=arguments.seed, run=f"demo-{int(time.time()):x}")
        play = Play(
            Address.of(url), arguments.rate, seconds=arguments.duration, harm=arguments.harm, patience_ms=PATIENCE_MS
        )
        truth = asyncio.run(simulate(terms, play, wait_seconds=START_SECONDS))
        files["truth"].write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        print("\n".join([*table(truth), *_halts(url)]), flush=True)
        asked = ["--experiments", files["experiments"], "--log", files["log"]]
        asked += ["--as-of", truth["ended"] + WINDOW_SECONDS + 1]
        if not truth["requests"]["answered"]:
            raise TrainingError(f"no request was answered; {folder / 'service.txt'} may say why")
        print(flush=True)
        _program("service", "results", *asked)
        _program("service", "results", *asked, "--format", "html", "--out", files["page"])
        _say(f"the same as a page: {files['page']}; what was true: {files['truth']}")
        _say("to train on it:     python -m training from-log " + _from_log(files["log"], arguments.repository, folder))
        if arguments.stay:
            stay(url)
    return 0


def stay(url: str) -> None:
    """Returns when it is told to end: by Ctrl-C, or by whoever stops programs otherwise."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _say(f"the service goes on at {url}; Ctrl-C stops it")
        signal.pause()


def _halts(url: str) -> list[str]:
    """What guard-rails have stopped, as the service says."""
    with urllib.request.urlopen(f"{url}/experiments/{NAME}", timeout=STOP_SECONDS) as answer:
        arms = json.load(answer)["arms"]
    return [
        f"halted: {arm['name']}, by the guard-rail {arm['halt']['rail']}: {arm['halt']['found']:.3g} "
        f"against a bound of {arm['halt']['bound']:g}; its units get control"
        for arm in arms
        if arm["halted"] and arm["halt"]
    ]


def _from_log(log: Path, repository: Path, folder: Path) -> str:
    schema = _live(repository, "student") / "schema.json"
    return f"{log} --schema {schema} --window {WINDOW_SECONDS} --as-of now --out {folder / 'next'}"


def _live(repository: Path, name: str) -> Path:
    from models.versions import Repository

    found = Repository(repository)
    return found.path(name, found.live(name))


def world_of(repository: Path) -> dict[str, Any]:
    """The synthetic world that the live student was trained on; `TrainingError` where it was another log."""
    path = _live(repository, "student") / "manifest.json"
    source = json.loads(path.read_text(encoding="utf-8"))["recipe"].get("source", {})
    if source.get("kind") != "synthetic":
        raise TrainingError(
            f"{path}: expected a student of the recipe synthetic, whose world can be played, got one of another log; "
            "say another --repository, and it is trained there"
        )
    return {"world_seed": source["seed"], "days": source["days"], "day": source["days"] - 1}


def _new_folder(out: Path) -> Path:
    folder = out / time.strftime("%Y-%m-%dT%H-%M-%S")
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('_')[0]}_{number}")
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def serving(said: Path, options: Sequence[object]) -> Iterator[str]:
    """A service, by its address, until the block ends; then it is told to stop and waited for.

    Raises `TrainingError` with its last words where it does not start.
    """
    command_line = [sys.executable, "-m", "service", *map(str, options)]
    with said.open("w") as file:
        # A group of its own: Ctrl-C is for this program, which tells the service when it is time.
        process = subprocess.Popen(command_line, stdout=file, stderr=file, start_new_session=True)
    try:
        yield _address(process, said)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], said: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        found = re.search(r"Retort listens on (http://\S+:\d+)", said.read_text(encoding="utf-8"))
        if found is not None:
            return found[1]
        time.sleep(0.1)
    last = "\n".join(said.read_text(encoding="utf-8").splitlines()[-3:])
    raise TrainingError(f"the service did not start:\n{last}")


def _program(*arguments: object) -> int:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], check=False).returncode


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
