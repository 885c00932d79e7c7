"""An answer that its client never reads. Apart from test_protocol.py because it mostly waits, and may do so beside
others."""

import socket
import time
from pathlib import Path

from service.http.protocol import UNREAD_SECONDS
from tests.service.running import metric, running_service, wait_for


def test_answers_that_nobody_reads_are_not_kept(repository: Path, tmp_path: Path):
    """The connection is aborted after a while, counted, and does not hold up the end."""
    options = ("--repository", str(repository), "--shutdown-seconds", "3600")
    with running_service(tmp_path / "log", *options) as running, socket.socket() as client, socket.socket() as late:
        before = metric(running.metrics(), "retort_refused_total", reason="request_timeout")
        for unread in (client, late):
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.connect(("127.0.0.1", running.port))

        def is_counted() -> bool:
            return metric(running.metrics(), "retort_refused_total", reason="request_timeout") == before + 1

        client.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 400)
        began = time.monotonic()
        wait_for(is_counted, "the connection is aborted")
        assert time.monotonic() - began > UNREAD_SECONDS - 0.5

        late.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 400)
        time.sleep(0.5)
        assert running.stop() == 0
        assert "Traceback" not in running.log_text()
