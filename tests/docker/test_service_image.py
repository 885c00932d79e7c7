"""docker/service.Dockerfile carried out without an engine: its install and start commands in a clean virtual
environment, in a folder that holds only what it copies. What comes out serves a bundle, and there is no torch in it.

Needs a package index (about 60 MB are downloaded); without one these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.dockerfile import Stage, context_files, read_dockerfile, read_dockerignore
from tests.docker.serving import PATIENCE_SECONDS, ask, free_port, running
from tests.models.tiny_bundle import REQUESTS, tiny_golden, tiny_model, write_tiny_bundle

ROOT = Path(__file__).parents[2]
NO_INDEX = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|No matching distribution found", re.I)

MEGABYTES = 165
"""Bound of the installed size without bytecode; measured on 21 November 2026: 155."""
PACKAGES = 32
"""Bound of the number of distributions; measured on 21 November 2026: 29, ours among them."""


@dataclass(frozen=True)
class Image:
    """The image's file system under a temporary folder that stands for /."""

    root: Path
    stage: Stage

    def inside(self, text: str) -> str:
        """A command or a value in which the image's absolute paths are those under `root`."""
        return re.sub(r"(?<![\w.:])/(?=opt/|build\b|repository\b|state\b|dev/shm/)", f"{self.root}/", text)

    @property
    def site_packages(self) -> Path:
        return next((self.root / "opt/retort/lib").glob("python*/site-packages"))

    def files(self) -> set[Path]:
        """Every file there is."""
        return {path for path in self.root.rglob("*") if path.is_file()}

    def environment(self, port: int) -> dict[str, str]:
        """ENV, and nothing of the machine's own environment; on a free port of the loopback address."""
        own = {name: self.inside(value) for name, value in self.stage.environment.items()}
        own["PATH"] = own["PATH"].replace("$PATH", os.environ["PATH"])
        assert own.pop("ORT_DISABLE_TELEMETRY") == "1"  # the program sets it too: so that it need not be a container
        return {**own, "RETORT_HOST": "127.0.0.1", "RETORT_PORT": str(port), "TMPDIR": str(self.root / "tmp")}

    def run(self, *command: str, port: int = 0) -> subprocess.CompletedProcess[str]:
        """A command inside, as `docker run --entrypoint` would."""
        program = shutil.which(command[0], path=self.environment(port)["PATH"])
        assert program is not None
        return subprocess.run(
            [program, *command[1:]],
            cwd=self.root,
            env=self.environment(port),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The build stage carried out instruction by instruction; the final stage takes /opt/retort from it."""
    dockerfile = read_dockerfile(ROOT / "docker/service.Dockerfile")
    root = Path(tempfile.mkdtemp(prefix="retort-image-"))
    built = Image(root, dockerfile.image)
    try:
        _carry_out(dockerfile.stages[0], built)
        shutil.rmtree(root / "build")  # the final stage does not have it
        for folder in ("repository", "state", "dev/shm", "tmp"):
            (root / folder).mkdir(parents=True)
        yield built
    finally:
        shutil.rmtree(root)


def _carry_out(stage: Stage, image: Image) -> None:
    ignored = read_dockerignore(ROOT / ".dockerignore")
    base = image.root / "base"  # what `python` is in the base image
    base.mkdir()
    (base / "python").symlink_to(Path(sys.executable).resolve())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RETORT_", "PYTHON"))}
    environment |= {**stage.environment, "PATH": f"{base}:{environment['PATH']}"}
    directory = image.root
    for instruction in stage.instructions:
        if instruction.name == "WORKDIR":
            directory = Path(image.inside(instruction.text))
            directory.mkdir(parents=True)
        elif instruction.name == "COPY":
            *sources, destination = instruction.text.split()
            for source in sources:
                for name in context_files(ROOT, source, ignored):
                    target = directory / destination / Path(name).relative_to(source if destination != "./" else ".")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / name, target)
            if "README.md" in sources:  # the package's description; its words are of no account here
                (directory / "README.md").touch()
        elif instruction.name == "RUN":
            done = subprocess.run(
                image.inside(instruction.text),
                shell=True,
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0 and NO_INDEX.search(done.stdout + done.stderr) and "CI" not in os.environ:
                pytest.skip("no package index can be reached")
            assert done.returncode == 0, f"RUN {instruction.text}\n{done.stdout}\n{done.stderr}"
        else:
            assert instruction.name in {"ENV", "ARG"}, f"the build stage does something new: {instruction}"


def test_torch_is_not_in_the_image(image: Image):
    """Nor is the room that needs it, nor an installer to bring it in."""
    for module in ("torch", "training", "onnx", "pyarrow", "pip"):
        done = image.run("python", "-c", f"import {module}")
        assert done.returncode != 0, module
        assert f"No module named '{module}'" in done.stderr


def test_the_image_brings_what_the_service_needs_and_no_more(image: Image):
    """Size and number of packages are a promise of the README's; both grow unseen."""
    files = [path for path in image.site_packages.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    packages = [path.name for path in image.site_packages.glob("*.dist-info")]

    assert megabytes < MEGABYTES, f"{megabytes:.1f} MB in {len(packages)} packages"
    assert len(packages) <= PACKAGES, sorted(packages)


def test_every_version_is_the_one_that_was_tested(image: Image):
    """constraints.txt names each package that is installed, so that two builds are the same."""
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, _, version in (
            line.partition("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        )
        if version
    }
    installed = dict(
        path.name.removesuffix(".dist-info").rsplit("-", 1) for path in image.site_packages.glob("*.dist-info")
    )

    for name, version in installed.items():
        normal = re.sub(r"[-_.]+", "-", name).lower()
        assert normal == "retort" or pinned.get(normal) == version, f"{name} {version} is not pinned"


def test_the_image_serves_a_bundle_and_its_health_check_tells(image: Image):
    """Start command, health check, /predict and SIGTERM, as an engine would use them."""
    write_tiny_bundle(image.root / "repository", "tiny")
    port = free_port()
    environment = image.environment(port)
    start = image.stage.last("ENTRYPOINT").exec_form
    assert start is not None
    start = [str(image.root / "opt/retort/bin" / start[0]), *start[1:]]
    health = json.loads(image.stage.last("HEALTHCHECK").text.partition(" CMD ")[2])
    before = image.run(*health, port=port)
    files = image.files()

    context, candidates = REQUESTS[0]
    log = image.root / "log"
    with running(start, port=port, ready="/health/ready", log=log, cwd=image.root, environment=environment) as server:
        during = image.run(*health, port=port)
        status, body = ask(port, "/predict", {"context": context, "candidates": candidates})
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=PATIENCE_SECONDS)
    after = image.run(*health, port=port)

    assert (before.returncode, during.returncode, after.returncode) == (1, 0, 1), during.stderr
    assert status == 200, body
    assert json.loads(body)["pctr"] == pytest.approx(tiny_golden(tiny_model()).requests[0].pctr, abs=1e-5)
    assert code == 0
    for line in log.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["message"]  # RETORT_LOG_FORMAT=json
    # It works under --read-only: what it wrote lies on the state's volume and in memory.
    new = {path.relative_to(image.root).as_posix() for path in image.files() - files - {log}}
    assert all(name.startswith(("state/", "dev/shm/")) for name in new), new
