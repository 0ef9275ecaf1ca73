# The project with its pinned packages, for CPUs or for NVIDIA GPUs:
#   docker build --tag corr2cause .
#   docker build --tag corr2cause:cuda --build-arg DEVICE=cuda .
FROM python:3.12-slim

# Triton, which comes with torch, compiles with gcc what a GPU needs.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /corr2cause

# cpu: a build of torch without CUDA, gigabytes less. cuda: that of PyPI, with CUDA's libraries; the host has the driver.
ARG DEVICE=cpu
COPY Makefile requirements.txt requirements-dev.txt ./
RUN case "$DEVICE" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "DEVICE is $DEVICE; it must be cpu or cuda" >&2 && exit 1 ;; \
    esac && PIP_NO_CACHE_DIR=1 make install

# A word in its name makes hadolint take one of these for a secret.
# hadolint ignore=DL3064
ENV PATH="/corr2cause/.venv/bin:$PATH" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
COPY . .
CMD ["bash"]
