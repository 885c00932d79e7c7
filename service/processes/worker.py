"""One worker process: an event loop, an application, its slot of the metric files, and a line to its supervisor.

Imports nothing heavy at the top: the metric files must be chosen before the first metric is made, and a
signal that arrives while onnxruntime is still being imported must find someone to listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from service.errors import ConfigError, NoModelError
from service.logs import configure_logging
from service.settings import Settings

if TYPE_CHECKING:
    from service.app import Service

logger = logging.getLogger(__name__)

EXIT_FAILED = 1  # something nobody foresaw
EXIT_CONFIG = 2  # an option, a variable or a file must be changed
EXIT_NO_MODEL = 3  # nothing to serve with

READY = b"ready"
ALIVE = b"alive"
HEARTBEAT_SECONDS = 0.5
SWITCH_SECONDS = 0.0005
"""How long a thread that computes (a page, a scrape, a version that is loaded) keeps the interpreter from the
event loop, each time that a request reads, scores or writes: Python's own 5 ms are several requests."""
HANDSHAKE_SECONDS = 0.1  # more than a client needs to finish opening a connection
IDLE_SECONDS = 1.0  # when draining, a connection that has been idle for so long is closed


def exit_code_of(error: BaseException) -> int:
    """The program's exit code for what stopped it."""
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_NO_MODEL if isinstance(error, NoModelError) else EXIT_FAILED


def run_worker(
    settings: Settings,
    slot: int,
    listener: socket.socket,
    supervisor: Connection,
    metrics_directory: Path,
    loads_first: bool,
) -> None:
    """Serves until told to stop, then exits the process with an honest code.

    `loads_first`: leaves connections to the others until its models are proven.

    SIGTERM and SIGINT, and the supervisor's death, all mean: readiness falls, requests are answered with
    `Connection: close` for `drain_seconds`, the socket closes, what was accepted is answered, exit 0.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    configure_logging(settings.log_level, settings.log_format)

    from service import metrics

    metrics.use_slot_files(metrics_directory, slot)

    from service.app import create_app

    try:
        shared = metrics.Metrics(directory=metrics_directory, slot=slot)
        app = create_app(settings, shared)
        app.loads_first = loads_first
        code = _serve(app, settings, listener, supervisor, stopping)
    except Exception as error:
        _log_failure(error)
        code = exit_code_of(error)
    logging.shutdown()
    sys.exit(code)


def _log_failure(error: BaseException) -> None:
    if isinstance(error, (ConfigError, NoModelError)):
        logger.critical("%s", error)
    else:
        logger.critical("the worker failed", exc_info=error)


def _serve(
    app: Service, settings: Settings, listener: socket.socket, supervisor: Connection, stopping: list[int]
) -> int:
    import uvicorn

    from service.http.direct import Direct
    from service.http.listening import has_input, is_listening, turn_away
    from service.http.protocol import MAX_ARRIVING, MAX_ARRIVING_BODIES, Arriving, GuardedProtocol

    class Server(uvicorn.Server):
        """uvicorn's server, which drains before it closes and leaves the exit code to us."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if app.failure is None:
                # Also with no connection open: a balancer that opens one a request has to see readiness fall.
                app.drain()
                self.hasten(IDLE_SECONDS)
                await asyncio.sleep(settings.drain_seconds)
                # Where the supervisor has hung up, nobody else will accept what comes from here on.
                if supervisor.poll() and turn_away(listener):
                    await asyncio.sleep(HANDSHAKE_SECONDS)
                    while has_input(listener.fileno()):
                        await asyncio.sleep(0.01)
            else:
                self.hasten(0.0)
            for server in self.servers:
                server.close()
            listener.close()
            await super().shutdown(sockets)

        def hasten(self, seconds: float) -> None:
            """From now on connections, also those still to come, end when they have been idle for so long."""
            config.timeout_keep_alive = seconds  # type: ignore[assignment]  # fractions too
            for connection in list(self.server_state.connections):
                connection.hasten(seconds)  # type: ignore[union-attr]

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, _frame: FrameType | None) -> None:
                self.should_exit = True

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            self.should_exit = self.should_exit or bool(stopping)
            yield

    arriving = Arriving(MAX_ARRIVING, MAX_ARRIVING_BODIES * settings.max_body_bytes)
    protocol = functools.partial(
        GuardedProtocol,
        arriving=arriving,
        count_refusal=app.metrics.count_refusal,
        direct=Direct(app.predictor, lambda: app.draining),
    )
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,  # type: ignore[arg-type]  # seconds, fractions too
    )
    server = Server(config)
    port = listener.getsockname()[1]
    app.on_failure = lambda: setattr(server, "should_exit", True)

    async def talk() -> None:
        """Says that we are ready, then that the loop still turns; stops serving when nobody listens."""
        try:
            await app.until_ready()
            while not server.started:
                await asyncio.sleep(0.01)
            # Two programs may bind one port as long as neither listens, and the second is not told that it cannot.
            if not is_listening(listener):
                app.failure = ConfigError(f"another program listens on port {port}")
                server.should_exit = True
                return
            # Vocabularies never die: keep the collector from walking millions of their strings. And let a decoded
            # body of 100,000 lists be less than one collection; by default it is hundreds.
            gc.collect()
            gc.freeze()
            gc.set_threshold(100_000, 50, 100)
            supervisor.send_bytes(READY)
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                app.show_admission()
                supervisor.send_bytes(ALIVE)
        except OSError:
            if not server.should_exit:
                logger.warning("the supervisor is gone: stopping")
                server.should_exit = True

    async def main() -> None:
        line = asyncio.create_task(talk())
        await server.serve(sockets=[listener])
        line.cancel()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(main())
    if app.failure is not None:
        _log_failure(app.failure)
        return exit_code_of(app.failure)
    return 0
