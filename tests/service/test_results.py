"""What experiments have shown, over HTTP: the command's own report, by a process of its own, one at a time."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.__main__ import main
from service.errors import Code, Refusal
from service.results import keeper
from service.results.keeper import FRESH_SECONDS, Results
from service.scoring.watch import SHIPPED, read_experiments
from tests.service.running import make_app, request_of, wait_until_ready

FILE = read_experiments(SHIPPED)
NAME = FILE.default.name
PATH = f"/experiments/{NAME}/results"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logged")


@pytest.fixture(scope="module")
def logging_client(repository: Path, folder: Path) -> Iterator[TestClient]:
    """A service with a log of some requests, half of them shown, some clicked."""
    with TestClient(make_app(repository, log=folder), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        for number in range(40):
            name = f"r-{number}"
            client.post("/predict", json=request_of(1, 2, request_id=name, unit_id=f"u-{number}"))
            if number % 2:
                event = "click" if number % 5 == 0 else "impression"
                client.post("/feedback", json={"request_id": name, "candidate": 0, "event": event})
        yield client


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments of the processes that were started."""
    environments: list[dict[str, str]] = []
    start = asyncio.create_subprocess_exec

    async def counting(*command: Any, **options: Any) -> Any:
        environments.append(options["env"])
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", counting)
    return environments


def test_the_answer_is_the_commands_report(
    logging_client: TestClient,
    folder: Path,
    started: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Byte for byte, as JSON and as a page; computed once for both, by a process that does not know the service's
    secrets; and another worker finds it there."""
    monkeypatch.setenv("RETORT_ADMIN_TOKEN", "s" * 40)

    reply, page = logging_client.get(PATH), logging_client.get(f"{PATH}.html")

    for shape, answered in (("json", reply), ("html", page)):
        assert main(["results", "--experiments", str(SHIPPED), "--log", str(folder), "--format", shape]) == 0
        assert answered.status_code == 200
        assert answered.text == capsys.readouterr().out
    assert sum(arm["exposures"] for arm in reply.json()["arms"]) == 40
    assert int(reply.headers["cache-control"].removeprefix("max-age=")) >= FRESH_SECONDS
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert len(started) == 1
    assert not [name for name in started[0] if name.startswith("RETORT_")]
    other = Results(folder, replay=True, timeout_seconds=60)
    assert asyncio.run(other.get(FILE.default, FILE)).json == reply.text
    assert len(started) == 1


def test_what_cannot_be_answered_says_why(
    logging_client: TestClient, client: TestClient, repository: Path, tmp_path: Path
):
    """No such experiment; a service without a log, naming the option; a log without a row."""
    with TestClient(make_app(repository, log=tmp_path)) as fresh:
        wait_until_ready(fresh)
        for asked, path, code in (
            (logging_client, "/experiments/nobody/results", "unknown_experiment"),
            (client, PATH, "no_log"),
            (client, f"{PATH}.html", "no_log"),
            (fresh, PATH, "no_results"),
        ):
            reply = asked.get(path)
            assert (reply.status_code, reply.json()["code"]) == (404, code)
    assert "--log" in client.get(PATH).json()["detail"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts another program in the place of the one that computes."""

    def put(text: str) -> None:
        monkeypatch.setattr(keeper, "COMMAND", (sys.executable, "-c", text))

    return put


ANSWER = '{"json": "{}", "html": ""}'
WAIT = "import sys; sys.stdin.buffer.read()"


def ask(*workers: Results) -> list[Any]:
    """What each is answered, asked at once: a report, or the code of the refusal."""

    async def all_of_them() -> list[Any]:
        try:
            return await asyncio.gather(*(w.get(FILE.default, FILE) for w in workers), return_exceptions=True)
        finally:
            for worker in workers:
                await worker.close()

    return [one.code if isinstance(one, Refusal) else one.json for one in asyncio.run(all_of_them())]


def test_who_asks_at_once_waits_for_one_process(tmp_path: Path, program: Callable[[str], None], started: list[Any]):
    """Within a worker and among workers: never are two at it, and what one computed is every one's."""
    program(f"print('{ANSWER}')")
    one, other = (Results(tmp_path, replay=True, timeout_seconds=60) for _ in range(2))

    assert ask(one, one, other, one, other) == ["{}"] * 5
    assert len(started) == 1


def test_a_process_that_takes_too_long_is_ended_and_not_tried_again_at_once(
    tmp_path: Path, program: Callable[[str], None], started: list[Any]
):
    """503, and the same for a while: whoever asks again and again does not have the log read again and again."""
    program(WAIT)
    worker = Results(tmp_path, replay=True, timeout_seconds=0.1)

    async def twice() -> list[Any]:
        return [await asyncio.gather(worker.get(FILE.default, FILE), return_exceptions=True) for _ in range(2)]

    answers = [refusal for (refusal,) in asyncio.run(twice())]

    assert [refusal.code for refusal in answers] == [Code.RESULTS_UNAVAILABLE] * 2
    assert "more than 0.1 s" in answers[0].detail
    assert (b"retry-after", b"60") in answers[0].headers
    assert len(started) == 1


def test_who_has_waited_long_is_told_and_gets_what_there_was_before(
    tmp_path: Path, program: Callable[[str], None], started: list[Any], monkeypatch: pytest.MonkeyPatch
):
    """503 with when to ask again, the first time; it goes on meanwhile, once. Later the older results, with their age,
    until there are newer ones; never those of another question."""
    gate, stale = tmp_path / "gate", {"json": json.dumps({"old": True}), "html": ""}
    program(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nprint('{ANSWER}')")
    folder = tmp_path / "log"
    folder.mkdir()
    worker = Results(folder, replay=True, timeout_seconds=600)
    changed = FILE.default.model_copy(update={"halted": ("student",)})

    async def play() -> None:
        for _ in range(2):
            with pytest.raises(Refusal, match="are being computed") as refused:
                await worker.get(FILE.default, FILE, patience_seconds=0.05)
            assert refused.value.code == Code.RESULTS_UNAVAILABLE
            assert (b"retry-after", b"10") in refused.value.headers
        gate.touch()
        assert (await worker.get(FILE.default, FILE)).json == "{}"
        assert len(started) == 1

        gate.unlink()
        kept = folder / "results" / f"{NAME}.json"
        kept.write_text(json.dumps({**json.loads(kept.read_text()), **stale, "time": 1000.0}))
        other = Results(folder, replay=True, timeout_seconds=600)
        older = await other.get(FILE.default, FILE, patience_seconds=0.05)
        assert older.json == stale["json"]
        assert older.age > older.fresh_seconds
        with pytest.raises(Refusal, match="are being computed"):
            await other.get(changed, FILE, patience_seconds=0.05)
        gate.touch()
        assert (await other.get(FILE.default, FILE)).json == "{}"
        await other.close()
        await worker.close()

    asyncio.run(play())


@pytest.mark.parametrize("text", ["import os; os.kill(os.getpid(), 9)", "print('{')", "raise SystemExit(3)", "print()"])
def test_a_process_that_dies_is_a_refusal(tmp_path: Path, program: Callable[[str], None], text: str):
    """Killed where memory ran out, say: 503, and nothing is kept."""
    program(text)

    assert ask(Results(tmp_path, replay=True, timeout_seconds=60)) == [Code.RESULTS_UNAVAILABLE]
    assert list(tmp_path.iterdir()) == []


def test_when_the_service_stops_nobody_waits(tmp_path: Path, program: Callable[[str], None], started: list[Any]):
    """The process is ended, and who waited is told."""
    program(WAIT)
    worker = Results(tmp_path, replay=True, timeout_seconds=600)

    async def stop_while_computing() -> Any:
        asking = asyncio.create_task(worker.get(FILE.default, FILE))
        while not started:
            await asyncio.sleep(0.01)
        await worker.close()
        return await asyncio.gather(asking, return_exceptions=True)

    ((refusal,)) = asyncio.run(stop_while_computing())
    assert refusal.code == Code.NOT_READY
    assert ask(worker) == [Code.NOT_READY]


def test_what_was_stated_otherwise_is_another_question(
    tmp_path: Path, program: Callable[[str], None], started: list[Any]
):
    """A change of the experiment is not answered by what was computed before it; a damaged file is computed anew."""
    program(f"print('{ANSWER}')")
    worker = Results(tmp_path, replay=True, timeout_seconds=60)
    changed = FILE.default.model_copy(update={"halted": ("student",)})

    async def asked() -> None:
        for experiment in (FILE.default, FILE.default, changed):
            await worker.get(experiment, FILE)

    asyncio.run(asked())
    assert len(started) == 2
    kept = tmp_path / "results" / f"{NAME}.json"
    assert json.loads(kept.read_text())["json"] == "{}"
    kept.write_text("{")
    assert ask(Results(tmp_path, replay=True, timeout_seconds=60)) == ["{}"]
    assert len(started) == 3


def test_where_nothing_can_be_kept_it_is_answered_all_the_same(
    tmp_path: Path, program: Callable[[str], None], caplog: pytest.LogCaptureFixture
):
    """Something else stands where the results would: the answer is given, and the log says so."""
    program(f"print('{ANSWER}')")
    (tmp_path / "results").write_text("")

    assert ask(Results(tmp_path, replay=True, timeout_seconds=60)) == ["{}"]
    assert "cannot be kept" in caplog.text
