"""`python -m tests.conformance`: every client's checks, each in its environment; exit code 1 where one fails."""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance.recording import Recorder
from tests.models.tiny_bundle import REQUESTS, write_tiny_bundle
from tests.service.oip.tensors import HEADER, outputs_in, tensors_of
from tests.service.running import CONTEXT, Running, candidate, running_service

HERE = Path(__file__).parent
TOKEN = "conformance-" * 3

CLIENTS = {
    "tritonclient[http]": (("tritonclient[http]==2.73.0",), "triton_http.py"),
    "tritonclient[grpc]": (("tritonclient[grpc]==2.73.0",), "triton_grpc.py"),
    "kserve": (("kserve==0.21.0",), "kserve_rest.py"),
    "mlserver": (("mlserver==1.7.1",), "mlserver_infer.py"),
}


def python_with(packages: Sequence[str], environments: Path) -> Path:
    """The interpreter of an environment with these packages, made where there is none."""
    name = "-".join("".join(letter if letter.isalnum() else "-" for letter in package) for package in packages)
    python = environments / name / "bin" / "python"
    done = python.with_name("installed")
    if not done.exists():
        print(f"installing {' '.join(packages)} into {python.parents[1]}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(python.parents[1])], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python


def cases(running: Running) -> list[dict[str, Any]]:
    """Requests as tensors, with the scores that /predict gives them; one of each size and every kind of value."""
    found = []
    plain = [(CONTEXT, [candidate(number) for number in range(count)]) for count in (1, 50, 900)]
    for context, rows in (*REQUESTS, *plain):
        kept = {name: value for name, value in context.items() if value is not None}
        candidates = [{**row, "campaign": min(row.get("campaign") or 5, 2**63 - 1)} for row in rows]
        reply = running.request("POST", "/models/student/predict", {"context": kept, "candidates": candidates})
        assert reply.status == 200, reply.body
        found.append({"inputs": tensors_of(kept, candidates), "pctr": reply.json()["pctr"]})
    return found


def check(client: str, python: Path, script: Path, running: Running, file: Path, recorder: Recorder) -> int:
    """Runs a client's script and shows its checks; how many failed."""
    recorder.client = client
    port = recorder.port
    if script.stem.endswith("_grpc"):
        port = int(re.findall(r"gRPC is spoken on \S+:(\d+)", running.log_text())[0])
    command = [str(python), str(script), f"127.0.0.1:{port}", str(file), TOKEN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    for entry in checks:
        print(f"{'ok  ' if entry['passed'] else 'FAIL'} {client:20} {entry['check']}  {entry.get('why', '')}".rstrip())
    failed = sum(not entry["passed"] for entry in checks)
    if failed:
        print(done.stderr[-3000:])
    if done.returncode != 0 or not checks:
        print(f"FAIL {client:20} exit code {done.returncode}\n{done.stderr[-3000:]}")
        failed += 1
    return failed


def answer_to(entry: dict[str, Any], running: Running) -> dict[str, Any]:
    """Status and pctr with which a recorded request is answered, the checks having found that right."""
    connection = running.connection()
    headers = {name: value for name, value in entry["headers"] if name != "accept-encoding"}
    connection.request(entry["method"], entry["path"], base64.b64decode(entry["body"]), headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    scored = response.status == 200 and entry["path"].endswith("/infer")
    pctr = outputs_in(content, response.headers.get(HEADER))["pctr"].tolist() if scored else None
    return {"status": response.status, "pctr": pctr}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"which of {', '.join(CLIENTS)} (default: all)")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache" / "retort-clients",
        metavar="FOLDER",
        help="where clients are installed, outside the repository (default ~/.cache/retort-clients; 1.5 GB)",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write down what the clients send, for the tests")
    options = parser.parse_args(arguments)
    for client in options.clients:
        if client not in CLIENTS:
            parser.error(f"CLIENT: expected one of {', '.join(CLIENTS)}, got {client!r}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        write_tiny_bundle(repository, "student", bias=0.0)
        write_tiny_bundle(repository, "ensemble", bias=1.0, teachers=3)
        for bias in (-1.0, -2.0):
            write_tiny_bundle(repository, "control", bias=bias)
        log = Path(folder) / "log"
        settings = ["--repository", str(repository), "--workers", "2", "--max-in-flight", "256", "--grpc-port", "0"]
        with running_service(log, *settings, RETORT_ADMIN_TOKEN=TOKEN) as running:
            file = Path(folder) / "cases.json"
            file.write_text(json.dumps(cases(running)))
            with Recorder(running.port).running() as recorder:
                for client in options.clients or CLIENTS:
                    packages, script = CLIENTS[client]
                    python = python_with(packages, options.environments)
                    failed += check(client, python, HERE / script, running, file, recorder)
            if options.record is not None:
                kept = [{**entry, **answer_to(entry, running)} for entry in recorder.found.values()]
                options.record.write_text(json.dumps(kept, indent=1) + "\n")
        if "Traceback" in log.read_text():
            print(f"FAIL the service's log has a traceback\n{log.read_text()[-3000:]}")
            failed += 1
    print(f"{failed} failed" if failed else "every check passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
