"""The log in Kafka, on librdkafka's own broker: every record at least once, known by its key, whoever dies when."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from models.journal.frames import Skipped
from models.journal.reading import read_payloads, segment_paths
from service.__main__ import main
from service.errors import ConfigError
from service.journal.segments import forget
from service.journal.sinks.kafka import KafkaTarget
from service.journal.sinks.ship import Shipper
from tests.service.journal.sinks.test_compact import write
from tests.service.journal.test_joined import event, exposure
from tests.service.running import ROOT


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Their addresses; they live in this process."""
    owner = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": "1", "log_level": 0})
    metadata = owner.list_topics(timeout=30)
    yield ",".join(f"{one.host}:{one.port}" for one in metadata.brokers.values())
    owner.flush(0)


@pytest.fixture
def url(brokers: str, request: pytest.FixtureRequest) -> str:
    return f"kafka://{brokers}/{request.node.name[:60]}"


def shipper(folder: Path, url: str, options: Path | None = None) -> Shipper:
    target = KafkaTarget(url, folder / "ship-state.json", options)
    return Shipper(folder, target, sink="sink", poll_seconds=0.02, status_seconds=3600)


def ship(folder: Path, url: str, options: Path | None = None) -> Shipper:
    one = shipper(folder, url, options)
    with contextlib.closing(one):
        assert one.run(once=True)
    return one


Message = tuple[str, bytes, dict[str, str]]
"""Key, value and headers."""


def messages(url: str, expected: int) -> list[Message]:
    """Everything in the topic, which holds so many at least."""
    servers, _, topic = url.removeprefix("kafka://").partition("/")
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "reader",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    found = []
    ended: set[int] = set()
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        while len(found) < expected or len(ended) < len(partitions):
            message = consumer.poll(60)
            assert message is not None, f"{len(found)} of {expected}"
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition())
                continue
            ended.discard(message.partition())
            headers = {name: value.decode() for name, value in message.headers()}
            found.append((message.key().decode(), message.value(), headers))
    finally:
        consumer.close()
    return found


def key_of(message: Message) -> tuple[str, str, int]:
    headers = message[2]
    return headers["source"], headers["segment"], int(headers["place"])


def in_order(found: list[Message]) -> list[bytes]:
    """The records, each once, as they were written."""
    return [value for _, (_, value, _) in sorted({key_of(one): one for one in found}.items())]


def logged(folder: Path) -> list[bytes]:
    return list(read_payloads(folder, Skipped()))


def test_a_record_is_a_message_with_its_request_for_a_key(tmp_path: Path, url: str):
    """As it stands in the journal, once where nothing fails; what belongs to a request is in one partition."""
    folder = tmp_path / "log"
    records: list[dict[str, Any]] = []
    for number in range(20):
        name = f"r-{number}"
        records += [exposure(name), event("impression", request_id=name), event("click", request_id=name)]
    write(folder, *records, segment_bytes=2000)

    first, again = ship(folder, url), ship(folder, url)

    found = messages(url, 60)
    assert (first.records, first.refused, again.records) == (60, 0, 0)
    assert len(found) == 60
    assert in_order(found) == logged(folder)
    assert all(key == json.loads(value)["request_id"] for key, value, _ in found)
    assert {headers["kind"] for _, _, headers in found} == {"exposure", "event"}


def test_killed_it_sends_again_and_loses_nothing(tmp_path: Path, url: str):
    """By kill -9, before any of the files that say how far it is are replaced, and after."""
    folder = tmp_path / "log"
    for number in range(6):
        write(folder, *(exposure(f"r-{number}-{one}") for one in range(3)))
    command = [sys.executable, "-m", "tests.service.journal.sinks.killed_sender", str(folder), url]

    killed = 0
    while True:
        done = subprocess.run([*command, str(2 + killed % 2)], cwd=ROOT, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1

    found = messages(url, 18)
    assert killed >= 2
    assert len(found) > 18
    assert in_order(found) == logged(folder)


def test_what_a_broker_never_takes_is_refused_and_counted(tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture):
    """A record that is too large, and one that is none: the others are not held up."""
    folder, options = tmp_path / "log", tmp_path / "options"
    options.write_text("# of librdkafka\nmessage.max.bytes = 2000\n")
    write(folder, exposure("a"), exposure("large", context={"text": "x" * 3000}), {"kind": "new"}, exposure("b"))

    one = ship(folder, url, options)

    assert (one.records, one.refused) == (2, 2)
    assert sorted(key for key, _, _ in messages(url, 2)) == ["a", "b"]
    assert "2 records of segment" in caplog.text


def test_with_nobody_there_nothing_is_forgotten(tmp_path: Path, url: str):
    """`--once` says so with its exit code; the next attempt has everything."""
    folder = tmp_path / "log"
    write(folder, exposure("a"))
    options = tmp_path / "options"
    options.write_text("message.timeout.ms=200\nsocket.timeout.ms=200\nlog_level=0\n")
    nobody = KafkaTarget("kafka://127.0.0.1:1/topic", folder / "ship-state.json", options)

    with contextlib.closing(Shipper(folder, nobody, sink="sink", poll_seconds=0.02, status_seconds=3600)) as one:
        assert not one.run(once=True)

    assert ship(folder, url).records == 1


def test_what_was_removed_unread_is_counted_and_what_was_read_is_not(tmp_path: Path, url: str):
    """Over restarts, by the file that says how far it is."""
    folder = tmp_path / "log"
    write(folder, exposure("a"))
    ship(folder, url)
    for name in ("b", "c"):
        last = segment_paths(folder)[-1].stat().st_mtime
        forget(folder, keep_seconds=0.0, keep_bytes=1 << 30, now=last + 1)
        write(folder, exposure(name))

    assert ship(folder, url).lost_segments == 1
    assert ship(folder, url).lost_segments == 0
    assert sorted(key for key, _, _ in messages(url, 2)) == ["a", "c"]


def test_a_full_disk_keeps_the_place_and_says_so(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    """What was sent is sent again, once its place can be written down."""
    folder = tmp_path / "log"
    write(folder, exposure("a"))

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("service.journal.sinks.kafka.sync", full)
        one = shipper(folder, url)
        with contextlib.closing(one):
            assert not one.run(once=True)
    ship(folder, url)

    assert sorted(key for key, _, _ in messages(url, 2)) == ["a", "a"]


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("kafka://[::1/topic", b""),
        ("kafka://,/topic", b""),
        ("kafka://127.0.0.1:1/no topic!", b""),
        ("kafka://me:SECRET@127.0.0.1:1/topic", b""),
        ("kafka://127.0.0.1:1/topic", b"message.timeout.ms=soon\n"),
        ("kafka://127.0.0.1:1/topic", b"sasl.password=SECRET\xff\n"),
        ("kafka://127.0.0.1:1/topic", b"SECRET\n"),
    ],
)
def test_what_is_no_target_is_refused_in_one_line_without_secrets(
    tmp_path: Path, to: str, options: bytes, capsys: pytest.CaptureFixture[str]
):
    """Before anything is sent; a traceback would show what the options hold."""
    folder, file = tmp_path / "log", tmp_path / "options"
    write(folder, exposure("a"))
    file.write_bytes(b"message.timeout.ms=200\nsocket.timeout.ms=200\nlog_level=0\n" + options)

    code = main(["ship", str(folder), "--to", to, "--once", "--kafka-options", str(file)])

    said = capsys.readouterr().err
    if to.startswith("kafka://[::1"):  # it may be a name to a resolver: then nobody is there
        assert code in (1, 2)
    else:
        assert code == 2
        assert "expected" in said
    assert "SECRET" not in said


def test_a_queue_that_is_full_is_waited_for(tmp_path: Path, url: str):
    """librdkafka's, of ten messages: nothing is left out, and nothing sent twice for it."""
    folder, options = tmp_path / "log", tmp_path / "options"
    options.write_text("queue.buffering.max.messages=10\nlinger.ms=50\n")
    write(folder, *(exposure(f"r-{number}") for number in range(300)))

    assert ship(folder, url, options).records == 300
    assert in_order(found := messages(url, 300)) == logged(folder)
    assert len(found) == 300


def test_what_cannot_work_is_refused(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    """An option librdkafka does not know, a file that is not ours, and a machine without it."""
    folder, options = tmp_path / "log", tmp_path / "options"
    write(folder, exposure("a"))
    options.write_text("no.such.option=1\n")
    assert main(["ship", str(folder), "--to", url, "--once", "--kafka-options", str(options)]) == 2
    (folder / "ship-state.json").write_text("[]")
    with pytest.raises(ConfigError, match="send everything again"):
        shipper(folder, url).run(once=True)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"pip install 'retort\[kafka\]'"):
        shipper(folder, url).run(once=True)
