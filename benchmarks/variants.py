"""python -m benchmarks.variants: what each step of the engine brings, with it and without it in one run.

Every variant answers the same requests from the same bundle on the same core, in alternating order; ratios are taken
within a round. Variants differ by a header or an option, nothing else:

    the service         as it is, candidates known, head known
    head read           a header with something new in each request, as a trace id is: the head is parsed each time
    through ASGI        `charset=utf-8`, which is uncommon: uvicorn's cycle, a task, two messages
    no cache            --candidate-cache-bytes 0: every candidate is decoded and encoded
    every one new       a cache too small for two candidates: looked up in vain, decoded, encoded, learned
    one request a run   --max-run-rows 1: nobody shares a run
    64 candidates a run --max-run-rows 64: a quick model's runs are shared no further than a slow one's
    by ids              candidates are in the catalogue, requests name them
    by ids, no shares   --catalogue-share-bytes 0: the first layer takes their vectors with each request
    session.run         the same runs on ready-made inputs, without a service
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import FLOOR, Cell, floor, serve
from benchmarks.load import closed_loop
from benchmarks.machine import cpu_seconds, facts, pin, two_cores
from benchmarks.results import Spread, conditions, publish
from benchmarks.workload import AdRequest, make_requests
from models.bundle import Bundle, read_bundle
from models.versions import Repository
from service.catalogue.keeper import HEADER

CALLERS = 8
Found = dict[int, dict[str, list[tuple[float, float]]]]
"""(requests/s, CPU us a request) by number of candidates, variant and round."""
JSON_TYPE = "Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Variant:
    """A name, options of the server, and further headers of request i; `by_ids`: candidates are named."""

    name: str
    options: tuple[str, ...] = ()
    by_ids: bool = False
    headers: Callable[[int], str] = lambda number: JSON_TYPE


VARIANTS = (
    Variant("the service"),
    Variant("head read", headers=lambda number: f"{JSON_TYPE}Traceparent: {number:x}\r\n"),
    Variant("through ASGI", headers=lambda number: "Content-Type: application/json; charset=utf-8\r\n"),
    Variant("no cache", ("--candidate-cache-bytes", "0")),
    Variant("every one new", ("--candidate-cache-bytes", "2048")),
    Variant("one request a run", ("--max-run-rows", "1")),
    Variant("64 candidates a run", ("--max-run-rows", "64")),
    Variant("by ids", by_ids=True),
    Variant("by ids, no shares", ("--catalogue-share-bytes", "0"), by_ids=True),
)


def with_catalogue(requests: Mapping[int, Sequence[AdRequest]], file: Path) -> Callable[[AdRequest, str], bytes]:
    """Writes a catalogue of every candidate in these requests; how a request is said by ids."""
    ids: dict[str, str] = {}
    for request in itertools.chain.from_iterable(requests.values()):
        for candidate in request.candidates:
            ids.setdefault(json.dumps(candidate), f"ad-{len(ids)}")
    lines = [f'{{"id":"{id_}","candidate":{text}}}\n' for text, id_ in ids.items()]
    file.write_text(f"{HEADER.decode()}{''.join(lines)}", encoding="utf-8")

    def body(request: AdRequest, experiment: str) -> bytes:
        named = [ids[json.dumps(candidate)] for candidate in request.candidates]
        members = {
            "unit_id": request.unit,
            "experiment": experiment,
            "context": request.context,
            "candidate_ids": named,
        }
        return json.dumps(members, separators=(",", ":")).encode()

    return body


def request_bytes(body: bytes, headers: str) -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def measure(
    bundle: Bundle, repository: Path, counts: Sequence[int], rounds: int, seconds: float, chosen: Sequence[Variant]
) -> Found:
    """Every chosen variant's turns."""
    server, generator = two_cores()
    pin(generator)
    names = [*(variant.name for variant in chosen), FLOOR]
    found: Found = {n: {name: [] for name in names} for n in counts}
    workload = {count: make_requests(bundle, count, 200) for count in counts}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        by_ids = with_catalogue(workload, folder / "ads.ndjson")
        keeping = ("--catalogue", str(folder / "ads.ndjson"))
        ports = {
            options: stack.enter_context(serve(repository, [bundle], server, folder, (*keeping, *options)))
            for options in {variant.options for variant in chosen}
        }
        alone = stack.enter_context(floor({bundle.name: bundle}, workload, server))
        for count, requests in workload.items():
            whole = [request.body(bundle.name) for request in requests]
            named = [by_ids(request, bundle.name) for request in requests]
            # Four times as many as there are bodies, so that a head that is new is not one of those seen lately.
            sent = {
                v.name: [
                    request_bytes((named if v.by_ids else whole)[i % len(whole)], v.headers(i))
                    for i in range(4 * len(whole))
                ]
                for v in chosen
            }
            for number in range(rounds + 1):
                for variant in chosen if number % 2 else tuple(reversed(chosen)):
                    process, port = ports[variant.options]
                    before = cpu_seconds(process.pid)
                    load = closed_loop(port, sent[variant.name], CALLERS, seconds)
                    cpu = (cpu_seconds(process.pid) - before) / len(load.latency_ms)
                    if number:  # the first round fills caches
                        found[count][variant.name].append((load.requests_per_second, 1e6 * cpu))
                if number:
                    sample = alone.measure(Cell(bundle.name, count, 1), seconds)
                    found[count][FLOOR].append((sample.requests_per_second, 1e3 * sample.cpu_ms))
    return found


def table(found_by_model: Mapping[str, Found]) -> list[str]:
    """Markdown: a row a model, variant and number of candidates."""
    lines = [
        "| model | candidates | variant | requests/s | service / it | CPU us a request | it / service "
        "| it / session.run |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    cells = ((model, count, turns) for model, found in found_by_model.items() for count, turns in found.items())
    for model, count, turns in cells:
        ours = turns[VARIANTS[0].name]
        for name, own in turns.items():
            rate, cpu = Spread.of([turn[0] for turn in own]), Spread.of([turn[1] for turn in own])
            faster = Spread.of([mine[0] / its[0] for mine, its in zip(ours, own, strict=True)])
            dearer = Spread.of([its[1] / mine[1] for mine, its in zip(ours, own, strict=True)])
            above = Spread.of([its[1] / runs[1] for runs, its in zip(turns[FLOOR], own, strict=True)])
            figures = (
                rate.text(lambda x: f"{x:,.0f}"),
                faster.text(lambda x: f"{x:.2f}"),
                cpu.text(lambda x: f"{x:.0f}"),
                dearer.text(lambda x: f"{x:.2f}"),
                above.text(lambda x: f"{x:.2f}"),
            )
            lines.append(f"| {model} | {count} | {name} | {' | '.join(figures)} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants",
        description="What each step of the engine brings.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--models", nargs="+", default=["student"], metavar="NAME", help="live versions of [student]")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 50, 200], metavar="N", help="ads a request")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="of the variants, beside the service [all of them]"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each variant [5]")
    parser.add_argument("--seconds", type=float, default=0.8, metavar="S", help="of one turn [0.8]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace a block of this document")
    parser.add_argument("--block", default="variants", metavar="NAME", help="which [variants]")
    options = parser.parse_args(arguments)
    repository = Repository(options.repository)
    bundles = [read_bundle(repository.path(name, repository.live(name))) for name in options.models]
    machine = facts()
    chosen = [one for one in VARIANTS if not options.only or one is VARIANTS[0] or one.name in options.only]
    found = {
        bundle.name: measure(bundle, options.repository, options.candidates, options.rounds, options.seconds, chosen)
        for bundle in bundles
    }
    more = f"{CALLERS} callers, rounds: {options.rounds}, median (least-greatest)"
    publish([conditions("variants", arguments, machine, more), "", *table(found)], options.write, options.block)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
