"""Ships a folder to Kafka and dies around the so many-th time that it writes down how far it is.

    python -m tests.service.journal.sinks.killed_sender FOLDER URL TIMES

Of two attempts one dies before that and after everything was delivered, the other after.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from service.journal.sinks.kafka import KafkaTarget
from service.journal.sinks.ship import Shipper


def main(folder: Path, url: str, times: int) -> None:
    """Gets through where there is less to write down."""
    left = times
    write = KafkaTarget._write_state

    def watched(self: KafkaTarget) -> None:
        nonlocal left
        left -= 1
        if left == 0 and times % 2:
            write(self)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self)

    KafkaTarget._write_state = watched  # type: ignore[method-assign]
    target = KafkaTarget(url, folder / "ship-state.json")
    Shipper(folder, target, sink="sink", poll_seconds=0.01, status_seconds=3600).run(once=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
