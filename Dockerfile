# Two images of the same code: `docker build --target cpu .` and `docker build --target gpu .`.
# docs/deployment.md says how they are used. For a build that can be repeated byte by byte, give the base by its digest:
#   --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY qualitygate qualitygate
COPY jobs jobs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
# With rsync and ssh `ray up` copies files into the container, and the head reaches its workers. KubeRay 1.5 asks with
# wget whether a pod is well.
# Debian keeps only the newest build of a package, so a pinned version would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*
# `ray up` mounts the token into .ray; made here, as a mount would make it root's.
RUN groupadd --gid 1000 ray \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray \
    && install --directory --owner=ray --group=ray /home/ray/.ray
COPY constraints.txt /opt/qualitygate/constraints.txt
WORKDIR /home/ray

FROM base AS cpu
# PyPI's torch brings gigabytes of CUDA libraries; PyTorch's own index has the same release without them.
RUN pip install --no-deps --constraint /opt/qualitygate/constraints.txt \
    --index-url https://download.pytorch.org/whl/cpu torch torchvision
# By its file: by its name pip would prefer a package of the same name from an index, were it newer.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    set -- /wheels/*.whl \
    && pip install --constraint /opt/qualitygate/constraints.txt "$1[cluster]"
# By number, so that Kubernetes can check that it isn't root.
USER 1000:1000
# No ENTRYPOINT: Ray's launchers start a shell in the container.
CMD ["qualitygate", "--help"]

FROM base AS gpu
# Networks are compiled for a GPU by Triton, which builds its launcher with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# CUDA comes with torch's wheels; the driver is the node's.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    set -- /wheels/*.whl \
    && pip install --constraint /opt/qualitygate/constraints.txt "$1[cluster]"
USER 1000:1000
CMD ["qualitygate", "--help"]
