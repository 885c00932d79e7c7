# The offline program: from a click log to exported bundles under /repository, a report under /retort/runs.
#
#   docker build -f docker/training.Dockerfile -t retort-training .
#   docker run -v ./models/repository:/repository -v ./runs:/retort/runs retort-training run synthetic --repository /repository
#
# (The two folders must be writable by user 10001, or say --user "$(id -u):$(id -g)".)
#
# torch comes as the CPU build of the version in constraints.txt: a tenth of the download. With an NVIDIA GPU:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 ...   and   docker run --gpus all ...
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/retort
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
# torch alone from its own index, so that no other package can come from there; then the rest, torch found in place.
RUN /opt/retort/bin/pip install --no-deps --index-url ${TORCH_INDEX} -c constraints.txt torch
RUN /opt/retort/bin/pip install -c constraints.txt ".[training]"
COPY models ./models
COPY training ./training
RUN /opt/retort/bin/pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="retort-training" \
      org.opencontainers.image.description="Click log to teachers, gate, distilled student and exported bundles" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The same number as in the service image: the two share the repository volume.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent retort \
 && install --directory --owner=retort --group=retort /repository /retort /retort/runs
COPY --from=build /opt/retort /opt/retort
COPY docker/train_when_empty.py /opt/retort/train_when_empty.py
ENV PATH=/opt/retort/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /retort
USER 10001:10001
STOPSIGNAL SIGTERM
# A job, not a server: it is done when it exits, so there is no health to check.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
