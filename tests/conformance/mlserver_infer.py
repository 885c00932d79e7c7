"""`mlserver infer`: a file of requests to a file of answers, one at a time and in batches of its own.

Runs in its own environment: python mlserver_infer.py HOST:PORT CASES TOKEN
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

URL, CASES = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())


def infer(folder, requests, *options):
    """What `mlserver infer` writes for these requests, by their ids."""
    given, taken = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
    given.write_text("".join(json.dumps(request) + "\n" for request in requests))
    program = Path(sys.executable).with_name("mlserver")
    command = [str(program), "infer", "-u", URL, "-m", "student", "-i", str(given), "-o", str(taken), "--workers", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
    answers = [json.loads(line) for line in taken.read_text().splitlines()]
    return {answer["id"]: answer for answer in answers}


def scores(answer):
    (output,) = [output for output in answer["outputs"] if output["name"] == "pctr"]
    return [float(value) for value in output["data"]]


def check(name, requests, *options):
    """Prints whether every answer has the scores of /predict, but for the last bits: it asks for many at once."""
    with tempfile.TemporaryDirectory() as folder:
        answers = infer(folder, requests, *options)
    why = ""
    for number, (request, case) in enumerate(zip(requests, CASES, strict=True)):
        answer = answers.get(request["id"])
        if answer is None or "outputs" not in answer:
            why = f"request {number}: {json.dumps(answer)[:200]}"
            break
        got = scores(answer)
        if len(got) != len(case["pctr"]) or any(
            abs(one - other) > 1e-5 * other for one, other in zip(got, case["pctr"], strict=True)
        ):
            why = f"request {number}: other scores"
            break
    print(json.dumps({"check": name, "passed": not why, "why": why}))


def plain(case):
    """Its codecs know no null in a list of numbers: a number that is missing has no tensor."""
    return [given for given in case["inputs"] if None not in given["data"] or given["datatype"] == "BYTES"]


def filled(given):
    return {**given, "data": ["" if value is None else value for value in given["data"]]}


CASES = [case for case in CASES if len(plain(case)) == len(case["inputs"])]
requests = [
    {"id": f"r-{number}", "inputs": [filled(given) for given in case["inputs"]]} for number, case in enumerate(CASES)
]
check("infer, JSON", requests)
check("infer, bytes", requests, "--binary-data")
