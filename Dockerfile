# qsmflow as a BIDS App:
#   docker build -t qsmflow .
#   docker run --rm -v STUDY:/data:ro -v OUT:/out qsmflow /data /out participant

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY qsmflow ./qsmflow
RUN python -m venv /opt/qsmflow \
    && /opt/qsmflow/bin/pip install --no-cache-dir '.[validator]'

# The tests of the method table call every method once: that compiles all of them, and proves the installation.
FROM build AS warm
# Code for any CPU of the architecture, so that the cache holds on other machines than the one that built it.
ENV NO_ET=1 NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/opt/cache/numba MPLCONFIGDIR=/opt/cache/matplotlib
COPY tests ./tests
RUN python -m venv --system-site-packages /opt/test \
    && echo /opt/qsmflow/lib/python3.11/site-packages > /opt/test/lib/python3.11/site-packages/qsmflow.pth \
    && /opt/test/bin/pip install --no-cache-dir "pytest>=8.3" "pytest-xdist>=3.6" \
    && /opt/test/bin/pytest -q -p no:cacheprovider tests/unit/test_registry.py tests/unit/test_unwrap.py \
    && /opt/qsmflow/bin/python -c "import matplotlib.font_manager" \
    && chmod -R a+rwX /opt/cache

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="qsmflow" \
      org.opencontainers.image.description="BIDS App for quantitative susceptibility mapping" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/qsmflow /opt/qsmflow
COPY --from=warm /opt/cache /opt/cache
COPY docker/entrypoint.py /opt/qsmflow/entrypoint.py
# The home folder is open to any user id that the container may be started with.
RUN useradd --create-home --uid 1000 qsmflow \
    && chmod a+rwX /home/qsmflow
ENV PATH=/opt/qsmflow/bin:$PATH \
    HOME=/home/qsmflow \
    NO_ET=1 \
    NUMBA_CPU_NAME=generic \
    MPLBACKEND=Agg \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/qsmflow
ENTRYPOINT ["/opt/qsmflow/bin/python", "/opt/qsmflow/entrypoint.py"]
CMD ["--help"]
