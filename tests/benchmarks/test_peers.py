"""What peers are asked, and what the table says of them. The servers themselves run in `make bench-peers`."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.serving import FLOOR, IDS, PEERS, RAW, as_binary, as_tensors, from_binary, ids_of, plain, table
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle
from tests.models.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path_factory.mktemp("bundle")))


def test_ids_are_what_the_graph_is_fed(bundle: Bundle):
    """A peer that is sent ids has nothing left to encode."""
    (request,) = make_requests(bundle, 3, 1)
    context, candidates = ids_of(request, bundle)

    sent = json.loads(plain("/predict")(request, bundle, IDS).partition(b"\r\n\r\n")[2])

    assert (sent["context"], sent["candidates"]) == (context.tolist(), candidates.tolist())


def test_raw_features_are_what_we_are_sent(bundle: Bundle):
    (request,) = make_requests(bundle, 3, 1)

    sent = json.loads(plain("/predict")(request, bundle, RAW).partition(b"\r\n\r\n")[2])

    assert sent == {"context": request.context, "candidates": request.candidates}


@pytest.mark.parametrize("takes", [IDS, RAW])
def test_tensors_say_the_same_as_json_and_as_bytes(bundle: Bundle, takes: str):
    """The Open Inference Protocol, once written out and once binary behind its head."""
    (request,) = make_requests(bundle, 3, 1)
    written = json.loads(as_tensors(request, bundle, takes).partition(b"\r\n\r\n")[2])["inputs"]
    head, _, body = as_binary(request, bundle, takes).partition(b"\r\n\r\n")
    length = int(head.partition(b"Inference-Header-Content-Length: ")[2].partition(b"\r\n")[0])
    assert f"\r\nContent-Length: {len(body)}".encode() in head

    at = length
    for tensor, other in zip(json.loads(body[:length])["inputs"], written, strict=True):
        piece = body[at : at + tensor["parameters"]["binary_data_size"]]
        at += len(piece)
        assert (tensor["name"], tensor["shape"], tensor["datatype"]) == tuple(
            other[key] for key in ("name", "shape", "datatype")
        )
        if takes == IDS:
            assert np.frombuffer(piece, np.int32).tolist() == other["data"]
        else:
            assert (int.from_bytes(piece[:4], "little"), piece[4:].decode()) == (len(piece) - 4, other["data"][0])
    assert at == len(body)


def test_scores_are_found_behind_a_binary_head():
    """Whatever bytes they are: a float may hold a brace."""
    pctr = np.frombuffer(b"}]}\x3e\x01\x02}\x3d", np.float32)
    head = b'{"model_name":"m","outputs":[{"name":"pctr","shape":[2],"parameters":{"binary_data_size":8}}]}'

    assert from_binary(head + pctr.tobytes()) == pctr.tolist()


def test_a_row_holds_medians_and_ratios_within_rounds():
    """Three rounds: the machine may be slower in one, the ratio is that of turns that followed one another."""
    ours = [{"rate": rate, "cpu": 0.5, "p50": 2.0, "p99": 4.0} for rate in (1000.0, 500.0, 2000.0)]
    theirs = [{"rate": rate, "cpu": 2.0, "p50": 8.0, "p99": 20.0} for rate in (200.0, 100.0, 400.0)]
    for turns, p99 in ((ours, 3.0), (theirs, 30.0)):
        turns[0] |= {"open_rate": 50.0, "open_p50": 1.0, "open_p99": p99}
    turns = {"ours": ours, "theirs": theirs, FLOOR: [{"cpu": 0.25}] * 3}
    entry = {"peer": "LitServe", "graph": "int8", "takes": IDS, "candidates": 50, "turns": turns}

    (row,) = table([entry])[2:]

    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["LitServe", "int8", "ids", "50", "200", "1,000"]
    assert cells[6:9] == ["5.00 (5.00-5.00)", "2.00, 0.50", "**4.00 (4.00-4.00)**"]
    assert cells[11:] == ["50", "10.0", "2.00 (2.00-2.00)"]


def test_every_peer_has_its_server(tmp_path: Path):
    """Each command names a file that is there, but for those that start a program of the peer's own."""
    folder = Path(__file__).parents[2] / "benchmarks" / "peers" / "servers"
    named = {"LitServe": "litserve_server.py", "KServe": "kserve_server.py", "Ray Serve": "ray_server.py"}
    for name, file in named.items():
        assert PEERS[name].command(Path("python"), 1, tmp_path, IDS)[1] == str(folder / file)
        assert (folder / file).is_file()
    for file in ("bentoml_server.py", "mlserver_runtime.py", "triton_model.py", "scoring.py"):
        assert (folder / file).is_file()
