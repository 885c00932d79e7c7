"""python -m benchmarks.peers.serving: our service beside those one could install instead, on the same ONNX file.

Each peer lives in an environment of its own outside the repository (made with pip where it is missing) and serves a
graph by a few lines in `servers/`, as its documentation shows: one process that scores, one thread, no spinning.
The model is the wide one (39 fields, three layers of 400, with a tenth of its ids), in float32 and in int8. Two rows a
peer: once it is sent ready-made ids and has no encoding to do, once raw features like we always are. We are sent
raw JSON and have routing, metrics, limits and the cache of candidates on. Where asked for (`--rows float32:catalogue`),
there is a third: ids for both, theirs of the graph's tables and ours of the catalogue.

Server and generator have a core each; the two sides take turns on the same core, and ratios are taken within a round.
Closed loop: so many callers, each waiting for its answer. Open loop: both sides get the same Poisson stream, at half of
what the slower of them can do. CPU is that of all of a server's processes. Answers must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import FLOOR, BenchmarkError, Cell, floor, serve, wait_for
from benchmarks.load import ask_once, closed_loop, http_request
from benchmarks.machine import ROOT, cpu_seconds, descendants, facts, pin, two_cores
from benchmarks.overload import open_loop
from benchmarks.results import Spread, conditions, publish
from benchmarks.variants import with_catalogue
from benchmarks.wide_bundle import CANDIDATE_SIZES, CONTEXT_SIZES, write_wide_bundle
from benchmarks.workload import AdRequest, make_requests
from models.bundle import Bundle, read_bundle, write_bundle
from models.graph import LOGIT, PCTR
from models.manifest import ModelCard
from training.export.bundles import encode_request, golden_of
from training.export.cost import open_session
from training.export.quantize import Quantize, quantize_graph

SERVERS = Path(__file__).parent / "servers"
NAIVE = "naive FastAPI"
IDS, RAW, CATALOGUE = "ids", "raw", "catalogue"
SENT = {IDS: "ids", RAW: "raw features", CATALOGUE: "ids, we ids of the catalogue"}
START_SECONDS = 120.0
GRAPHS = {"float32": "wide", "int8": "wide-int8"}
ROWS = [f"{graph}:{takes}" for graph in GRAPHS for takes in (IDS, RAW)]
MORE_ROWS = [f"{graph}:{CATALOGUE}" for graph in GRAPHS]
SHRINK = 10
REQUESTS = 100


@dataclass(frozen=True)
class Peer:
    """What is installed, how it is started, and how it is asked.

    `command(python, port, folder, takes)` may write into the folder, from which it is then started.
    """

    packages: tuple[str, ...]
    command: Callable[[Path, int, Path, str], list[str]]
    ready: str
    ask: Callable[[AdRequest, Bundle, str], bytes]
    scores: Callable[[bytes], list[float]] = lambda body: json.loads(body)["pctr"]


def ids_of(request: AdRequest, bundle: Bundle) -> tuple[Any, Any]:
    """Ready-made ids: [1, Fc] and [N, Fa]."""
    encoder = bundle.encoder
    return encoder.encode_context(request.context).ids, encoder.encode_candidates(request.candidates).ids


def plain(path: str) -> Callable[[AdRequest, Bundle, str], bytes]:
    """A JSON object with context and candidates."""

    def ask(request: AdRequest, bundle: Bundle, takes: str) -> bytes:
        context, candidates = request.context, request.candidates
        if takes == IDS:
            context, candidates = (ids.tolist() for ids in ids_of(request, bundle))
        body = json.dumps({"context": context, "candidates": candidates}, separators=(",", ":"))
        return http_request(path, body.encode())

    return ask


def as_tensors(request: AdRequest, bundle: Bundle, takes: str) -> bytes:
    """The Open Inference Protocol as JSON; raw features as one string."""
    if takes == RAW:
        text = json.dumps({"context": request.context, "candidates": request.candidates}, separators=(",", ":"))
        inputs = [{"name": "body", "shape": [1], "datatype": "BYTES", "data": [text]}]
    else:
        inputs = [
            {"name": name, "shape": list(ids.shape), "datatype": "INT32", "data": ids.ravel().tolist()}
            for name, ids in zip(("context", "candidates"), ids_of(request, bundle), strict=True)
        ]
    return http_request("/v2/models/m/infer", json.dumps({"inputs": inputs}, separators=(",", ":")).encode())


def as_binary(request: AdRequest, bundle: Bundle, takes: str) -> bytes:
    """The same with tensors as bytes behind the JSON, there and back."""
    if takes == RAW:
        text = json.dumps(
            {"context": request.context, "candidates": request.candidates}, separators=(",", ":")
        ).encode()
        data = [len(text).to_bytes(4, "little") + text]
        inputs: list[dict[str, Any]] = [{"name": "body", "shape": [1], "datatype": "BYTES"}]
    else:
        pair = ids_of(request, bundle)
        data = [np.ascontiguousarray(ids, np.int32).tobytes() for ids in pair]
        inputs = [
            {"name": name, "shape": list(ids.shape), "datatype": "INT32"}
            for name, ids in zip(("context", "candidates"), pair, strict=True)
        ]
    for tensor, content in zip(inputs, data, strict=True):
        tensor["parameters"] = {"binary_data_size": len(content)}
    outputs = [{"name": "pctr", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}, separators=(",", ":")).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Type"
    request_bytes = http_request("/v2/models/m/infer", head + b"".join(data))
    return request_bytes.replace(b"Content-Type: application/json", f"{length}: application/octet-stream".encode(), 1)


def from_binary(body: bytes) -> list[float]:
    """pctr behind the JSON of an answer."""
    end = body.rindex(b"}", 0, body.index(b"]}", body.index(b"outputs")) + 2) + 1
    return np.frombuffer(body[end:], np.float32).tolist()


def _python(name: str) -> Callable[[Path, int, Path, str], list[str]]:
    return lambda python, port, folder, takes: [str(python), str(SERVERS / name), str(port)]


def _bentoml(python: Path, port: int, folder: Path, takes: str) -> list[str]:
    options = ["--working-dir", str(SERVERS), "--host", "127.0.0.1", "--port", str(port)]
    return [str(python), "-m", "bentoml", "serve", "bentoml_server:Predict", *options]


def _mlserver(python: Path, port: int, folder: Path, takes: str) -> list[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": _free_port(),
        "metrics_port": _free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    model = {"name": "m", "implementation": "mlserver_runtime.Runtime"}
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return [str(python.with_name("mlserver")), "start", str(folder)]


def _triton(python: Path, port: int, folder: Path, takes: str) -> list[str]:
    library = next((python.parents[1] / "lib").glob("python3.*"))
    server = library / "site-packages" / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / library.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy2(stub, backends / "python")
    (folder / "models" / "m" / "1").mkdir(parents=True)
    shutil.copy(SERVERS / "triton_model.py", folder / "models" / "m" / "1" / "model.py")
    given = (
        [("body", "TYPE_STRING", "1")]
        if takes == RAW
        else [
            (n, "TYPE_INT32", "-1, -1")
            for n in (
                "context",
                "candidates",
            )
        ]
    )
    inputs = ", ".join(f'{{ name: "{name}" data_type: {kind} dims: [ {dims} ] }}' for name, kind, dims in given)
    (folder / "models" / "m" / "config.pbtxt").write_text(
        f'name: "m"\nbackend: "python"\nmax_batch_size: 0\ninput [ {inputs} ]\n'
        'output [ { name: "pctr" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n",
        encoding="utf-8",
    )
    options = ["--model-repository", str(folder / "models"), "--backend-directory", str(backends)]
    options += ["--http-address", "127.0.0.1", "--http-port", str(port), "--http-thread-count", "2"]
    return [str(server / "bin" / "tritonserver"), *options, "--allow-grpc=false", "--allow-metrics=false"]


PEERS = {
    "LitServe": Peer(("litserve", "onnxruntime"), _python("litserve_server.py"), "/health", plain("/predict")),
    "BentoML": Peer(("bentoml", "onnxruntime"), _bentoml, "/readyz", plain("/predict")),
    "MLServer": Peer(
        ("mlserver", "onnxruntime"),
        _mlserver,
        "/v2/models/m/ready",
        as_tensors,
        lambda body: json.loads(body)["outputs"][0]["data"],
    ),
    "KServe": Peer(
        ("kserve", "onnxruntime"),
        _python("kserve_server.py"),
        "/v1/models/m",
        plain("/v1/models/m:predict"),
        lambda body: json.loads(body)["predictions"],
    ),
    "Triton": Peer(("nvidia-pytriton", "onnxruntime"), _triton, "/v2/models/m/ready", as_binary, from_binary),
    "Ray Serve": Peer(("ray[serve]", "onnxruntime"), _python("ray_server.py"), "/predict", plain("/predict")),
    NAIVE: Peer(
        (),
        lambda python, port, folder, takes: [
            str(python),
            "-m",
            "benchmarks.naive_service",
            "--bundle",
            os.environ["PEER_BUNDLE"],
            "--port",
            str(port),
        ],
        "/health",
        plain("/predict"),
    ),
}


def python_of(name: str, environments: Path) -> Path:
    """The interpreter of a peer's environment, made where there is none; our own where it needs no other."""
    packages = PEERS[name].packages
    if not packages:
        return Path(sys.executable)
    folder = environments / packages[0].partition("[")[0].removeprefix("nvidia-py")
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {' '.join(packages)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").touch()
    return python


def bundles_in(folder: Path) -> dict[str, Bundle]:
    """The wide model in float32 and in int8, by the name of the graph; written where they are not there yet."""
    repository = folder / "repository"
    repository.mkdir(parents=True, exist_ok=True)
    if not (repository / GRAPHS["float32"] / "1").is_dir():
        sizes = [tuple(max(2, size // SHRINK) for size in side) for side in (CONTEXT_SIZES, CANDIDATE_SIZES)]
        write_wide_bundle(repository, *sizes)
    wide = read_bundle(repository / GRAPHS["float32"] / "1")
    if not (repository / GRAPHS["int8"] / "1").is_dir():
        requests = make_requests(wide, 50, 100, seed=7)
        feeds = [encode_request(wide.encoder, {"context": r.context, "candidates": r.candidates}) for r in requests]
        with tempfile.TemporaryDirectory() as place:
            quantize_graph(wide.path, Path(place), Quantize(layers="int8"), lambda: iter(feeds))
            session = open_session(Path(place) / "model.onnx")
            rows = [{"context": one.context, "candidates": list(one.candidates)} for one in wide.golden.requests]
            golden = golden_of(rows, [session.run([LOGIT, PCTR], encode_request(wide.encoder, row)) for row in rows])
            card = ModelCard(**{key: getattr(wide.manifest, key) for key in ModelCard.model_fields})
            files = {file.name: file for file in Path(place).glob("model.onnx*")}
            model = files.pop("model.onnx")
            named = {"encoder": wide.encoder, "card": card, "golden": golden, "model": model, "external": files}
            write_bundle(repository, GRAPHS["int8"], **named)
    return {graph: read_bundle(repository / name / "1") for graph, name in GRAPHS.items()}


@contextmanager
def running(
    name: str, python: Path, bundle: Bundle, takes: str, core: int | None, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A peer's server, ready: its process and port."""
    peer, port = PEERS[name], _free_port()
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RETORT_")}
    variables |= {"PEER_BUNDLE": str(bundle.path.resolve()), "PEER_TAKES": takes, "PEER_SERVERS": str(SERVERS)}
    variables |= {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True"}
    variables |= {
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "100",
        "PATH": f"{python.parent}:/usr/bin:/bin",
    }
    libraries = [*python.parents[1].glob("lib/python3.*/site-packages/nvidia_pytriton.libs"), *_libpython(python)]
    variables["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    packages = python.parents[1].glob("lib/python3.*/site-packages")
    variables["PYTHONPATH"] = ":".join(map(str, [SERVERS, *(packages if peer.packages else ())]))
    os.environ["PEER_BUNDLE"] = variables["PEER_BUNDLE"]
    command = peer.command(python, port, folder, takes)
    place = ROOT if not peer.packages else folder
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(  # in our own session as our service is: Linux shares a core out by session
            command,
            cwd=place,
            env=variables,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: pin(core),
        ) as process,
    ):
        try:
            wait_for(process, port, peer.ready, log, START_SECONDS)
            yield process, port
        finally:
            ours = [process.pid, *descendants(process.pid)]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
            for pid in ours[1:]:  # whom the server has left behind
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def _libpython(python: Path) -> list[Path]:
    """Where the interpreter's shared library lies, which Triton's Python backend loads."""
    return [python.resolve().parents[1] / "lib"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(
    pythons: Mapping[str, Path],
    bundles: Mapping[str, Bundle],
    options: argparse.Namespace,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Each peer by its interpreter; `keep` is handed one entry a graph, form of request and number of candidates, as
    they are found."""
    core, own = two_cores()
    workload = {count: make_requests(bundles["float32"], count, REQUESTS) for count in options.candidates}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-peers-")))
        repository = bundles["float32"].path.parent.parent
        by_ids = with_catalogue(workload, folder / "ads.ndjson")
        keeping = ("--catalogue", str(folder / "ads.ndjson")) if set(options.rows) & set(MORE_ROWS) else ()
        ours = stack.enter_context(serve(repository, list(bundles.values()), core, folder, keeping))
        alone = stack.enter_context(floor({one.name: one for one in bundles.values()}, workload, core))
        pin(own)
        for name, row in itertools.product(pythons, [*ROWS, *MORE_ROWS]):
            graph, _, row_takes = row.partition(":")
            takes = IDS if row_takes == CATALOGUE else row_takes
            if row not in options.rows or (name == NAIVE and takes == IDS):
                continue
            bundle = bundles[graph]
            place = Path(tempfile.mkdtemp(dir=folder))
            with running(name, pythons[name], bundle, takes, core, place) as theirs:
                for count, requests in workload.items():
                    body = by_ids if row_takes == CATALOGUE else AdRequest.body
                    raw = [http_request("/predict", body(request, bundle.name)) for request in requests]
                    asked = [PEERS[name].ask(request, bundle, takes) for request in requests]
                    for mine, other in list(zip(raw, asked, strict=True))[:3]:
                        expected = json.loads(ask_once(ours[1], mine))["pctr"]
                        got = PEERS[name].scores(ask_once(theirs[1], other))
                        if not np.allclose(got, expected, rtol=0, atol=1e-5):
                            raise BenchmarkError(f"{name}: expected {expected[:3]}..., got {got[:3]}...")
                    entry = {"peer": name, "graph": graph, "takes": row_takes, "candidates": count}
                    sides = {"ours": (ours, raw), "theirs": (theirs, asked)}
                    cell = Cell(bundle.name, count, options.callers)
                    found = _turns(sides, lambda c=cell: alone.measure(c, options.seconds), options)
                    keep(entry | found | {"load": os.getloadavg()[0]})


def _turns(sides: Mapping[str, Any], alone: Callable[[], Any], options: argparse.Namespace) -> dict[str, Any]:
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(options.rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            (process, port), requests = sides[side]
            before = cpu_seconds(process.pid)
            load = closed_loop(port, requests, options.callers, options.seconds)
            cpu = 1e3 * (cpu_seconds(process.pid) - before) / len(load.latency_ms)
            if number:
                p50, p99 = np.percentile(load.latency_ms, [50, 99])
                turns[side].append({"rate": load.requests_per_second, "cpu": cpu, "p50": p50, "p99": p99})
        if number:
            turns.setdefault(FLOOR, []).append({"cpu": alone().cpu_ms})
    rate = 0.5 * min(min(turn["rate"] for turn in turns[side]) for side in sides)
    for side, ((_, port), requests) in sides.items():
        load = open_loop(port, requests, 50, rate, max(options.seconds, min(2.0, 200 / rate)))
        p50, p99 = np.percentile(load.latency_ms, [50, 99])
        turns[side][0] |= {"open_rate": rate, "open_p50": p50, "open_p99": p99}
    return {"turns": turns}


def table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a row a peer, graph, form and number of candidates."""
    lines = [
        "| peer | graph | it is sent | N | its req/s | ours | ours / its | CPU ms: its, ours | its CPU / ours "
        "| its p50, p99 ms | ours | open loop, /s | its p99 / ours | our CPU / session.run |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in entries:
        ours, theirs, alone = (entry["turns"][side] for side in ("ours", "theirs", FLOOR))

        def of(key: str, some: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> str:
            ratios = Spread.of([a[key] / b[key] for a, b in zip(some, other, strict=True)])
            return ratios.text(lambda value: f"{value:.1f}" if value >= 10 else f"{value:.2f}")

        def median(key: str, turns: Sequence[Mapping[str, float]]) -> float:
            return float(np.median([turn[key] for turn in turns]))

        cells = [
            entry["peer"],
            entry["graph"],
            SENT[entry["takes"]],
            str(entry["candidates"]),
            f"{median('rate', theirs):,.0f}",
            f"{median('rate', ours):,.0f}",
            of("rate", ours, theirs),
            f"{median('cpu', theirs):.2f}, {median('cpu', ours):.2f}",
            f"**{of('cpu', theirs, ours)}**",
            f"{median('p50', theirs):.1f}, {median('p99', theirs):.1f}",
            f"{median('p50', ours):.1f}, {median('p99', ours):.1f}",
            f"{theirs[0]['open_rate']:,.0f}",
            f"{theirs[0]['open_p99'] / ours[0]['open_p99']:.1f}",
            of("cpu", ours, alone),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Measures the peers that are named, keeps what was found, prints the table of all that was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.serving",
        description="Our service beside other servers of models.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="NAME", help="[all]")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 50, 200], metavar="N", help="[1 50 200]")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=[*ROWS, *MORE_ROWS],
        default=ROWS,
        metavar="ROW",
        help=f"{' '.join(ROWS)} [these], {' '.join(MORE_ROWS)}",
    )
    parser.add_argument("--callers", type=int, default=8, metavar="N", help="of the closed loop [8]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each side [5]")
    parser.add_argument("--seconds", type=float, default=0.8, metavar="S", help="of one turn [0.8]")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench/peers"), metavar="DIR", help="bundles and results"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache" / "retort-peers",
        metavar="DIR",
        help="where peers are installed, outside the repository [~/.cache/retort-peers; 4 GB]",
    )
    parser.add_argument("--install", action="store_true", help="make the environments and measure nothing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `peers` of this document")
    options = parser.parse_args(arguments)
    pythons = {name: python_of(name, options.environments) for name in options.peers}
    if options.install:
        return 0
    machine, bundles = facts(), bundles_in(options.work)
    kept = options.work / "turns.json"
    entries = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []

    def keep(new: dict[str, Any]) -> None:
        what = ("peer", "graph", "takes", "candidates")
        entries[:] = [entry for entry in entries if any(entry[key] != new[key] for key in what)] + [new]
        kept.write_text(json.dumps(entries), encoding="utf-8")

    measure(pythons, bundles, options, keep)
    order = list(PEERS)
    entries.sort(key=lambda entry: order.index(entry["peer"]))  # a stable sort: the rest stays as measured
    more = f"callers: {options.callers}, rounds: {options.rounds} of {options.seconds:g} s, median (least-greatest)"
    publish([conditions("peers.serving", arguments, machine, more), "", *table(entries)], options.write, "peers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
