"""Every option of the service: its bound, its meaning, its variable.

An option `max_body_bytes` is `--max-body-bytes` on the command line and `RETORT_MAX_BODY_BYTES` in the environment; the
command line wins. Settings are read once and handed to `create_app(settings)`: nothing else reads the environment.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "RETORT_"
TRAINING_PREFIX = "RETORT_TRAINING_"  # the offline program's and the tests' own; none of ours

SECRETS = frozenset(("admin_token",))
"""Settings that are variables alone."""


class Settings(BaseSettings):
    """The service's options, frozen. A mistyped `RETORT_` variable is refused, not silently ignored."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        env_ignore_empty=True,
    )

    repository: Path
    """Folder of model bundles: <repository>/<name>/<version>/ (docs/bundle.md)."""

    experiments: Path | None = None
    """The experiment file, YAML or JSON (docs/experiments.md). Without it: the only model in the repository
    takes all traffic, or, where `ensemble` and `student` lie there, the experiment that is shipped."""

    state: Path | None = None
    """File that remembers which version `latest` meant when a phase started. Every worker of this machine
    shares it. Default: the experiment file's name with `.state.json` added."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""

    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Port for the Open Inference Protocol over gRPC; 0 takes a free one and logs it. Needs the extra `grpc`. Default:
    gRPC is not spoken."""

    workers: int = Field(default=1, ge=1, le=256)
    """Worker processes on the one listening socket: one a core. A worker that dies is started again."""

    max_body_bytes: int = Field(default=1 << 19, ge=1 << 10, le=1 << 24)
    """Longest request body accepted; a longer one is refused with 413 before it is read."""

    max_candidates: int = Field(default=1000, ge=1, le=100_000)
    """Most candidates in one request; more are refused with 422."""

    max_in_flight: int = Field(default=100, ge=1, le=100_000)
    """Most requests a worker has admitted and not yet answered; beyond it 429 before any work. One of 12 candidates
    counts for two, of 24 for three, of 48 or more for five. While requests are refused in every run, it is two fifths
    of that: so a short burst is let in and lasting overload makes nobody wait long. A request is admitted when its body
    is there: who sends slowly holds no place."""

    max_run_rows: int = Field(default=256, ge=1, le=100_000)
    """Requests that wait together for one model are scored in one run, up to this many candidates (one
    request is never split); beyond 64 only as long as such a run takes 3 ms at most."""

    candidate_cache_bytes: int = Field(default=32 << 20, ge=0, le=1 << 36)
    """Memory each loaded model version of a worker may take to remember encoded candidates by their raw bytes, so that
    an ad that is sent again is not decoded again; some 60,000 ads of 300 bytes. 0: none."""

    catalogue: Path | None = None
    """File that keeps the ad catalogue (docs/api.md); all workers follow it. It need not be there yet: `PUT /catalogue`
    writes it. Without the option there is no catalogue."""

    max_catalogue_bytes: int = Field(default=32 << 20, ge=1 << 10, le=1 << 30)
    """Longest catalogue that `PUT /catalogue` takes; a longer one is put in the file's place by hand."""

    catalogue_share_bytes: int = Field(default=64 << 20, ge=0, le=1 << 36)
    """Memory each loaded model version of a worker may take for what its first layer makes of the catalogue's ads,
    computed ahead: 4 bytes an ad and unit of the layer, so 40,000 ads of a layer of 400. 0, or more than that: it is
    computed with each request."""

    max_loaded_extra: int = Field(default=2, ge=0, le=100)
    """Versions that are neither live nor in an experiment, kept loaded because `/models/{name}/versions/{v}/predict`
    asked for them; the least recently asked goes first. They are loaded one at a time and for a twentieth of the time
    at most: a request that comes too early is refused with 429. 0: such versions are not served."""

    poll_seconds: float = Field(default=0.25, ge=0.02, le=1.0)
    """How often the repository and the experiment file are looked at."""

    keep_alive_seconds: int = Field(default=75, ge=1, le=3600)
    """How long an idle connection is kept open for its client's next request."""

    drain_seconds: float = Field(default=1.0, ge=0.0, le=300.0)
    """After SIGTERM readiness is 503 for this long while requests are still answered, each with `Connection:
    close`, so that a balancer looks elsewhere before the socket closes."""

    shutdown_seconds: float = Field(default=30.0, ge=0.1, le=3600.0)
    """After that, how long requests in flight may take to finish before they are cut off."""

    worker_timeout_seconds: float = Field(default=30.0, ge=1.0, le=3600.0)
    """A worker whose event loop has not turned for this long is killed and started again."""

    metrics_directory: Path | None = None
    """Folder for the workers' metric files, emptied at start. Default: a new temporary folder."""

    admin_token_file: Path | None = None
    """File that holds the admin token: at least 32 printable characters, `openssl rand -hex 32` makes one. Who sends it
    as `Authorization: Bearer …` may load and unload models; every change is audited in the log. Without a token nobody
    may. Read once."""

    admin_token: SecretStr | None = None
    """The admin token itself; a variable and no option, because options are seen by every user of the machine."""

    log: Path | None = None
    """Folder of the exposure log (docs/journal.md): what was answered, and what `POST /feedback` says came of it.
    Made where it is not there. Without the option nothing is kept and there is no feedback."""

    log_required: bool = False
    """Whether a request whose record cannot be written is refused with 503. Without it scoring goes on, what was not
    logged is counted, and readiness says `degraded`."""

    log_features: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the exposures that hold the raw features of their request too."""

    log_unit_key_file: Path | None = None
    """File with a secret of at least 16 bytes, `openssl rand -hex 32` makes one: units are logged under a keyed hash
    instead of as they were sent. The same on every machine. Read once."""

    log_segment_bytes: int = Field(default=64 << 20, ge=1 << 12, le=1 << 30)
    """Longest segment of the exposure log; then a new one is begun."""

    log_segment_seconds: float = Field(default=3600.0, ge=1.0, le=86400.0 * 30)
    """Longest time a segment is written to."""

    log_sync_seconds: float = Field(default=1.0, ge=0.01, le=60.0)
    """How often what was written is synced to the disk: at most so much is lost when the power fails. A worker that is
    killed loses nothing."""

    log_keep_days: float = Field(default=90.0, gt=0.0, le=36500.0)
    """Segments that were last written to so long ago are removed."""

    log_keep_bytes: int = Field(default=64 << 30, ge=1 << 20, le=1 << 50)
    """Most the exposure log may take; the oldest segments go first."""

    guard_rail_seconds: float = Field(default=2.0, ge=0.05, le=3600.0)
    """How often the guard-rails of the experiment file are judged, by a process of their own that reads the exposure
    log: without `--log` and `--experiments` no arm is halted."""

    traces: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Where traces of requests go: the address of an OpenTelemetry collector for OTLP over HTTP, as
    http://collector:4318/v1/traces. Needs the extra `otel`. Requests that come with a sampled `traceparent` are
    traced, up to 100 a second and worker. Default: nothing is traced."""

    trace_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """With `--traces`, the share of requests without a `traceparent` that begin a trace of their own."""

    results_seconds: float = Field(default=300.0, ge=1.0, le=3600.0)
    """Longest time that computing an experiment's results may take; a process of its own does it, one at a time."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least serious kind of event that is logged."""

    log_format: Literal["text", "json"] = "text"
    """`json` writes one object a line."""

    console: bool = True
    """Whether /console is answered: experiments, latency, results and the log's health as a page, for whoever reaches
    the port; what changes anything needs the admin token. With --no-console it is not there."""

    show_example: bool = False
    """Once ready, print a curl line that works, with its real answer."""

    @model_validator(mode="after")
    def _refuse_unknown_variables(self) -> Self:
        """pydantic-settings ignores a variable it does not know; RETORT_WORKER=8 would then be lost in silence."""
        known = sorted(name.upper() for name in type(self).model_fields)
        for name in sorted(os.environ):
            upper = name.upper()
            own = upper.removeprefix(PREFIX)
            if not upper.startswith(PREFIX) or upper.startswith(TRAINING_PREFIX) or own in known:
                continue
            (nearest,) = difflib.get_close_matches(own, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown variable {name}: did you mean {PREFIX}{nearest}?")
        return self

    @property
    def state_file(self) -> Path | None:
        """Where `latest` is remembered, or None where no experiment file is."""
        if self.state is not None or self.experiments is None:
            return self.state
        return self.experiments.with_name(self.experiments.name + ".state.json")
