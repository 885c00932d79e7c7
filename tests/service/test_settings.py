"""Options: one list, three ways to give them, and nothing mistyped that passes in silence."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import make_parser, read_settings
from service.errors import ConfigError
from service.settings import SECRETS, Settings


@pytest.fixture(autouse=True)
def _no_variables_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("RETORT_"):
            monkeypatch.delenv(name)


def test_an_option_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command line is nearer than the environment; what neither gives has its default."""
    monkeypatch.setenv("RETORT_PORT", "9000")
    monkeypatch.setenv("RETORT_WORKERS", "3")
    monkeypatch.setenv("RETORT_REPOSITORY", str(tmp_path))

    settings = read_settings(["--port", "9001"])

    assert (settings.port, settings.workers, settings.host) == (9001, 3, "127.0.0.1")
    assert settings.repository == tmp_path


def test_every_setting_is_an_option_with_a_help_of_its_own():
    """`--help` teaches: each option's text is its setting's docstring. A secret is no option: `ps` shows those."""
    text = " ".join(make_parser().format_help().split())

    assert "--admin-token " not in text
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            continue
        assert f"--{name.replace('_', '-')}" in text
        assert field.description, f"{name} has no docstring"
        assert field.description.split()[0] in text
    assert "examples:" in text
    assert "exit codes" in text


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [("RETORT_WORKER", "RETORT_WORKERS"), ("RETORT_REPO", "RETORT_REPOSITORY"), ("retort_prot", "RETORT_PORT")],
)
def test_a_mistyped_variable_is_refused_with_the_nearest_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, nearest: str
):
    """pydantic-settings would ignore it, and the service would run with another setting than was asked for."""
    monkeypatch.setenv(variable, "1")

    with pytest.raises(ValidationError, match=f"{variable}: did you mean {nearest}"):
        Settings(repository=tmp_path)


def test_variables_of_training_are_none_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The two programs may share one environment."""
    monkeypatch.setenv("RETORT_TRAINING_DATA", "/data")
    monkeypatch.setenv("RETORT_TRAINING_NONSENSE", "1")

    assert Settings(repository=tmp_path).workers == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--repository (RETORT_REPOSITORY): is missing"),
        (["--repository", "r", "--workers", "0"], "--workers (RETORT_WORKERS)"),
        (["--repository", "r", "--workers", "two"], "--workers (RETORT_WORKERS)"),
        (["--repository", "r", "--port", "70000"], "--port (RETORT_PORT)"),
        (["--repository", "r", "--log-format", "xml"], "--log-format (RETORT_LOG_FORMAT)"),
        (["--repository", "r", "--max-body-bytes", "1"], "--max-body-bytes (RETORT_MAX_BODY_BYTES)"),
        (["--repository", "r", "--poll-seconds", "nan"], "--poll-seconds (RETORT_POLL_SECONDS)"),
    ],
)
def test_a_wrong_option_is_refused_by_both_its_names(arguments: list[str], message: str):
    """The person at the keyboard reads which option, whichever way they gave it."""
    with pytest.raises(ConfigError) as caught:
        read_settings(arguments)

    assert message in str(caught.value)


def test_a_wrong_variable_is_named_like_its_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The same message, for the one who set the variable."""
    monkeypatch.setenv("RETORT_WORKERS", "many")

    with pytest.raises(ConfigError, match=r"--workers \(RETORT_WORKERS\)"):
        read_settings(["--repository", str(tmp_path)])


def test_settings_do_not_change(tmp_path: Path):
    """Frozen: what was read at start is true to the end."""
    settings = Settings(repository=tmp_path)

    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_the_state_file_lies_beside_the_experiment_file(tmp_path: Path):
    """Unless it is named; without an experiment file there is none."""
    experiments = tmp_path / "experiments.yaml"

    assert Settings(repository=tmp_path, experiments=experiments).state_file == tmp_path / "experiments.yaml.state.json"
    assert Settings(repository=tmp_path, experiments=experiments, state=tmp_path / "s").state_file == tmp_path / "s"
    assert Settings(repository=tmp_path).state_file is None
