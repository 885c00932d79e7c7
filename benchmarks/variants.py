"""python -m benchmarks.variants: what each step of the engine brings, with it and without it in one run.

Every variant answers the same requests from the same bundle on the same core, in alternating order; ratios are taken
within a round. Variants differ by a header or an option, nothing else:

    the service         as it is, candidates known, head known
    head read           a header with something new in each request, as a trace id is: the head is parsed each time
    through ASGI        `charset=utf-8`, which is uncommon: uvicorn's cycle, a task, two messages
    no cache            --candidate-cache-bytes 0: every candidate is decoded and encoded
    one request a run   --max-run-rows 1: nobody shares a run
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.contenders import serve
from benchmarks.load import closed_loop
from benchmarks.machine import commit, cpu_seconds, facts, pin, two_cores
from benchmarks.results import Spread, write_block
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle
from models.versions import Repository

CALLERS = 8
JSON_TYPE = "Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Variant:
    """A name, options of the server, and further headers of request i."""

    name: str
    options: tuple[str, ...] = ()
    headers: Callable[[int], str] = lambda number: JSON_TYPE


VARIANTS = (
    Variant("the service"),
    Variant("head read", headers=lambda number: f"{JSON_TYPE}Traceparent: {number:x}\r\n"),
    Variant("through ASGI", headers=lambda number: "Content-Type: application/json; charset=utf-8\r\n"),
    Variant("no cache", ("--candidate-cache-bytes", "0")),
    Variant("one request a run", ("--max-run-rows", "1")),
)


def request_bytes(body: bytes, headers: str) -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def measure(
    bundle: Bundle, repository: Path, counts: Sequence[int], rounds: int, seconds: float
) -> dict[int, dict[str, list[tuple[float, float]]]]:
    """(requests/s, CPU us a request) by number of candidates, variant and round."""
    server, generator = two_cores()
    pin(generator)
    found: dict[int, dict[str, list[tuple[float, float]]]] = {n: {v.name: [] for v in VARIANTS} for n in counts}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        ports = {}
        for options in {variant.options for variant in VARIANTS}:
            ports[options] = stack.enter_context(serve(repository, [bundle], server, folder, options))
        for count in counts:
            bodies = [request.body(bundle.name) for request in make_requests(bundle, count, 200)]
            # Four times as many as there are bodies, so that a head that is new is not one of those seen lately.
            sent = {
                v.name: [request_bytes(bodies[i % len(bodies)], v.headers(i)) for i in range(4 * len(bodies))]
                for v in VARIANTS
            }
            for number in range(rounds + 1):
                for variant in VARIANTS if number % 2 else tuple(reversed(VARIANTS)):
                    process, port = ports[variant.options]
                    before = cpu_seconds(process.pid)
                    load = closed_loop(port, sent[variant.name], CALLERS, seconds)
                    cpu = (cpu_seconds(process.pid) - before) / len(load.latency_ms)
                    if number:  # the first round fills caches
                        found[count][variant.name].append((load.requests_per_second, 1e6 * cpu))
    return found


def table(found: dict[int, dict[str, list[tuple[float, float]]]]) -> str:
    """Markdown: a row a variant and number of candidates."""
    lines = [
        "| candidates | variant | requests/s | the service / it | CPU us a request | it / the service |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for count, turns in found.items():
        ours = turns[VARIANTS[0].name]
        for name, own in turns.items():
            rate, cpu = Spread.of([turn[0] for turn in own]), Spread.of([turn[1] for turn in own])
            faster = Spread.of([mine[0] / its[0] for mine, its in zip(ours, own, strict=True)])
            dearer = Spread.of([its[1] / mine[1] for mine, its in zip(ours, own, strict=True)])
            figures = (
                rate.text(lambda x: f"{x:,.0f}"),
                faster.text(lambda x: f"{x:.2f}"),
                cpu.text(lambda x: f"{x:.0f}"),
                dearer.text(lambda x: f"{x:.2f}"),
            )
            lines.append(f"| {count} | {name} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants",
        description="What each step of the engine brings.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--model", default="student", metavar="NAME", help="live version of")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 50, 200], metavar="N", help="ads a request")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each variant [5]")
    parser.add_argument("--seconds", type=float, default=0.8, metavar="S", help="of one turn [0.8]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `variants` of this document")
    options = parser.parse_args(arguments)
    repository = Repository(options.repository)
    bundle = read_bundle(repository.path(options.model, repository.live(options.model)))
    machine = facts()
    found = measure(bundle, options.repository, options.candidates, options.rounds, options.seconds)
    conditions = (
        f"`{shlex.join(['python', '-m', 'benchmarks.variants', *arguments])}`, {datetime.now(UTC):%Y-%m-%dT%H:%MZ}, "
        f"commit {commit()}, {machine['cpu']}, load {machine['load_before']:.2f} before the run; {CALLERS} callers, "
        f"rounds: {options.rounds}, median (least-greatest)."
    )
    block = f"{conditions}\n\n{table(found)}"
    print(block)
    if options.write is not None:
        write_block(options.write, "variants", block)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
