"""The journal in Kafka: a message a record, keyed by its request, so that what belongs together is in one partition.

    key      request_id                        value    the record, as it stands in the journal
    headers  kind, source, segment, place      the last three are the record's key: equal ones are one record

At least once: the producer is idempotent, and a batch counts as shipped once every delivery of it was reported; how far
that is stands in a file beside the segments, replaced after that. Killed in between, the batch is sent again. What was
erased from the journal stays in Kafka until its retention: log units under a key (--log-unit-key-file), keep it short.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from models.journal.frames import is_erased
from models.journal.reading import segment_paths
from service.errors import ConfigError
from service.journal.segments import removed_segments
from service.journal.sinks.follow import Batch, Known, Position
from service.journal.sinks.parquet import sync
from service.journal.sinks.ship import TargetError

if TYPE_CHECKING:
    from confluent_kafka import Producer

logger = logging.getLogger("service.ship")

DELIVERY_SECONDS = 30.0
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
PRUNE_ABOVE = 1000
"""Positions kept of segments that may be gone."""


class _Head(msgspec.Struct):
    kind: str
    request_id: str


_decode = msgspec.json.Decoder(_Head).decode


class KafkaTarget:
    """One topic. `ship.Target` says what is promised. `state`: the file that says how far it is."""

    def __init__(self, url: str, state: Path, options: Path | None = None) -> None:
        brokers, _, topic = url.removeprefix("kafka://").partition("/")
        self._topic = topic.strip("/")
        if not brokers.strip(",") or not _TOPIC.fullmatch(self._topic) or "@" in brokers:
            raise ConfigError(
                "--to (RETORT_SHIP_TO): expected kafka://HOST:PORT[,HOST:PORT…]/TOPIC, the topic of at most 249 "
                "letters, digits, `.`, `_` and `-`; user and password belong into --kafka-options"
            )
        self.name = f"kafka://{brokers}/{self._topic}"
        self._options = {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "message.timeout.ms": int(1000 * DELIVERY_SECONDS),
            **({} if options is None else _read_options(options)),
        }
        self._patience = _patience(str(self._options["message.timeout.ms"]))
        self._state = state
        self._source = ""
        self._positions: dict[str, Position] = {}
        self._oldest: str | None = None
        self._producer: Producer | None = None
        self._prune_above = PRUNE_ABOVE

    def open(self, source: str) -> None:
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError:
            raise ConfigError("confluent-kafka is not installed here: pip install 'retort[kafka]'") from None
        self._source = source
        self._read_state()
        try:
            self._producer = Producer({**self._options, "logger": logger})
            found = self._producer.list_topics(self._topic, timeout=self._patience).topics[self._topic]
        except KafkaException as error:
            if self._producer is None:
                raise ConfigError(f"--kafka-options: {error.args[0].str()}") from None
            raise TargetError(error.args[0].str()) from None
        if found.error is not None and not found.error.retriable():
            raise TargetError(f"topic {self._topic}: {found.error.str()}")

    def remember(self, segments: Collection[str]) -> Known:
        return Known(self._oldest, dict(self._positions))

    def write(self, batch: Batch) -> int:
        """Sends, waits for every report, then moves on. A record that is no JSON, or that the broker will never take
        (too large), is counted and left out."""
        from confluent_kafka import KafkaError, KafkaException

        producer = self._producer
        if producer is None:
            raise TargetError("not connected")
        failed: list[KafkaError] = []
        refused = reported = sent = 0

        def report(error: KafkaError | None, _: Any) -> None:
            nonlocal reported
            reported += 1
            if error is not None:
                failed.append(error)

        for place, payload in batch.records:
            if is_erased(payload):
                continue
            try:
                head = _decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                refused += 1
                continue
            headers = {"kind": head.kind, "source": self._source, "segment": batch.segment, "place": str(place)}
            while True:
                try:
                    producer.produce(
                        self._topic,
                        value=payload,
                        key=head.request_id.encode(),
                        headers=[(name, value.encode()) for name, value in headers.items()],
                        on_delivery=report,
                    )
                    sent += 1
                    break
                except BufferError:  # its queue is full: what is in it has to be delivered first
                    producer.poll(0.1)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                        raise TargetError(error.args[0].str()) from None
                    refused += 1
                    break
        producer.flush(DELIVERY_SECONDS + 5)
        too_large = [error for error in failed if error.code() == KafkaError.MSG_SIZE_TOO_LARGE]
        if reported < sent or len(too_large) < len(failed):
            others = [error.str() for error in failed if error not in too_large]
            raise TargetError(others[0] if others else f"{sent - reported} deliveries were not reported in time")
        self._positions[batch.segment] = batch.position
        self._oldest = min(self._oldest or batch.segment, batch.segment)
        self._write_state()
        return refused + len(too_large)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
            self._producer = None

    def _read_state(self) -> None:
        """Empty where the file is not there. Raises `ConfigError` where it is not ours: guessing would send twice."""
        self._positions, self._oldest = {}, None
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            if state["source"] == self._source:
                self._oldest = state["oldest"]
                self._positions = {name: Position(*position) for name, position in state["segments"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self._state}: expected how far the log was shipped, got {type(error).__name__}; "
                "remove it to send everything again"
            ) from None

    def _write_state(self) -> None:
        folder = self._state.parent
        if len(self._positions) > self._prune_above:
            here = {path.stem for path in segment_paths(folder)} | removed_segments(folder).keys()
            self._positions = {name: one for name, one in self._positions.items() if name in here or not one.is_done}
            self._prune_above = 2 * len(self._positions) + PRUNE_ABOVE
        segments = {name: [position.place, position.is_done] for name, position in self._positions.items()}
        state = {"source": self._source, "oldest": self._oldest, "segments": segments}
        temporary = self._state.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(state), encoding="utf-8")
            sync(temporary)
            temporary.replace(self._state)
            sync(folder)
        except OSError as error:
            raise TargetError(f"{self._state}: {error.strerror or error}: what was sent will be sent again") from None


def _patience(timeout_ms: str) -> float:
    """How long to wait for a broker's first word, in seconds: as for a delivery, but bounded. Raises `ConfigError`."""
    if not timeout_ms.isdecimal():
        raise ConfigError("--kafka-options: message.timeout.ms: expected milliseconds, as 30000")
    return min(int(timeout_ms) / 1000 or 10.0, 10.0)  # to librdkafka 0 is for ever


def _read_options(path: Path) -> dict[str, str]:
    """`name=value` lines of librdkafka's options; lines with # are for people."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--kafka-options: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--kafka-options: {path}: expected UTF-8, got none at byte {error.start}") from None
    options = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise ConfigError(f"--kafka-options: {path}:{number}: expected name=value")
        options[name.strip()] = value.strip()
    return options
