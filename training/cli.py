"""The offline program's command line.

Exit codes: 0 done; 1 a log, recipe or step was refused (the reason on stderr, no stack trace); 2 the command itself is
wrong; 130 or 143 stopped by Ctrl-C or SIGTERM (finished steps are kept). What scripts read is on stdout, everything for
people on stderr.

torch takes a second to import, so each command imports what it needs when it runs.
"""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
from pathlib import Path

from models.errors import ModelsError
from training.errors import TrainingError
from training.from_log import command as from_log_command
from training.pack import command as pack_command
from training.pipeline import torchrun
from training.simulate import command as simulate_command
from training.simulate import demo as demo_command

DESCRIPTION = """\
Retort, offline: from a click log to models that the service can score with.

  python -m training run synthetic                    the built-in log, everything from end to end
  python -m training infer-schema clicks.csv.gz       propose a schema for your own log, to edit
  python -m training run my/recipe.yaml --seeds 3     train on it, with the spread over three seeds
  python -m training run synthetic --set student.fit.kd_weight=0.5
  python -m training ablate synthetic --table teachers          who teaches whom: a table of the paper, on this log

  torchrun --nproc-per-node 2 -m training run synthetic         each network trained by two processes at once

A run is cached step by step under its folder: run it again and only what changed is done again.
"""

SEARCH = """\
How fast may the student be? Tries sizes, distillation weights and learning rates (proposed by Optuna), each student
trained as a run would train it on teachers and a gate that are trained once. Judged on validation part A and by
measured latency (session.run of its ONNX graph, one thread, in turns with the recipe's own student). The finalists
are trained again with other seeds; of those the fastest within --within of the best is chosen, of several as fast (to
within the noise of timing) the one with the fewest parameters.

  python -m training search synthetic --trials 24
  python -m training search synthetic --trials 48                    the same search goes on, with 24 more
  python -m training search my.yaml --widths 64 128 --depths 2 --kd-weights .9 --networks dnn dcnv2

Killed, it goes on where it was: the same command. Trials are kept in OUT/search.sqlite (optuna-dashboard reads it) as
long as recipe, log, lists and code stay; fits are cached like any step. Printed: the choice as --set values, and last
the path of search.json; search.html beside it draws AUC against latency, and the next report of the folder shows it.
With the schemes cotrain and mutual every trial trains the teachers too.
"""


_TABLES = {
    "baselines": "every network alone, and students DNN and DCN (the paper's overall comparison)",
    "schemes": "soft label or hint, pre-train or co-train (Table 2); mutual co-training",
    "teachers": "four students by five teachers (Table 3)",
    "count": "one, three, six teachers; M, D and S (Table 4)",
    "gates": "form of the gate, which rows it learns from, by which loss",
    "stopping": "what stops a student, merged validation",
    "controls": "the recipe's student beside what else could explain its gain",
    "data": "10, 30 and 100% of the training rows",
}
_ABLATE = "\n".join(
    [
        "Trains whatever a table compares, every network with its own tuned settings, and prints the table and, for",
        "each claim of the paper, whether it held on this log. Tables:",
        "",
        *(f"  {name:<10} {what}" for name, what in _TABLES.items()),
        "",
        "Networks beside the recipe's own are tuned by naming them under `zoo` and `python -m training sweep RECIPE",
        "--sides zoo`. Steps are cached in the run's folder and shared by all tables: an interrupted one goes on where",
        "it stood. Each full table is OUT/tables/<table>.json; the last lines printed are their paths.",
    ]
)


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        if argv[:1] == ["infer-schema"]:  # its options are its own
            from training.data import infer

            return infer.main(argv[1:])
        arguments = _parser().parse_args(argv)
        if torchrun.is_follower():
            return torchrun.follow()
        with torchrun.leading():
            return int(arguments.command(arguments))
    except (TrainingError, ModelsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished steps are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except _StoppedError:
        print("stopped by SIGTERM; finished steps are kept", file=sys.stderr)
        return 143
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:  # a folder that cannot be made, a full disk
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1


class _StoppedError(BaseException):
    """SIGTERM came."""


def _stop(number: int, frame: object) -> None:
    raise _StoppedError


def listen_to_signals() -> None:
    """SIGTERM and SIGINT end the program in order. For the program alone: they are the whole process's."""
    signal.signal(signal.SIGTERM, _stop)
    # A shell that starts us in the background has us ignore SIGINT; who sends one by hand still means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="train teachers, gate and student, export them, write the report",
        description="From a log to exported models and a report. The last line printed is the path of report.json.",
    )
    _add_recipe(run)
    run.add_argument("--seeds", type=_positive, default=1, metavar="N", help="train N times, seeds 1 to N (default 1)")
    run.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="where bundles go (default models/repository; with --out, OUT/repository)",
    )
    run.add_argument(
        "--warm-start",
        type=Path,
        metavar="DIR",
        help="start from this earlier run, say runs/yesterday: its ids stay, its weights are where training begins",
    )
    run.set_defaults(command=_run)

    sweep = commands.add_parser(
        "sweep",
        help="tune teachers, student and control with the same budget",
        description="Tries one grid of learning rate and embedding init for every teacher and for the hard-label "
        "control, then for the student on the ensemble of the teachers found; epochs by early stopping; judged on "
        "validation rows only. Prints the best settings as --set values, and last the path of sweep.json; a report of "
        "the same folder shows it.",
    )
    _add_recipe(sweep)
    sweep.add_argument("--seeds", type=_positive, default=3, metavar="N", help="seeds a trial (default 3)")
    sweep.add_argument(
        "--sides",
        nargs="+",
        default=["teachers", "control", "student"],
        choices=["teachers", "control", "student", "zoo", "students"],
        help="what to tune (default: teachers, control, student); the rest stays as the recipe has it",
    )
    sweep.add_argument(
        "--learning-rates", nargs="+", type=float, metavar="RATE", help="the grid's (default .002 .004 .008 .016)"
    )
    sweep.add_argument("--init-sds", nargs="+", type=float, metavar="SD", help="the grid's (default .03 .1 .3 .5)")
    sweep.set_defaults(command=_sweep)

    ablate = commands.add_parser(
        "ablate",
        help="the paper's tables on your log, and the controls they should have had",
        description=_ABLATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recipe(ablate)
    ablate.add_argument(
        "--table", nargs="+", default=list(_TABLES), choices=list(_TABLES), metavar="TABLE", help="which (default: all)"
    )
    ablate.add_argument("--seeds", type=_positive, default=3, metavar="N", help="train N times (default 3)")
    ablate.set_defaults(command=_ablate)

    search = commands.add_parser(
        "search",
        help="the fastest student that is good enough: AUC against latency",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=SEARCH,
    )
    _add_recipe(search)
    search.add_argument(
        "--trials", type=_positive, default=24, metavar="N", help="students tried in all, earlier ones among them (24)"
    )
    search.add_argument(
        "--within", type=_loss, default=0.001, metavar="AUC", help="loss to the best that is allowed (default .001)"
    )
    search.add_argument("--seeds", type=_positive, default=1, metavar="N", help="seeds a trial (default 1)")
    search.add_argument(
        "--confirm",
        type=_count,
        default=3,
        metavar="N",
        help="further seeds, which the finalists are judged by (default 3; 0: by those of the trials)",
    )
    numbers = (
        ("widths", _positive, "units of the first hidden layer; each further one has half (16 32 64 128 256)"),
        ("depths", _positive, "hidden layers (1 2 3)"),
        ("dims", _positive, "width of an embedding (4 8 16)"),
        ("kd-weights", float, "weight of the ensemble against clicks (.5 .7 .9 1)"),
        ("learning-rates", float, "of the student (half, once and twice the recipe's)"),
        ("networks", str, "of docs/training.md, Networks (the recipe's)"),
    )
    for name, form, text in numbers:
        search.add_argument(f"--{name}", nargs="+", type=form, metavar=name[:-1].upper(), help=text)
    search.set_defaults(command=_search)

    again = commands.add_parser(
        "report",
        help="a run's report.html once more, from its report.json",
        description="Writes report.html again, from the report.json of a run and the sweep and search that lie beside "
        "it now. Nothing is trained or measured. Prints the path of report.html.",
    )
    again.add_argument("run", type=Path, metavar="RUN", help="folder of a run, as runs/synthetic, or its report.json")
    again.set_defaults(command=_report)

    results = commands.add_parser(
        "results",
        help="reports of runs and tables of ablate as Markdown",
        description="Prints what the report.json of one or several runs says, and the sweep it carries, as Markdown: "
        "every model with its spread over seeds, paired differences, and what was to be reached; and tables of ablate.",
    )
    what = results.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "reports",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="report.json of a run, or tables/<table>.json of ablate",
    )
    what.add_argument(
        "--write",
        type=Path,
        metavar="DOCUMENT",
        help="write the blocks of this document again, each from the files that it names: "
        "'<!-- results: FILE ... -->', paths from the document's folder, to '<!-- results end -->'",
    )
    results.set_defaults(command=_results)

    commands.add_parser("infer-schema", help="propose a schema for CSV, TSV or Parquet files", add_help=False)

    packing = commands.add_parser(
        "pack",
        help="serve a model trained elsewhere: a bundle of its ONNX graph and vocabularies",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=pack_command.DESCRIPTION,
        epilog="From training in FuxiCTR to the first request, as commands: docs/elsewhere.md",
    )
    pack_command.add_arguments(packing)

    generate = commands.add_parser(
        "generate",
        help="write a synthetic click log with known true probabilities",
        description="Writes the synthetic log that `run synthetic` trains on, with its schema beside it, and prints "
        "what the best possible model would reach on it.",
    )
    generate.add_argument(
        "output",
        type=Path,
        nargs="?",
        default=Path("data/synthetic.parquet"),
        metavar="FILE",
        help=".parquet, .csv, .csv.gz (default data/synthetic.parquet)",
    )
    generate.add_argument("--seed", type=int, default=None, help="of the world and its log (default: the recipe's)")
    generate.add_argument("--rows", type=_positive, default=None, help="impressions (default: the recipe's)")
    generate.add_argument("--days", type=_positive, default=None, help="days it spans (default: the recipe's)")
    generate.set_defaults(command=_generate)

    returning = commands.add_parser(
        "from-log",
        help="a training log of what the service logged: exposures with features, impressions and clicks",
        description=from_log_command.DESCRIPTION,
    )
    from_log_command.add_arguments(returning)
    returning.set_defaults(command=from_log_command.command)

    simulating = commands.add_parser(
        "simulate",
        help="traffic of the synthetic world against a running service, with the truth known",
        description=simulate_command.DESCRIPTION,
    )
    simulate_command.add_arguments(simulating)
    simulating.set_defaults(command=simulate_command.command)

    demonstrating = commands.add_parser(
        "demo", help="a service, its traffic and the results, together", description=demo_command.DESCRIPTION
    )
    demo_command.add_arguments(demonstrating)
    demonstrating.set_defaults(command=demo_command.command)

    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override one value of the recipe; may be repeated",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of this run (default runs/<recipe name>)")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("RETORT_TRAINING_DATA") or None,
        metavar="DIR",
        help="folder of the real logs that a recipe names (default: RETORT_TRAINING_DATA)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=max(1, min(8, os.cpu_count() or 1)),
        metavar="N",
        help="steps side by side, one core each (default: one a core, 8 at most)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from training.run import run

    warm = [] if arguments.warm_start is None else [f"warm_start={json.dumps(str(arguments.warm_start.resolve()))}"]
    path = run(
        arguments.recipe,
        overrides=[*arguments.set, *warm],
        seeds=list(range(1, arguments.seeds + 1)),
        out=arguments.out,
        repository=arguments.repository,
        data=arguments.data,
        workers=arguments.workers,
    )
    print(path)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from training.data.synthetic import World
    from training.recipe import SyntheticSettings, load_recipe

    settings = {name: getattr(arguments, name) for name in ("seed", "rows", "days")}
    chosen = [f"source.{name}={value}" for name, value in settings.items() if value is not None]
    source = load_recipe("synthetic", chosen).recipe.source
    assert isinstance(source, SyntheticSettings)
    world = World(**source.model_dump(exclude={"kind"}))
    try:
        facts = world.write(arguments.output)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{arguments.output}: cannot be written: {error}") from None
    schema = arguments.output.parent / f"{arguments.output.name.partition('.')[0]}.schema.json"
    schema.write_text(world.schema().to_json() + "\n", encoding="utf-8")
    print(json.dumps({"log": str(arguments.output), "schema": str(schema), **facts.to_json()}, indent=1))
    return 0


def _results(arguments: argparse.Namespace) -> int:
    from training.results import markdown, write_into

    if arguments.write is not None:
        write_into(arguments.write)
        print(arguments.write)
    else:
        print(markdown(arguments.reports))
    return 0


def _count(text: str, least: int = 0) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return number


def _report(arguments: argparse.Namespace) -> int:
    from training.report import report_again

    print(report_again(arguments.run))
    return 0


def _positive(text: str) -> int:
    return _count(text, least=1)


def _loss(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, as .001, got {text!r}")
    return number


def _ablate(arguments: argparse.Namespace) -> int:
    from training.ablate.markdown import section
    from training.ablate.run import ablate
    from training.pipeline.steps import read_json
    from training.recipe import load_recipe
    from training.run import at_work

    with at_work(load_recipe(arguments.recipe, arguments.set).recipe, arguments.out) as (out, display):
        paths = ablate(
            arguments.recipe,
            arguments.table,
            overrides=arguments.set,
            seeds=list(range(1, arguments.seeds + 1)),
            out=out,
            data=arguments.data,
            workers=arguments.workers,
            watcher=display,
            expects=display.expects,
        )
    for path in paths:
        print("\n".join(section(read_json(path))), file=sys.stderr)
    print("\n".join(map(str, paths)))
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from training.recipe import load_recipe
    from training.run import at_work
    from training.sweep import INIT_SDS, LEARNING_RATES, found_at, sweep

    with at_work(load_recipe(arguments.recipe, arguments.set).recipe, arguments.out) as (out, display):
        found = sweep(
            arguments.recipe,
            overrides=arguments.set,
            seeds=list(range(1, arguments.seeds + 1)),
            out=out,
            data=arguments.data,
            workers=arguments.workers,
            watcher=display,
            sides=arguments.sides,
            learning_rates=arguments.learning_rates or LEARNING_RATES,
            init_sds=arguments.init_sds or INIT_SDS,
        )
    print("\n".join(f"--set {setting}" for setting in found["settings"]), file=sys.stderr)
    print("".join(f"at the edge of the grid: {edge}\n" for edge in found["edges"]), end="", file=sys.stderr)
    print(found_at(out, arguments.sides))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from training.recipe import load_recipe
    from training.report.values import written
    from training.report.write import write_search
    from training.run import at_work
    from training.search import search

    with at_work(load_recipe(arguments.recipe, arguments.set).recipe, arguments.out) as (out, display):
        found = search(
            arguments.recipe,
            overrides=arguments.set,
            trials=arguments.trials,
            seeds=arguments.seeds,
            confirm=arguments.confirm,
            within=arguments.within,
            out=out,
            data=arguments.data,
            workers=arguments.workers,
            watcher=display,
            space={
                "network": arguments.networks,
                "width": arguments.widths,
                "depth": arguments.depths,
                "dim": arguments.dims,
                "kd_weight": arguments.kd_weights,
                "learning_rate": arguments.learning_rates,
            },
            say=display.say,
        )
    write_search(out, found)
    print(*(written({"search": found}, sentence) for sentence in found["said"]), sep="\n", file=sys.stderr)
    print("\n".join(f"--set {shlex.quote(setting)}" for setting in found["settings"]), file=sys.stderr)
    print(f"{out / 'search.html'} draws it", file=sys.stderr)
    print(out / "search.json")
    return 0
