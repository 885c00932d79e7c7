"""docker-compose.yml: valid, complete, and pointing at nothing that is not there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from tests.docker.dockerfile import read_dockerfile

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"


class _Part(BaseModel):
    """A part of the compose specification, with the keys that we use and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(_Part):
    context: str
    dockerfile: str


class Condition(_Part):
    condition: str


class HealthCheck(_Part):
    test: list[str]
    interval: str
    timeout: str
    retries: int


class ComposeService(_Part):
    image: str
    build: Build | None = None
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    depends_on: dict[str, Condition] = {}
    environment: dict[str, str] = {}
    ports: list[str] = []
    volumes: list[str] = []
    tmpfs: list[str] = []
    read_only: bool = False
    cap_drop: list[str] = []
    security_opt: list[str] = []
    restart: str
    stop_grace_period: str | None = None
    healthcheck: HealthCheck | None = None


class Compose(_Part):
    services: dict[str, ComposeService]
    volumes: dict[str, None]


@pytest.fixture(scope="module")
def compose() -> Compose:
    return Compose.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def test_a_key_that_the_specification_does_not_have_is_found():
    """The reader above can fail: a mistyped key, a number where a string belongs."""
    good: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    good["services"]["service"]["dependson"] = {}

    with pytest.raises(ValueError, match="dependson"):
        Compose.model_validate(good)


def test_compose_itself_accepts_the_file():
    """Where a compose binary is installed, it resolves the file; it needs no engine for that."""
    commands = (["docker", "compose"], ["docker-compose"])
    found = [
        command
        for command in commands
        if shutil.which(command[0])
        and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
    ]
    if not found:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")

    for command in found:
        done = subprocess.run([*command, "-f", str(FILE), "config", "-q"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_is_built_and_mounted_from_the_checkout_exists(compose: Compose):
    """An engine makes an empty folder where a mounted path is missing, and the program then fails strangely."""
    for name, service in compose.services.items():
        if service.build is not None:
            assert (ROOT / service.build.context).is_dir(), name
            assert read_dockerfile(ROOT / service.build.context / service.build.dockerfile).image, name
        for volume in service.volumes:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name}: {source}"
                assert volume.endswith(":ro"), f"{name}: nothing may write into the checkout: {volume}"
            else:
                assert source in compose.volumes, f"{name}: {source} is no named volume"


def test_every_named_volume_is_used(compose: Compose):
    used = {volume.split(":")[0] for service in compose.services.values() for volume in service.volumes}

    assert set(compose.volumes) <= used


def test_nothing_waits_for_a_service_that_cannot_answer(compose: Compose):
    """A dependency exists, and one that is waited for by health has a health check, of its own or its image's."""
    for name, service in compose.services.items():
        for other, condition in service.depends_on.items():
            needed = compose.services[other]
            if condition.condition == "service_healthy":
                from_image = needed.build is not None and (
                    read_dockerfile(ROOT / needed.build.dockerfile).image.last("HEALTHCHECK").text != "NONE"
                )
                assert needed.healthcheck is not None or from_image, f"{name} -> {other}"
            else:
                assert condition.condition == "service_completed_successfully", f"{name} -> {other}"
                assert needed.restart == "no", f"{name} -> {other}: a job that restarts never completes"


def test_the_service_waits_for_the_trainer_to_have_finished(compose: Compose):
    """`docker compose up` on a fresh machine: train once, then serve."""
    assert compose.services["service"].depends_on["trainer"].condition == "service_completed_successfully"
    command = (compose.services["trainer"].entrypoint or []) + (compose.services["trainer"].command or [])

    assert command[:4] == ["python", "/opt/retort/train_when_empty.py", "/repository", "--"]
    assert command[4:8] == ["python", "-m", "training", "run"]
    assert command[command.index("--repository") + 1] == "/repository"


def test_the_trainers_script_is_where_the_image_puts_it():
    """The path in the compose file is the destination of a COPY."""
    copies = read_dockerfile(ROOT / "docker/training.Dockerfile").image.copies()

    assert (["docker/train_when_empty.py"], "/opt/retort/train_when_empty.py") in copies


def test_the_trainers_command_is_one_that_the_training_program_takes():
    """Its recipe and its option exist; what `docker compose up` starts is not found out by starting it."""
    from training.cli import _parser

    command = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]["trainer"]["command"]
    arguments = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command[3:]]
    parsed = _parser().parse_args(arguments)

    assert (ROOT / f"training/recipes/{parsed.recipe}.yaml").is_file()
    assert parsed.repository == Path("/repository")


def test_ports_are_open_to_this_machine_alone(compose: Compose):
    """No login stands before any of them."""
    ports = [port for service in compose.services.values() for port in service.ports]

    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_image_is_pinned(compose: Compose):
    """No tag that means another thing tomorrow."""
    for service in compose.services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service.image), service.image


def test_no_container_has_rights_it_does_not_need(compose: Compose):
    """No capabilities, no way to new ones; our own two write to memory and volumes only."""
    for name, service in compose.services.items():
        assert service.cap_drop == ["ALL"], name
        assert service.security_opt == ["no-new-privileges:true"], name
    for name in ("trainer", "service"):
        assert compose.services[name].read_only, name


def test_the_service_may_read_the_repository_and_write_its_state(compose: Compose):
    """Bundles are never edited by who serves them; `latest` must be remembered across restarts."""
    volumes = compose.services["service"].volumes
    environment = {
        **read_dockerfile(ROOT / "docker/service.Dockerfile").image.environment,
        **compose.services["service"].environment,
    }

    assert f"repository:{environment['RETORT_REPOSITORY']}:ro" in volumes
    assert f"state:{Path(environment['RETORT_STATE']).parent}" in volumes


def test_the_experiment_file_that_is_mounted_exists_and_is_valid(compose: Compose):
    """The one that is shipped; and its folder is mounted, not the file: a file is replaced by renaming, which a mounted
    file does not follow."""
    from service.experiments.file import read_experiments
    from service.scoring.watch import SHIPPED

    service = compose.services["service"]
    inside = Path(service.environment["RETORT_EXPERIMENTS"])
    (source,) = [volume.split(":")[0] for volume in service.volumes if volume.split(":")[1] == str(inside.parent)]

    assert (ROOT / source / inside.name).resolve() == SHIPPED
    assert read_experiments(SHIPPED).default.name == "student-vs-ensemble"


def test_the_engine_waits_longer_than_the_service_needs_to_finish(compose: Compose):
    """A stop that is cut off loses what is in flight."""
    from service.settings import Settings

    fields = Settings.model_fields
    needed = fields["drain_seconds"].default + fields["shutdown_seconds"].default

    assert float((compose.services["service"].stop_grace_period or "0s").removesuffix("s")) > needed


def test_every_variable_set_for_the_service_is_one_of_its_options(compose: Compose):
    """A mistyped one refuses the start."""
    from service.settings import PREFIX, Settings

    known = {PREFIX + name.upper() for name in Settings.model_fields}

    assert set(compose.services["service"].environment) <= known


def test_a_variable_for_the_compose_file_never_reaches_the_service_as_an_unknown_option():
    """Somebody who exports it to move a port must still be able to run `python -m service` in that shell."""
    names = set(re.findall(r"\$\{(\w+)", FILE.read_text(encoding="utf-8")))

    assert names == {"RECIPE", "WORKERS", "SERVICE_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"}


def test_prometheus_scrapes_the_service_by_the_name_and_port_it_has(compose: Compose):
    """The target is a service of the compose file, on the port its image listens on."""
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")

    assert job["job_name"] == "retort"
    assert "metrics_path" not in job, "ours is the default, /metrics"
    assert host in compose.services
    assert read_dockerfile(ROOT / "docker/service.Dockerfile").image.last("EXPOSE").text == port
    for rules in config["rule_files"]:
        assert (ROOT / "docker/prometheus" / rules).is_file()


def test_grafana_finds_its_datasource_and_its_dashboard(compose: Compose):
    """The provisioned paths are those that are mounted; the datasource asks the Prometheus that is there."""
    provisioning = ROOT / "docker/grafana/provisioning"
    (datasource,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/retort.yaml").read_text())["providers"]
    grafana = compose.services["grafana"]
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana.volumes}

    assert re.fullmatch(r"http://prometheus:9090", datasource["url"])
    dashboards = ROOT / mounts[provider["options"]["path"]]
    assert (dashboards / "retort.json").is_file()
    assert mounts["/etc/grafana/provisioning"] == "./docker/grafana/provisioning"
