# The online program: answers /predict from the bundles under /repository. No torch, no compiler, no shell needed.
#
#   docker build -f docker/service.Dockerfile -t retort-service .
#   docker run --read-only -p 127.0.0.1:8000:8000 -v ./models/repository:/repository:ro retort-service
#
# Another base (a mirror, a hardened image): --build-arg PYTHON_IMAGE=...
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/retort
WORKDIR /build
# The dependencies first: they change seldom, and this layer is then taken from the cache.
# Each file is known by its hash: an index that gives out another one stops the build. `make lock` writes the list.
COPY docker/service.lock ./service.lock
RUN /opt/retort/bin/pip install --require-hashes -r service.lock
COPY pyproject.toml README.md ./
COPY models ./models
COPY service ./service
RUN /opt/retort/bin/pip install --no-deps .
# Nothing is installed at run time, so the installer stays behind.
RUN /opt/retort/bin/pip uninstall --yes setuptools pip

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="retort-service" \
      org.opencontainers.image.description="Click probabilities over HTTP: models, experiments, metrics" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, not a name, in USER: Kubernetes' runAsNonRoot can then tell. The training image has the same one,
# because the two share the repository volume.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent retort \
 && install --directory --owner=retort --group=retort /repository /state
COPY --from=build /opt/retort /opt/retort
# /dev/shm is memory in every container and stays writable under --read-only: the workers' metric files live there.
# /state remembers which version `latest` meant when a phase started; keep it on a volume.
ENV PATH=/opt/retort/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    RETORT_HOST=0.0.0.0 \
    RETORT_PORT=8000 \
    RETORT_REPOSITORY=/repository \
    RETORT_STATE=/state/experiments.state.json \
    RETORT_METRICS_DIRECTORY=/dev/shm/retort-metrics \
    RETORT_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready means: every model that traffic needs has scored its golden rows. 503 while loading and while draining.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['RETORT_PORT'] + '/health/ready', timeout=2)"]
# Exec form: SIGTERM reaches the program itself, which drains and exits 0. Options go after the image's name.
ENTRYPOINT ["python", "-m", "service"]
