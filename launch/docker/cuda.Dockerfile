# clara_jax on NVIDIA GPUs, from the extra `cuda` of setup.py.
#
#   docker build -f launch/docker/cuda.Dockerfile -t clara-cuda .
#   docker run --gpus=all --ipc=host clara-cuda python -m clara_jax.train --config=...
#
# CUDA 13 comes with the extra; the host needs its driver and NVIDIA's container toolkit.
# For older drivers: --build-arg EXTRA=cuda12
FROM python:3.12-slim

ARG EXTRA=cuda
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# What changes seldom, first: a changed source file does not install jax again.
WORKDIR /opt/clara
COPY setup.py pyproject.toml README.md LICENSE ./
COPY clara_jax/__init__.py clara_jax/__init__.py
# hadolint ignore=DL3013
RUN pip install ".[${EXTRA}]"

COPY clara_jax clara_jax
COPY configs configs
RUN pip install --no-deps --editable . \
    && useradd --uid 1000 --create-home clara \
    && mkdir -p /mnt/clara runs \
    && chown clara /mnt/clara runs

USER 1000
CMD ["python", "-m", "clara_jax.train", "--help"]
