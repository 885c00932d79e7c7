"""The ad catalogue: ids in place of candidates answer as the candidates would, whatever happens meanwhile."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.catalogue.lines import SLICE_BYTES, CatalogueError, EncodedCatalogue, read_catalogue
from tests.models.tiny_bundle import tiny_model, write_tiny_bundle
from tests.service.running import (
    CONTEXT,
    TOKEN,
    ask,
    candidate,
    make_app,
    metric,
    request_of,
    running_service,
    started,
    wait_for,
    wait_until_ready,
)

BEARER = ("authorization", f"Bearer {TOKEN}")
HEADERS = dict([BEARER, ("content-type", "application/x-ndjson")])


def line(number: int, **changes: Any) -> str:
    return json.dumps({"id": f"id-{number}", "candidate": {**candidate(number), **changes}})


def lines(*numbers: int) -> str:
    return "".join(line(number) + "\n" for number in numbers)


def by_ids(*ids: str, **members: Any) -> dict[str, Any]:
    return {"context": CONTEXT, "candidate_ids": list(ids), **members}


@pytest.fixture
def keeping(own_repository: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A client of an application that keeps a catalogue, none yet."""
    app = make_app(own_repository, catalogue=tmp_path / "ads.ndjson", admin_token=TOKEN)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def put(client: TestClient, text: str | bytes, **headers: str) -> Any:
    return client.put("/catalogue", content=text, headers={**HEADERS, **headers})


def test_ids_answer_as_the_candidates_would(keeping: TestClient):
    """To the byte, for each model, in any order, once and again; the version is that of the lines."""
    answer = put(keeping, lines(*range(30)))

    assert answer.status_code == 200
    assert answer.json()["candidates"] == 30
    assert keeping.get("/catalogue", headers=HEADERS).json() == answer.json()
    for arm in ("student", "ensemble"):
        for numbers in ([3], [5, 4, 3, 3], list(range(30))):
            whole = request_of(*numbers, arm=arm, request_id="r")
            short = by_ids(*(f"id-{number}" for number in numbers), arm=arm, request_id="r")

            assert keeping.post("/predict", json=short).content == keeping.post("/predict", json=whole).content
    short = by_ids("id-1", request_id="r")
    whole = request_of(1, request_id="r")
    for path in ("/models/student/predict", "/models/student/versions/1/predict"):
        assert keeping.post(path, json=short).content == keeping.post(path, json=whole).content


def test_an_unknown_id_answers_null(keeping: TestClient):
    """Beside the scores of the others, and alone; `unknown_candidates` says where. Counted as what was scored."""
    put(keeping, lines(1, 2))
    known = keeping.post("/predict", json=request_of(1, 2, arm="student")).json()["pctr"]
    before = metric(keeping.get("/metrics").text, "retort_pctr_count")

    mixed = keeping.post("/predict", json=by_ids("x", "id-1", "é", "id-2", arm="student")).json()
    nobody = keeping.post("/predict", json=by_ids("x", "y", arm="student"))

    assert mixed["pctr"] == [None, known[0], None, known[1]]
    assert mixed["unknown_candidates"] == [0, 2]
    assert (nobody.status_code, nobody.json()["pctr"]) == (200, [None, None])
    assert nobody.json()["unknown_candidates"] == [0, 1]
    assert metric(keeping.get("/metrics").text, "retort_pctr_count") == before + 2
    assert "unknown_candidates" not in keeping.post("/predict", json=by_ids("id-1")).json()


BAD_LINES = [
    ("no JSON", "{", None),
    ("a list", "[]", None),
    ("no id", '{"candidate":{}}', None),
    ("no candidate", '{"id":"x"}', None),
    ("a number for an id", '{"id":7,"candidate":{}}', None),
    ("an empty id", '{"id":"","candidate":{}}', None),
    ("a long id", json.dumps({"id": "é" * 129, "candidate": {}}), None),
    ("another member", '{"id":"x","candidate":{},"s3cret":1}', None),
    ("text for a float", '{"id":"x","candidate":{"price":"s3cret"}}', "price"),
    ("a wide integer", '{"id":"x","candidate":{"campaign":99999999999999999999}}', "campaign"),
    ("a wide integer nobody reads", '{"id":"x","candidate":{"z":[99999999999999999999]}}', None),
    ("an id again", line(2), None),
]


@pytest.mark.parametrize(("bad", "field"), [case[1:] for case in BAD_LINES], ids=[case[0] for case in BAD_LINES])
def test_a_bad_line_refuses_the_whole_and_names_itself(
    keeping: TestClient, tmp_path: Path, bad: str, field: str | None
):
    """What was in force stays; nothing of the line is echoed."""
    put(keeping, lines(1))
    kept = (tmp_path / "ads.ndjson").read_bytes()

    refused = put(keeping, lines(*range(2, 250)) + "\n" + bad + "\n" + line(300))

    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_catalogue")
    assert (refused.json()["row"], refused.json().get("field")) == (250, field)
    assert "s3cret" not in refused.text
    assert (tmp_path / "ads.ndjson").read_bytes() == kept
    assert keeping.get("/catalogue", headers=HEADERS).json()["candidates"] == 1
    assert keeping.post("/predict", json=by_ids("id-1", "id-5")).json()["unknown_candidates"] == [1]


def test_a_catalogue_replaces_the_one_before(keeping: TestClient):
    """Ids that are gone are unknown; an id may mean another ad; an empty catalogue is one."""
    first = put(keeping, lines(1, 2)).json()
    second = put(keeping, line(1, ad_id="a9")).json()

    changed = keeping.post("/predict", json=by_ids("id-1", "id-2", arm="student")).json()["pctr"]

    moved = request_of(1, arm="student")
    moved["candidates"][0]["ad_id"] = "a9"
    assert changed == [keeping.post("/predict", json=moved).json()["pctr"][0], None]
    assert first["version"] != second["version"]
    assert put(keeping, lines(1, 2)).json() == first
    assert put(keeping, "").json()["candidates"] == 0
    assert keeping.post("/predict", json=by_ids("id-1")).json()["pctr"] == [None]


def test_who_may_register_and_how_much(own_repository: Path, tmp_path: Path):
    """Nobody without the token; no more than the bound, plain or compressed; nothing where no file is named."""
    settings = {"catalogue": tmp_path / "ads", "admin_token": TOKEN, "max_catalogue_bytes": 70_000}
    with TestClient(make_app(own_repository, **settings), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        packed = gzip.compress(lines(1, 2).encode())
        bomb = gzip.compress(b"\n" * 70_001)
        codes = [
            client.put("/catalogue", content=lines(1)).status_code,
            put(client, lines(1), authorization="Bearer wrong").status_code,
            put(client, "\n" * 70_001).status_code,
            put(client, "\n" * 69_000).status_code,
            put(client, packed, **{"content-encoding": "gzip"}).status_code,
            put(client, bomb, **{"content-encoding": "gzip"}).status_code,
            put(client, lines(1), **{"content-type": "text/plain"}).status_code,
        ]
    with TestClient(make_app(own_repository, admin_token=TOKEN), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        without = put(client, lines(1))

    assert codes == [401, 401, 413, 200, 200, 413, 415]
    assert (without.status_code, without.json()["code"]) == (422, "no_catalogue")


def test_it_survives_a_restart_and_reaches_every_worker(own_repository: Path, tmp_path: Path):
    """What one of two workers took, both know soon, and so do those of the next start, before they are ready; a file
    put there by hand counts as well, and one that is no catalogue stops the start."""
    file = tmp_path / "ads.ndjson"
    options = ("--repository", str(own_repository), "--catalogue", str(file), "--workers", "2")
    body = by_ids("id-1", arm="student")
    expected = None
    with running_service(tmp_path / "log", *options, RETORT_ADMIN_TOKEN=TOKEN) as running:
        connection = running.connection()
        connection.request("PUT", "/catalogue", lines(1).encode(), HEADERS)
        assert connection.getresponse().read().endswith(b'"candidates":1}')
        connection.close()

        def both_know() -> bool:
            replies = [running.request("POST", "/predict", body) for _ in range(20)]
            return all(reply.status == 200 and reply.json()["pctr"][0] is not None for reply in replies)

        wait_for(both_know, "both workers know the catalogue")
        expected = running.request("POST", "/predict", body).json()["pctr"]
        by_hand = tmp_path / "by-hand"
        by_hand.write_bytes(file.read_bytes() + line(2).encode())
        by_hand.replace(file)
        two = by_ids("id-2", arm="student")
        wait_for(
            lambda: all(running.request("POST", "/predict", two).json().get("pctr") != [None] for _ in range(20)),
            "both have taken the file put there by hand",
        )
        file.write_text("rubbish")
        wait_for(lambda: "catalogue is refused" in running.log_text(), "rubbish is refused")
        assert running.request("POST", "/predict", body).json()["pctr"] == expected
        file.write_bytes(b'{"retort_catalogue":1}\n' + lines(1).encode())
        assert running.stop() == 0
    with running_service(tmp_path / "again", *options) as running:
        assert running.request("POST", "/predict", body).json()["pctr"] == expected
    file.write_text('{"retort_catalogue":2}\n')
    with running_service(tmp_path / "other", *options, wait=False) as running:
        assert running.process.wait(60) == 2
        assert "retort_catalogue" in running.log_text()


def test_a_new_version_knows_the_catalogue_from_its_first_answer(own_repository: Path, tmp_path: Path):
    """It is encoded before the version is served; and while one is loaded the catalogue may change."""

    async def publish() -> list[Any]:
        app = make_app(own_repository, catalogue=tmp_path / "ads", admin_token=TOKEN)
        found = []
        async with started(app):
            await ask(app, "/catalogue", lines(*range(500)).encode(), method="PUT", headers=list(HEADERS.items()))
            for number in range(3):
                write_tiny_bundle(own_repository, "student", bias=0.1 * number)
                while True:
                    changed = lines(*range(500 + number)).encode()
                    if number:
                        await ask(app, "/catalogue", changed, method="PUT", headers=list(HEADERS.items()))
                    body = json.dumps(by_ids("id-1", "id-499")).encode()
                    reply = await ask(app, "/models/student/predict", body)
                    assert reply is not None
                    found.append(reply.json()["pctr"])
                    if reply.json()["version"] == number + 2:
                        break
                    await asyncio.sleep(0.01)
        return found

    found = asyncio.run(publish())

    assert all(None not in pctr for pctr in found)
    assert len({tuple(pctr) for pctr in found}) == 3


def test_candidates_that_a_version_does_not_take_are_left_out_of_it_alone():
    """A row whose price is text to a schema that wants a number; the other rows stay."""
    text = "\n".join([line(1), line(2, price="cheap"), line(3)]).encode()

    async def encode() -> tuple[list[int], str]:
        catalogue = await read_catalogue(text)
        encoded = EncodedCatalogue(tiny_model().encoder)
        (await encoded.encode(catalogue, is_strict=False))()
        with pytest.raises(CatalogueError, match="line 2: field 'price': expected a finite number, got a string"):
            await encoded.encode(catalogue, is_strict=True)
        return encoded.find(["id-1", "id-2", "id-3"])[1], str(encoded.version)

    unknown, version = asyncio.run(encode())

    assert unknown == [1]
    assert len(version) == 16


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \n"])
def test_lines_are_numbered_across_slices(end: str):
    """Long catalogues are read piece by piece; every line is there once, and numbered as an editor would."""
    numbers = range(2 * SLICE_BYTES // len(line(1)) + 50)

    catalogue = asyncio.run(read_catalogue("".join(line(number) + end for number in numbers).encode()))

    step = end.count("\n")
    found = {int(id_.removeprefix("id-")): at for id_, (at, _) in catalogue.lines.items()}
    assert found == {number: 1 + step * number for number in numbers}


def test_requests_are_answered_while_a_catalogue_is_read(own_repository: Path, tmp_path: Path):
    """Twenty thousand ads are encoded for two models a slice at a time: the loop turns hundreds of times meanwhile."""

    async def register() -> tuple[int, int]:
        app = make_app(own_repository, catalogue=tmp_path / "ads", admin_token=TOKEN)
        async with started(app):
            text = lines(*range(20_000)).encode()
            putting = asyncio.create_task(ask(app, "/catalogue", text, method="PUT", headers=list(HEADERS.items())))
            answered = 0
            while not putting.done():
                reply = await ask(app, "/predict", json.dumps(request_of(1)).encode())
                assert reply is not None
                assert reply.status == 200
                answered += 1
            reply = await putting
            assert reply is not None
            return reply.status, answered

    status, answered = asyncio.run(register())

    assert status == 200
    assert answered > 50
