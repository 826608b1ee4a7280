# syntax=docker/dockerfile:1
# docker build -t regraft .                                    CPU
# docker build -t regraft:gpu --build-arg VARIANT=gpu .        GPU: CUDA comes as wheels, the host needs only its driver
# docker run --rm -v regraft-project:/project regraft          runs the default project and keeps it in a volume
# Servers and workers are this image with other commands: compose.yaml, which knows what the health of each is.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG VARIANT=cpu
WORKDIR /app
COPY requirements.lock requirements-gpu.lock ./
# The lock file of the variant, with every hash verified; then the project itself, built without a download.
RUN python -m venv /opt/venv \
 && case "$VARIANT" in cpu) lock=requirements.lock ;; gpu) lock=requirements-gpu.lock ;; \
      *) echo "VARIANT must be cpu or gpu, got $VARIANT" >&2; exit 2 ;; esac \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r "$lock" -c "$lock"
COPY pyproject.toml README.md ./
COPY flows ./flows
COPY tasks ./tasks
COPY regraft ./regraft
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index -e .

FROM python:${PYTHON}-slim
# git: DVC and lineage; tini: forwards signals and reaps children as process 1.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends git tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 regraft \
 && install -d -o regraft -g regraft /project
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY dvc.yaml params.yaml .dvcignore /app/
COPY containers /app/containers
ENV PATH=/opt/venv/bin:/app/containers:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TF_FORCE_GPU_ALLOW_GROWTH=true
USER 10001
WORKDIR /project
VOLUME /project
ENTRYPOINT ["tini", "-g", "--", "/app/containers/with-secrets"]
CMD ["sh", "-c", "[ -e params.yaml ] || regraft init . --source package:mnist5k --name mnist5k; exec regraft run"]
