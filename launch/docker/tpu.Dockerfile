# clara_jax on TPU hosts, from the extra `tpu` of setup.py.
#
#   docker build -f launch/docker/tpu.Dockerfile -t clara-tpu .
#   docker run --privileged --net=host clara-tpu python -m clara_jax.train --config=...
#
# The TPU library comes with the extra; the host needs nothing but the TPU. Where its
# devices are root's own: docker run --user=root.
FROM python:3.12-slim

ARG EXTRA=tpu
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
