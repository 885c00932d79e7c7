"""python -m benchmarks.stages: where a request's processor time goes, stage by stage, in microseconds.

Each stage is the service's own code on the same requests, called alone in a loop on one core; what the whole costs is
measured beside it, from outside: the CPU time of `python -m service` for a request over a socket. What the stages do
not explain is the kernel's (receive, send, wait), the event loop's, and caches that are colder than in a loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn

from benchmarks.contenders import FLOOR, RETORT, Cell, contenders
from benchmarks.load import http_request
from benchmarks.machine import facts, pin, two_cores
from benchmarks.results import conditions, publish
from benchmarks.workload import AdRequest, make_requests
from models.bundle import Bundle, read_bundle
from models.graph import PCTR, graph_inputs
from models.versions import Repository
from service.app import Service, create_app
from service.http.asgi import Answer
from service.http.direct import Direct
from service.http.protocol import Arriving, GuardedProtocol
from service.scoring.admission import Admission
from service.scoring.candidates import take_apart
from service.scoring.predict import PREDICT, Call
from service.scoring.request import decode_request, request_in
from service.settings import Settings

ROUNDS = 7
CALLERS = 8
Work = Callable[[Any], object]


def microseconds(work: Work, given: Sequence[Any], rounds: int = ROUNDS) -> float:
    """CPU time of `work` for one of what is given: the median over rounds of all of them."""
    for one in given:
        work(one)
    taken = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        for one in given:
            work(one)
        taken.append((time.thread_time_ns() - began) / len(given) / 1e3)
    return median(taken)


class _Transport:
    """Takes what is written and does nothing with it."""

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        pass


class _Echo:
    """A predictor that answers at once: what is left is HTTP."""

    plan, max_body_bytes = object(), 1 << 20
    admission = Admission(1, lambda: 0)

    def __init__(self, size: int) -> None:
        self._answer = Answer(200, b"x" * size)

    def begin(self, target: object, body: bytes, started: float, answer: Callable[[Answer], object]) -> None:
        answer(self._answer)


def http_stages(app: Service, sent: Sequence[bytes]) -> dict[str, float]:
    """From the bytes of a request to the bytes of its answer, with nothing in between; head known, and head read."""
    stages = {}
    for name, knows in (("HTTP, head known", True), ("HTTP, head read", False)):
        direct = Direct(_Echo(600), lambda: False)  # type: ignore[arg-type]
        if not knows:
            direct.learn = lambda head, length: None  # type: ignore[method-assign]
        config = uvicorn.Config(app, log_config=None, access_log=False)
        config.load()
        protocol = GuardedProtocol(
            config=config,
            server_state=uvicorn.server.ServerState(),
            app_state={},
            arriving=Arriving(9, 9),
            direct=direct,
        )
        protocol.connection_made(_Transport())  # type: ignore[arg-type]
        stages[name] = microseconds(protocol.data_received, sent)
        protocol.timeout_keep_alive_task.cancel()  # type: ignore[union-attr]
    return stages


def inner_stages(app: Service, requests: Sequence[AdRequest], model: str) -> dict[str, float]:
    """From a body to an answer, as `Predictor` goes about it."""
    predictor, plan = app.predictor, app.plan
    assert plan is not None
    scorer = plan.live[model].scorer
    encoder = scorer.bundle.encoder
    bodies = [request.body(model) for request in requests]
    taken = [take_apart(body, 10_000) for body in bodies]
    envelopes, pieces = [one[0] for one in taken if one], [one[2] for one in taken if one]
    if len(pieces) != len(bodies):
        raise SystemExit("the benchmark's own requests are not of the common form: nothing was measured")
    decoded = [decode_request(body, 10_000, lambda: "id") for body in bodies]
    for body, own, request in zip(bodies, pieces, decoded, strict=True):
        assert request.rows is not None
        scorer.candidates.learn(body, own, request.rows, encoder.encode_candidates(request.rows))
    contexts = [encoder.encode_context(request.context) for request in requests]
    candidates = [scorer.candidates.encode(own) for own in pieces]
    inputs = [graph_inputs([c], [rows]) for c, rows in zip(contexts, candidates, strict=True) if rows is not None]
    if len(inputs) != len(bodies):
        raise SystemExit("the cache is too small for the benchmark's candidates: nothing was measured")

    calls = []
    for body, envelope, own, feeds in zip(bodies, envelopes, pieces, inputs, strict=True):
        call = Call(predictor.finish, PREDICT, body, time.perf_counter(), lambda answer: None, plan)
        call.request = request_in(envelope, len(own), lambda: "id")
        call.chosen = plan.choose(model, None, "user")
        call.served, call.due, call.rows = call.chosen.served, None, len(own)
        call.pctr = scorer._run([PCTR], feeds)[0]
        call.queued = call.began = call.ended = call.decoded = call.encoding = 0.0
        calls.append(call)

    def as_missed(number: int) -> None:
        request = decode_request(bodies[number], 10_000, lambda: "id")
        assert request.rows is not None
        rows = encoder.encode_candidates(request.rows)
        cut = take_apart(bodies[number], 10_000)
        assert cut is not None
        scorer.candidates.encode(cut[2])
        scorer.candidates.learn(bodies[number], cut[2], request.rows, rows)

    def look_up(body: bytes) -> None:
        cut = take_apart(body, 10_000)
        assert cut is not None
        scorer.candidates.encode(cut[2])

    def reply(call: Call) -> None:
        assert call.pctr is not None
        predictor._reply(call, call.pctr)

    return {
        "decode the envelope, look the candidates up": microseconds(look_up, bodies),
        "  or, all new: decode, encode, learn": microseconds(as_missed, range(len(bodies))),
        "check, choose the arm": microseconds(
            lambda envelope: plan.choose(model, None, request_in(envelope, 1, lambda: "id").unit), envelopes
        ),
        "encode the context": microseconds(lambda request: encoder.encode_context(request.context), requests),
        "inputs of the graph": microseconds(
            lambda both: graph_inputs([both[0]], [both[1]]), list(zip(contexts, candidates, strict=True))
        ),
        "count missing and unknown": microseconds(scorer.count_inputs, inputs),
        "run": microseconds(lambda feeds: scorer._run([PCTR], feeds), inputs),
        "reply, with metrics": microseconds(reply, calls),
    }


async def inside(app: Service, workload: Mapping[int, Sequence[AdRequest]], model: str) -> dict[int, dict[str, float]]:
    """Every stage by number of candidates."""
    async with app.router.lifespan_context(app):
        await app.until_ready()
        return {
            count: {
                **http_stages(app, [http_request("/predict", request.body(model)) for request in requests]),
                **inner_stages(app, requests, model),
            }
            for count, requests in workload.items()
        }


def outside(
    bundle: Bundle, workload: Mapping[int, Sequence[AdRequest]], core: int | None, rounds: int, seconds: float
) -> dict[int, tuple[float, float, float]]:
    """(CPU us a request of the service, of session.run, their ratio), medians over rounds, by number of candidates."""
    found = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        both = stack.enter_context(contenders({bundle.name: bundle}, workload, core, folder))
        for count in workload:
            cell = Cell(bundle.name, count, CALLERS)
            by_name: dict[str, list[float]] = {RETORT: [], FLOOR: []}
            for number in range(rounds + 1):
                for contender in both if number % 2 else reversed(both):
                    if contender.name in by_name:
                        by_name[contender.name].append(1e3 * contender.measure(cell, seconds).cpu_ms)
            ours, floor = (by_name[name][1:] for name in (RETORT, FLOOR))  # the first round fills caches
            ratio = median(a / b for a, b in zip(ours, floor, strict=True))
            found[count] = (median(ours), median(floor), ratio)
    return found


NOT_IN_SUM = ("HTTP, head read", "  or, all new: decode, encode, learn")


def table(stages: Mapping[int, Mapping[str, float]], whole: Mapping[int, tuple[float, float, float]]) -> str:
    """Markdown, a column a number of candidates."""
    counts = list(stages)
    lines = [
        f"| stage, us of CPU | {' | '.join(f'N = {count}' for count in counts)} |",
        "|---|" + "---:|" * len(counts),
    ]

    def line(name: str, values: Sequence[float], form: str = ".1f") -> None:
        lines.append(f"| {name} | {' | '.join(format(value, form) for value in values)} |")

    for name in stages[counts[0]]:
        line(name.replace("  or", "&nbsp;&nbsp;or"), [stages[count][name] for count in counts])
    sums = [sum(us for name, us in stages[count].items() if name not in NOT_IN_SUM) for count in counts]
    line("**sum**, head known, candidates known", sums)
    line(f"**whole**, from outside, {CALLERS} callers", [whole[count][0] for count in counts])
    line("session.run alone", [whole[count][1] for count in counts])
    line("whole / session.run", [whole[count][2] for count in counts], ".2f")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stages", description="Processor time of a request by stage.", epilog=__doc__
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--models", nargs="+", default=["student"], metavar="NAME", help="live versions of")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 50, 200], metavar="N", help="ads a request")
    parser.add_argument("--requests", type=int, default=100, metavar="N", help="distinct requests a size [100]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of the whole service [5]")
    parser.add_argument("--seconds", type=float, default=0.8, metavar="S", help="of one turn [0.8]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `stages` of this document")
    options = parser.parse_args(arguments)
    server, generator = two_cores()
    machine = facts()
    pin(generator)
    found = Repository(options.repository)
    text: list[str] = []
    for name in options.models:
        bundle = read_bundle(found.path(name, found.live(name)))
        workload = {count: make_requests(bundle, count, options.requests) for count in options.candidates}
        with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder:
            file = Path(folder) / "experiments.json"
            arm = {"name": name, "model": name, "version": bundle.version, "weight": 1}
            experiment = {"name": name, "salt": "benchmark", "default": True, "arms": [arm]}
            file.write_text(json.dumps({"format_version": 1, "experiments": [experiment]}), encoding="utf-8")
            settings = Settings(repository=options.repository, experiments=file, candidate_cache_bytes=1 << 28)
            stages = asyncio.run(inside(create_app(settings), workload, name))
        whole = outside(bundle, workload, server, options.rounds, options.seconds)
        facts_of = bundle.manifest.cost
        text += [
            "",
            f"**{name}**: {len(bundle.schema.context_fields)} context fields, {len(bundle.schema.candidate_fields)} a "
            f"candidate, {facts_of.parameters_dense:,} parameters in layers.\n\n{table(stages, whole)}",
        ]
    more = f"onnxruntime {machine['onnxruntime']}, medians of rounds: {options.rounds}"
    publish([conditions("stages", arguments, machine, more), *text], options.write, "stages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
