"""The command `python -m training simulate`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from training.errors import TrainingError
from training.simulate.options import positive_number, positive_whole, share, whole

DESCRIPTION = """\
Plays the synthetic log's world against a running service. Users arrive (a Poisson process that waits for nobody), each
request has a context and --candidates ads, the service scores them, the best is shown, and clicks drawn from its true
probability come back through POST /feedback after a delay.

  python -m service --repository models/repository --experiments models/experiments.yaml --log log
  python -m training simulate --rate 50 --duration 60
  python -m training simulate --rate 200 --requests 20000 --harm student      an arm that shows its worst ad
  python -m service results --experiments models/experiments.yaml --log log   compare with runs/simulation.json

`make demo-live` does all of it. What was true is written to --out: for each arm the click rate that its choices earn
in expectation. With equal seeds, and a service that gives equal scores, the same ads are shown and clicked.
"""
EPILOG = """\
The models should have been trained on the world that is played: --world-seed 0 and --days 8 are those of the recipe
`synthetic`, and its last day, 7, is the one that its models have not seen. The time of day is drawn, not played.

exit codes  0 played to its end or to Ctrl-C (what was answered is fed back and written), 1 nothing could be played
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the service [http://127.0.0.1:8000]")
    add("--rate", type=positive_number, default=50.0, metavar="X", help="arrivals a second, on average [50]")
    add("--duration", type=positive_number, metavar="S", help="seconds; without it and --requests: until Ctrl-C")
    add("--requests", type=positive_whole, metavar="N", help="arrivals after which it ends")
    add("--candidates", type=positive_whole, default=10, metavar="N", help="ads a request [10]")
    add("--connections", type=positive_whole, default=16, metavar="N", help="kept open to the service [16]")
    add("--seed", type=whole, default=1, metavar="N", help="of the traffic [1]")
    add("--world-seed", type=whole, default=0, metavar="N", help="of the world, as the recipe's source.seed [0]")
    add("--days", type=positive_whole, default=8, metavar="N", help="the world spans, as the recipe's source.days [8]")
    add("--day", type=whole, metavar="N", help="that is played, from 0 [the last]")
    add("--experiment", metavar="NAME", help="that requests name [the service's default]")
    add("--click-delay", type=positive_number, default=1.0, metavar="S", help="median seconds until a click [1]")
    add("--patience-ms", type=positive_number, default=1000.0, metavar="X", help="a later answer shows nothing [1000]")
    add("--deadline-ms", type=positive_number, metavar="X", help="that requests name [none]")
    add("--harm", metavar="ARM", help="this arm shows the ad with its lowest score: guard-rails should stop it")
    add("--duplicates", type=share, default=0.0, metavar="SHARE", help="of the events that are sent twice [0]")
    add("--orphans", type=share, default=0.0, metavar="SHARE", help="clicks on nothing, for each answer [0]")
    add("--run", metavar="NAME", help="what request ids begin with [the time]; two runs into one log need two")
    add("--wait", type=positive_number, default=30.0, metavar="S", help="for the service to be ready [30]")
    add("--out", type=Path, default=Path("runs/simulation.json"), metavar="FILE", help="[runs/simulation.json]")


def command(arguments: argparse.Namespace) -> int:
    """Plays, writes, prints the path of what was written last."""
    from training.simulate.auctions import Terms
    from training.simulate.connection import Address
    from training.simulate.run import simulate, table
    from training.simulate.traffic import Play

    day = arguments.days - 1 if arguments.day is None else arguments.day
    if day >= arguments.days:
        raise TrainingError(f"--day: expected one of 0 to {arguments.days - 1}, got {day}")
    if arguments.run is not None and not (arguments.run.isascii() and 1 <= len(arguments.run) <= 100):
        raise TrainingError("--run: expected 1 to 100 ASCII characters")
    terms = Terms(
        world_seed=arguments.world_seed,
        days=arguments.days,
        day=day,
        seed=arguments.seed,
        candidates=arguments.candidates,
        run=arguments.run or f"sim-{int(1000 * time.time()):x}",
        experiment=arguments.experiment,
        deadline_ms=arguments.deadline_ms,
    )
    settings = Play(
        address=Address.of(arguments.url),
        rate=arguments.rate,
        seconds=arguments.duration,
        requests=arguments.requests,
        connections=arguments.connections,
        click_delay_seconds=arguments.click_delay,
        patience_ms=arguments.patience_ms,
        harm=arguments.harm,
        duplicates=arguments.duplicates,
        orphans=arguments.orphans,
    )
    found = asyncio.run(simulate(terms, settings, wait_seconds=arguments.wait))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(found)), file=sys.stderr)
    print(arguments.out)
    return 0 if found["requests"]["answered"] else 1
