# ABMLL Serve in a container: two stages, non-root, one volume, health-checked.
#
#   docker build -t abmll-serve .
#       Installs the torch that pip chooses: on Linux the CUDA build (several GB; it also runs
#       without a GPU).
#   docker build -t abmll-serve --build-arg TORCH_INDEX_URL=<address of PyTorch's CPU wheel index> .
#       Installs the CPU build. PyTorch's "Start Locally" page shows the address for "Compute
#       Platform: CPU", and one for each CUDA version.
#
# Settings of pip for a mirror or a company certificate are a build secret, not part of the image:
#   docker build --secret id=pip.conf,src=$HOME/.config/pip/pip.conf ...
# BASE_IMAGE is any Debian-like image with Python >= 3.11, its venv module and CA certificates.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS builder
ARG TORCH_INDEX_URL=""
# Extras of the package, separated by spaces: "s3 ray" for the workers of a Ray cluster.
ARG EXTRAS="s3"
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/abmll/bin:$PATH
RUN python3 -m venv /opt/abmll
WORKDIR /src

# Dependencies come before the source, so that a change of code does not install torch again. torch
# is installed first and alone: its index has old copies of other packages. Later pip calls keep it.
COPY pyproject.toml ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print(*p['dependencies'], *(r for e in '${EXTRAS}'.split() for r in p['optional-dependencies'][e]), sep='\n')" \
        > /tmp/requirements.txt \
    && pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch[<>=]' /tmp/requirements.txt)" \
    && pip install -r /tmp/requirements.txt

COPY . .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-deps .


FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="abmll-serve" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Few-shot adaptation of language models with uncertainty you can act on"

# The numeric user and group are fixed, so that Kubernetes can check runAsNonRoot, and volumes can
# have their owner before the first start. Any other user may run it too, if its group is 0 as on
# OpenShift, or if its volume lets it write: it needs no entry in /etc/passwd, only LOGNAME below.
RUN groupadd --gid 10001 abmll \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/abmll --shell /usr/sbin/nologin abmll \
    && install -d -m 2775 -o 10001 -g 0 /var/lib/abmll /var/lib/abmll/cache /var/lib/abmll/data
COPY --from=builder /opt/abmll /opt/abmll
# KubeRay starts Ray from a login shell, which knows no folder of ours.
RUN [ ! -e /opt/abmll/bin/ray ] || ln -s /opt/abmll/bin/ray /usr/local/bin/ray

# The server writes base weights (cache) and acknowledged adapters (data) only: one volume has both.
# It fetches the default base with the pip of its virtual environment, whose cache would be a second
# copy. OpenMP threads that wait must sleep, not spin: on 2 cores shared with other work, adapting
# to 16 examples took 70 s with spinning threads and 8 s with sleeping ones.
ENV PATH=/opt/abmll/bin:$PATH \
    HOME=/var/lib/abmll \
    LOGNAME=abmll \
    ABMLL_CACHE_DIR=/var/lib/abmll/cache \
    ABMLL_DATA_DIR=/var/lib/abmll/data \
    HF_HOME=/var/lib/abmll/cache/huggingface \
    OMP_WAIT_POLICY=PASSIVE \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME /var/lib/abmll
EXPOSE 8000

# The check is of liveness only: a server that is loading, busy or draining is healthy. /readyz is
# for load balancers. Set another port than 8000 with ABMLL_PORT, which this check reads.
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s --retries=4 \
    CMD ["python3", "-c", "import os; from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', int(os.environ.get('ABMLL_PORT', 8000)), timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]

# In a container it listens on all addresses, so it starts with keys (ABMLL_KEYS_FILE) or with
# ABMLL_INSECURE=true, for a port that only trusted callers reach. See docs/security.md.
ENTRYPOINT ["abmll"]
CMD ["serve", "--host", "0.0.0.0"]
