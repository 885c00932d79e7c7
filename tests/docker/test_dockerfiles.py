"""The two images, as far as their Dockerfiles tell without an engine."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docker.dockerfile import context_files, is_ignored, read_dockerfile, read_dockerignore

ROOT = Path(__file__).parents[2]
FILES = ("service.Dockerfile", "training.Dockerfile")
IGNORED = read_dockerignore(ROOT / ".dockerignore")


@pytest.fixture(params=FILES)
def dockerfile(request: pytest.FixtureRequest):
    return read_dockerfile(ROOT / "docker" / request.param)


def tracked_files(folder: str) -> set[str]:
    """What git would put into a clean clone, plus what is about to be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in listed if (ROOT / name).is_file()}


def test_every_copied_source_is_in_the_build_context(dockerfile):
    """COPY of a path that is missing, or that .dockerignore keeps out, fails only when somebody builds."""
    for stage in dockerfile.stages:
        for sources, _ in stage.copies():
            for source in sources:
                # README.md is written last; a clone always has it.
                assert context_files(ROOT, source, IGNORED) or source == "README.md", source


def test_all_of_a_room_reaches_its_image_and_nothing_else_does():
    """.dockerignore lets in by name, so that bundles, logs, tests and git never travel into an image."""
    service = {
        name
        for stage in read_dockerfile(ROOT / "docker/service.Dockerfile").stages
        for sources, _ in stage.copies()
        for source in sources
        for name in context_files(ROOT, source, IGNORED)
    }

    bundles = {name for name in tracked_files("models") if name.startswith("models/repository/")}
    assert service >= (tracked_files("models") - bundles) | tracked_files("service")
    assert {name.split("/")[0] for name in service - {"docker/service.lock"}} <= {
        *("models", "service", "pyproject.toml", "README.md"),
    }
    for name in (".git/config", "models/repository/student/1/model.onnx", "runs/x", "tests/test_rooms.py", ".venv/x"):
        assert is_ignored(name, IGNORED), name


def test_the_image_installs_what_was_tested_and_knows_each_file():
    """`make lock` writes the list from pyproject.toml and constraints.txt; here is whether somebody forgot to."""
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    locked = (ROOT / "docker/service.lock").read_text(encoding="utf-8")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {
        normal(requirement) for requirement in [*wanted["dependencies"], *wanted["optional-dependencies"]["service"]]
    }

    found = pins(locked)
    assert asked <= found.keys()
    assert found == {name: pinned[name] for name in found}
    assert all("--hash=sha256:" in part for part in re.split(r"^(?=[a-z])", locked, flags=re.MULTILINE)[1:])


def normal(requirement: str) -> str:
    """The name of a distribution in a requirement, as indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def pins(text: str) -> dict[str, str]:
    """Version by name of the lines `name==version`."""
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, flags=re.MULTILINE)}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("a.py", True),
        ("kept/a.py", False),
        ("kept/deep/a.py", False),
        ("kept/out/a.py", True),
        ("kept/deep/__pycache__/a.pyc", True),
        ("__pycache__/a.pyc", True),
        ("keptnot/a.py", True),
    ],
)
def test_the_ignore_file_is_read_as_an_engine_reads_it(path: str, ignored: bool):
    """The last pattern that fits decides; one that fits a folder fits all in it; ** crosses folders."""
    assert is_ignored(path, ["*", "!kept", "kept/out", "**/__pycache__"]) is ignored


def test_the_base_image_is_an_argument_with_a_pinned_default(dockerfile):
    """A mirror or a hardened image goes in by --build-arg; without one, nothing floats."""
    assert dockerfile.arguments == {"PYTHON_IMAGE": "python:3.11-slim"}
    assert {stage.base for stage in dockerfile.stages} == {"python:3.11-slim"}


def test_the_program_runs_as_a_numbered_user_who_is_not_root(dockerfile):
    """Kubernetes' runAsNonRoot needs a number; both images share it, because they share the repository volume."""
    assert dockerfile.image.last("USER").text == "10001:10001"
    instructions = [instruction.name for instruction in dockerfile.image.instructions]
    assert "RUN" not in instructions[instructions.index("USER") :]


@pytest.mark.parametrize(("file", "program"), [("service.Dockerfile", "service"), ("training.Dockerfile", "training")])
def test_the_program_itself_gets_the_signal(file: str, program: str):
    """In the exec form no shell stands between the engine's SIGTERM and us."""
    image = read_dockerfile(ROOT / "docker" / file).image

    assert image.last("ENTRYPOINT").exec_form == ["python", "-m", program]
    assert image.last("STOPSIGNAL").text == "SIGTERM"


def test_the_service_image_has_a_health_check_that_needs_no_curl():
    """It asks for readiness by the interpreter that is there anyway, and waits less than the engine does."""
    image = read_dockerfile(ROOT / "docker/service.Dockerfile").image
    options, _, command = image.last("HEALTHCHECK").text.partition(" CMD ")

    assert "/health/ready" in command
    assert "curl" not in command
    assert "--timeout=3s" in options
    assert "timeout=2" in command


def test_a_training_job_has_no_health_to_check():
    """It is done when it exits; inheriting a check from the base image would be wrong."""
    assert read_dockerfile(ROOT / "docker/training.Dockerfile").image.last("HEALTHCHECK").text == "NONE"


def test_torch_is_in_the_training_image_alone():
    """The service image names no torch and copies nothing of the room that needs it."""
    service = (ROOT / "docker/service.Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in service.splitlines() if not line.startswith("#")]

    assert not [line for line in lines if "torch" in line or "training" in line]
    assert "torch" not in pins((ROOT / "docker/service.lock").read_text(encoding="utf-8"))


def test_torch_is_the_pinned_version_in_its_cpu_build_unless_somebody_asks_for_another():
    """An unpinned torch brings gigabytes of CUDA; no package but torch may come from torch's index."""
    build = read_dockerfile(ROOT / "docker/training.Dockerfile").stages[0]
    commands = [shlex.split(run.text) for run in build.all("RUN")]
    (torch,) = [command for command in commands if "torch" in command]
    (rest,) = [command for command in commands if ".[training]" in command]

    assert build.all("ARG")[-1].text == "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    assert torch[torch.index("--index-url") + 1] == "${TORCH_INDEX}"
    assert {"--no-deps", "constraints.txt"} <= set(torch)
    assert "--index-url" not in rest
    assert "constraints.txt" in rest
    assert commands.index(torch) < commands.index(rest)
    assert "torch==" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_images_say_what_they_are(dockerfile):
    """The labels of the OCI image specification; the revision is filled in by whoever builds."""
    labels = dockerfile.image.labels

    assert labels["org.opencontainers.image.title"] in {"retort-service", "retort-training"}
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    assert labels["org.opencontainers.image.revision"] == "${REVISION}"
    assert {argument.text for argument in dockerfile.image.all("ARG")} == {"VERSION=0.1.0", "REVISION=unknown"}


def test_the_images_version_is_the_packages():
    """One version, in pyproject.toml, in both Dockerfiles and in the tags of the compose file."""
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))

    for name in FILES:
        image = read_dockerfile(ROOT / "docker" / name).image
        assert f"VERSION={version}" in {argument.text for argument in image.all("ARG")}
    for service in ("trainer", "service"):
        assert compose["services"][service]["image"].endswith(f":{version}")


def test_what_the_service_writes_lies_in_memory_or_on_a_volume():
    """The image works under --read-only: metric files in /dev/shm, the experiment's state under /state."""
    image = read_dockerfile(ROOT / "docker/service.Dockerfile").image
    environment = image.environment

    assert environment["RETORT_METRICS_DIRECTORY"].startswith("/dev/shm/")
    assert environment["RETORT_STATE"].startswith("/state/")
    assert "/state" in image.last("RUN").text


def test_every_variable_of_the_image_is_an_option_of_the_service():
    """A mistyped RETORT_ variable would refuse every start."""
    from service.settings import PREFIX, Settings

    environment = read_dockerfile(ROOT / "docker/service.Dockerfile").image.environment
    ours = {name for name in environment if name.startswith(PREFIX)}

    assert ours
    assert ours <= {PREFIX + name.upper() for name in Settings.model_fields}
