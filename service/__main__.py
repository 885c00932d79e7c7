"""python -m service: reads the options, refuses what cannot work, then supervises the workers.

Exit codes: 0 stopped as asked; 2 an option, variable or file must be changed; 3 no model that can be served;
1 anything nobody foresaw.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from models.problems import problems_of
from service.errors import ConfigError
from service.logs import configure_logging
from service.settings import PREFIX, SECRETS, Settings

logger = logging.getLogger("service")

TEACHING = """
examples:
  python -m service --repository models/repository --experiments experiments.yaml --workers 4
  RETORT_REPOSITORY=/models RETORT_HOST=0.0.0.0 RETORT_LOG_FORMAT=json python -m service
  python -m service results --help                            what an experiment has shown so far
  python -m service compact --help                            the exposure log as Parquet files
  python -m service ship --help                               the exposure log to PostgreSQL or Kafka
  python -m service ramp --help                               more units step by step, while guard-rails are kept
  python -m service erase-unit --help                         takes one user out of the exposure log
  python -m service bench --help                              what your model costs to serve on this machine

Every option is also a variable: --max-body-bytes is RETORT_MAX_BODY_BYTES; the option wins.

routes      POST /predict, /models/{name}/predict, /models/{name}/versions/{version}/predict
            GET /health/live, /health/ready, /metrics, /experiments, /docs
            POST /explain, like /predict: what the scores are made of; takes the admin token
            /v2/... is the Open Inference Protocol, with --grpc-port over gRPC too; loading and unloading models there
            takes the admin token
files       <repository>/<name>/<version>/ holds a model; <repository>/<name>/live says which version is served:
            a number, or `latest`. Publish by renaming a finished folder into place, roll back by writing `live`;
            the experiment file is replaced the same way. All workers follow within a second; what cannot be used
            is refused and logged, and what was in force stays.
            <log>/ is the exposure log: what was answered, and what POST /feedback says came of it; `results` reads it
signals     SIGTERM, SIGINT: readiness falls, what is in flight is answered, exit 0
            SIGHUP: logged and nothing else, there is nothing to reload
exit codes  0 stopped as asked, 2 wrong option, variable or file, 3 no model to serve, 1 unforeseen
"""


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, its help from the setting's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serves calibrated click probabilities from the models in a repository, A/B tested.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            continue
        option = "--" + name.replace("_", "-")
        text = " ".join((field.description or "").split()).replace("%", "%%")
        if not field.is_required() and field.default is not None:
            text += f" [{field.default}]"
        if field.annotation is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(option, metavar=_metavar(field.annotation), default=None, help=text)
    return parser


def _metavar(annotation: Any) -> str:
    choices = getattr(annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    return {int: "N", float: "X", str: "TEXT"}.get(annotation, "PATH")


def read_settings(arguments: Sequence[str]) -> Settings:
    """The settings from the command line and the environment; `ConfigError` names the option at fault."""
    given = {name: value for name, value in vars(make_parser().parse_args(arguments)).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = problems_of(error, Settings)[0]
        if not first.path:
            raise ConfigError(first.message) from None
        name = str(first.path[0])
        if name not in Settings.model_fields:  # where pydantic-settings names the variable instead
            name = name.lower().removeprefix(PREFIX.lower())
        option = f"--{name.replace('_', '-')} ({PREFIX}{name.upper()})"
        raise ConfigError(f"{option}: {first.message}") from None


def _has(*modules: str) -> bool:
    """Whether an extra is installed, whole; nothing of it is imported."""
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # not even the package that one is in
        return False


def check_files(settings: Settings) -> None:
    """Refuses at once what no worker could work with."""
    from service.admin.token import read_token

    read_token(settings)
    if settings.grpc_port is not None and not _has("grpc", "google.protobuf"):
        raise ConfigError("--grpc-port (RETORT_GRPC_PORT): gRPC is not installed here: pip install 'retort[grpc]'")
    if settings.traces is not None and not _has("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        raise ConfigError("--traces (RETORT_TRACES): OpenTelemetry is not installed here: pip install 'retort[otel]'")
    if not settings.repository.is_dir():
        raise ConfigError(f"--repository: no folder {settings.repository}")
    if settings.experiments is not None:
        from service.experiments.file import read_experiments

        read_experiments(settings.experiments)


def show_example(settings: Settings, host: str, port: int) -> None:
    """Prints a curl line that works, with raw features from a live bundle's golden rows, and the real answer."""
    from models.golden import GOLDEN_FILE
    from models.versions import NONE, Repository

    repository = Repository(settings.repository)
    name = [name for name in repository.names() if repository.wish(name) != NONE][-1]
    golden = json.loads((repository.path(name, repository.live(name)) / GOLDEN_FILE).read_text(encoding="utf-8"))
    first = max(golden["requests"], key=lambda request: sum(v is not None for v in request["context"].values()))
    body = json.dumps(
        {"unit_id": "user-831", "context": first["context"], "candidates": first["candidates"][:3]},
        separators=(",", ":"),
    )
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("POST", "/predict", body, {"content-type": "application/json"})
    answer = connection.getresponse().read().decode()
    print(f"curl -s http://{host}:{port}/predict -H 'content-type: application/json' -d {shlex.quote(body)}")
    print(answer, flush=True)


def serve(settings: Settings) -> int:
    """Serves until told to stop; returns the exit code."""
    from service.http.listening import listen, reserve
    from service.processes.supervisor import Supervisor, metric_files

    check_files(settings)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(metric_files(settings))
        listener = stack.enter_context(listen(settings.host, settings.port))
        if settings.grpc_port is not None:
            reserved = stack.enter_context(reserve(settings.host, settings.grpc_port))
            settings = settings.model_copy(update={"grpc_port": reserved.getsockname()[1]})
        port = listener.getsockname()[1]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        host = f"[{reachable}]" if ":" in reachable else reachable

        def on_ready() -> None:
            logger.info("Retort listens on http://%s:%d (%.1f s to ready)", host, port, time.monotonic() - started)
            if settings.grpc_port is not None:
                logger.info("gRPC is spoken on %s:%d", host, settings.grpc_port)
            if settings.show_example:
                try:
                    show_example(settings, reachable, port)
                except Exception:  # an example that fails is no reason to stop serving
                    logger.exception("the example could not be shown")

        return Supervisor(settings, listener, directory, on_ready).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "results":
        from service.answers.command import main as results
        from service.journal.sinks.answers import read_log

        return results(given[1:], read_log)
    if given and given[0] == "ramp":
        from service.journal.sinks.answers import read_folders
        from service.ramp.command import main as ramp

        return ramp(given[1:], read_folders)
    if given and given[0] == "compact":
        from service.journal.sinks.compact import main as compact

        return compact(given[1:])
    if given and given[0] == "bench":
        from service.bench.command import main as bench

        return bench(given[1:])
    if given and given[0] == "ship":
        from service.journal.sinks.ship import main as ship

        return ship(given[1:])
    if given and given[0] == "erase-unit":
        from service.journal.erase import main as erase_unit

        return erase_unit(given[1:])
    try:
        settings = read_settings(given)
        configure_logging(settings.log_level, settings.log_format)
        return serve(settings)
    except ConfigError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
