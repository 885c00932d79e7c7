"""Hot reload of the running program under load: swap after swap, and every bit that may flip."""

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.models.building import set_live
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.running import (
    PATIENCE_SECONDS,
    Running,
    expected_pctr,
    metric,
    request_of,
    running_service,
    wait_for,
)

FLIPS = 100


class Asker(threading.Thread):
    """A client that asks on over one connection, each time with other candidates, and holds every answer against the
    scores of the version that it names."""

    def __init__(self, running: Running, number: int, bias_of: Callable[[int], float]) -> None:
        super().__init__()
        self.running, self.number, self.bias_of = running, number, bias_of
        self.versions: list[int] = []
        self.wrong: list[Any] = []
        self.stopping = False

    def run(self) -> None:
        with contextlib.closing(self.running.connection()) as connection:
            while not self.stopping:
                asked = len(self.versions)
                request = request_of(*range(asked, asked + 10), request_id=f"{self.number}-{asked}", arm="student")
                try:
                    reply = self.running.request("POST", "/predict", request, connection)
                    answer = reply.json()
                    expected = expected_pctr(request, self.bias_of(answer["version"]))
                    if reply.status != 200 or answer["pctr"] != pytest.approx(expected, rel=1e-4):
                        self.wrong.append(answer)
                    self.versions.append(answer["version"])
                except (http.client.HTTPException, OSError, KeyError) as error:
                    self.wrong.append(repr(error))
                    return

    def stop(self) -> None:
        self.stopping = True
        self.join(PATIENCE_SECONDS)


def bias_of(version: int) -> float:
    """Another for each version, so that a score tells by which it was made."""
    return 0.0 if version == 1 else (-1) ** version * (0.5 + version / 100)


def swap_under_load(repository: Path, log: Path, swaps: int, after_each: Callable[[Running, int], Any]) -> None:
    """Publishes so many versions one after the other while two clients ask, then rolls back by file."""
    with running_service(log, "--repository", str(repository)) as running:
        askers = [Asker(running, number, bias_of) for number in range(2)]
        for asker in askers:
            asker.start()

        def is_answered_by(version: int) -> bool:
            return all(asker.wrong or asker.versions[-1:] == [version] for asker in askers)

        wait_for(lambda: is_answered_by(1), "version 1 answers")
        for version in range(2, swaps + 2):
            write_tiny_bundle(repository, "student", bias=bias_of(version))
            wait_for(lambda version=version: is_answered_by(version), f"version {version} answers")  # type: ignore[misc]
            after_each(running, version)
        asked = [list(asker.versions) for asker in askers]
        set_live(repository, "student", swaps)
        wait_for(lambda: is_answered_by(swaps), "the version before answers")
        for asker in askers:
            asker.stop()

        # then: no request failed, no answer mixed two versions, and no version came back by itself
        assert [asker.wrong for asker in askers] == [[], []]
        for versions, asker in zip(asked, askers, strict=True):
            assert set(versions) == set(range(1, swaps + 2))
            assert versions == sorted(versions)
            after = asker.versions[len(versions) :]
            assert after == sorted(after, reverse=True)
            assert set(after) <= {swaps, swaps + 1}
        wait_for(
            lambda: metric(running.metrics(), "retort_model_info", model="student") == 1, "the others are released"
        )
        assert metric(running.metrics(), "retort_model_load_failures_total") == 0
        assert running.stop() == 0


def test_ten_swaps_under_load_fail_no_request(own_repository: Path, tmp_path: Path):
    """Published one after the other, and rolled back by file, while requests flow."""
    swap_under_load(own_repository, tmp_path / "log", 10, lambda running, version: None)


def resident_bytes(running: Running) -> int:
    """Of the only worker."""
    (pid,) = running.worker_pids().values()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
def test_a_hundred_swaps_under_load_fail_no_request_and_leave_no_memory(own_repository: Path, tmp_path: Path):
    """From the twentieth swap to the hundredth, the worker grows by less than the weight of a few versions."""
    seen: dict[int, int] = {}
    swap_under_load(
        own_repository, tmp_path / "log", 100, lambda running, version: seen.update({version: resident_bytes(running)})
    )

    early, late = max(seen[version] for version in range(15, 22)), max(seen[version] for version in range(95, 102))
    assert late < 1.02 * early, seen


def renumbered(bundle: Path, to: Path, version: int) -> Path:
    """A whole copy of a bundle as another version of its model: quicker than writing one anew."""
    copy = shutil.copytree(bundle, to / str(version))
    for name in ("manifest.json", "SHA256SUMS"):
        (copy / name).chmod(0o644)
    before = (copy / "manifest.json").read_bytes()
    after = json.dumps({**json.loads(before), "version": version}).encode()
    (copy / "manifest.json").write_bytes(after)
    sums = (copy / "SHA256SUMS").read_text()
    (copy / "SHA256SUMS").write_text(sums.replace(sha256(before).hexdigest(), sha256(after).hexdigest()))
    return copy


def flip_bits(bundles: Sequence[Path]) -> list[str]:
    """Flips one bit of one file of each, every file in turn; the files."""
    chooser = random.Random(0)
    names = sorted(str(path.relative_to(bundles[0])) for path in bundles[0].rglob("*") if path.is_file())
    flipped = []
    for number, bundle in enumerate(bundles):
        name = names[number % len(names)]
        path = bundle / name
        content = bytearray(path.read_bytes())
        content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        path.chmod(0o644)
        path.write_bytes(content)
        flipped.append(name)
    return flipped


def test_a_single_bit_that_flips_anywhere_is_refused(own_repository: Path, tmp_path: Path):
    """A hundred versions under load, each with one flipped bit, over all files of a bundle: every one is refused,
    counted, and logged with its reason; version 1 serves on; a whole one after them goes live."""
    elsewhere = tmp_path / "elsewhere"
    good = write_tiny_bundle(elsewhere, "student", bias=3.0)
    copies = [renumbered(good, tmp_path / "student", version) for version in range(2, FLIPS + 3)]
    flipped = flip_bits(copies[:FLIPS])
    with running_service(tmp_path / "log", "--repository", str(own_repository)) as running:
        asker = Asker(running, 0, lambda version: 0.0 if version == 1 else 3.0)
        asker.start()
        wait_for(lambda: len(asker.versions) > 0 or bool(asker.wrong), "requests flow")
        for copy in copies[:FLIPS]:
            copy.rename(own_repository / "student" / copy.name)

        def failures(**labels: str) -> float:
            return metric(running.metrics(), "retort_model_load_failures_total", model="student", **labels)

        wait_for(lambda: failures() >= FLIPS or bool(asker.wrong), "every damaged version is refused")
        asked = len(asker.versions)
        wait_for(lambda: len(asker.versions) > asked + 10 or bool(asker.wrong), "requests flow")
        meanwhile = set(asker.versions)
        copies[FLIPS].rename(own_repository / "student" / copies[FLIPS].name)
        wait_for(lambda: asker.versions[-1] == FLIPS + 2 or bool(asker.wrong), "the whole version is live")
        asker.stop()

        assert asker.wrong == []
        assert meanwhile == {1}
        assert (failures(), failures(reason="bundle")) == (FLIPS, FLIPS)
        refused = re.findall(r"model student version (\d+) is refused \(bundle\): (.*)", running.log_text())
        assert sorted(int(version) for version, _ in refused) == list(range(2, FLIPS + 2))
        assert running.stop() == 0
    # SHA256SUMS itself may seem right and another file wrong, or a file be missing that it no longer names
    said = {int(version): why for version, why in refused}
    for version, name in enumerate(flipped, start=2):
        assert name in said[version] or name == "SHA256SUMS", said[version]
