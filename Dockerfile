# The daemon in a container: docs/deployment.md says how to build and run it.
#
#   docker build --tag usp-daemon .                     for CPUs
#   docker build --tag usp-daemon:cuda --target cuda .  for NVIDIA GPUs
#
# Everything comes from locks with hashes; nothing is fetched when the container runs.

ARG PYTHON_VERSION=3.11
ARG BASE_IMAGE=python:${PYTHON_VERSION}-slim-bookworm

# --- what is built, and left behind with the tools that built it
FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements-build.lock ./
RUN python -m venv /build/tools \
    && /build/tools/bin/python -m pip install --require-hashes --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /build/tools/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

FROM build AS environment
COPY requirements.lock ./
# What runs has no pip, and no tests of NumPy and SciPy.
RUN python -m venv --without-pip /opt/usp-daemon \
    && python -m pip --python /opt/usp-daemon/bin/python install --require-hashes --requirement requirements.lock \
    && python -m pip --python /opt/usp-daemon/bin/python install --no-deps dist/*.whl \
    && find /opt/usp-daemon/lib/python3*/site-packages/numpy /opt/usp-daemon/lib/python3*/site-packages/scipy \
        -type d -name tests -prune -exec rm -r {} +

# --- what both targets run in
FROM ${BASE_IMAGE} AS runtime
RUN groupadd --gid 10001 usp-daemon \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/usp-daemon --no-create-home --shell /usr/sbin/nologin usp-daemon \
    && install --directory --owner 10001 --group 10001 --mode 0750 /var/lib/usp-daemon /var/cache/usp-daemon
COPY config/config.toml /etc/usp-daemon/config.toml
# The state lies below the working directory, as io/... in the settings.
WORKDIR /var/lib/usp-daemon
ENV PATH=/opt/usp-daemon/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/usp-daemon \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    USP_CONFIG=/etc/usp-daemon/config.toml \
    USP_CACHE_DIR=/var/cache/usp-daemon
VOLUME ["/var/lib/usp-daemon", "/var/cache/usp-daemon"]
# http.port; the daemon listens on 127.0.0.1 until USP_HTTP__HOST says otherwise
EXPOSE 9108
USER 10001:10001
STOPSIGNAL SIGTERM
# /livez: a broker that is away is no reason to replace the container
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "usp_daemon.probe", "livez"]
ENTRYPOINT ["usp-daemon"]
CMD ["run"]
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="usp-daemon" \
      org.opencontainers.image.description="Online probabilistic forecasts and regime alarms for streams of many symbols" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# --- for CPUs
FROM runtime AS cpu
COPY --from=environment /opt/usp-daemon /opt/usp-daemon

# --- for NVIDIA GPUs: JAX brings CUDA itself, the host its driver (NVIDIA Container Toolkit)
FROM build AS environment-cuda
COPY requirements-cuda.lock ./
RUN python -m venv --without-pip /opt/usp-daemon \
    && python -m pip --python /opt/usp-daemon/bin/python install --require-hashes --requirement requirements-cuda.lock \
    && python -m pip --python /opt/usp-daemon/bin/python install --no-deps dist/*.whl

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    USP_COMPUTE__DEVICE=cuda:0
COPY --from=environment-cuda /opt/usp-daemon /opt/usp-daemon

# --- what is built where no target is named
FROM cpu
