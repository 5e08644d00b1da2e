# Two images: `worker`, a Celery worker with its tools and a gate, and `gate`, the gate alone.
#
#   docker build --target worker -t worker-gate-worker .
#   docker build --target gate -t worker-gate .
#
# Whoever pins the bases names their digests: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:...
# Where registries are reached by a mirror or an authority of one's own, the clients' own files come as secrets, of which nothing
# stays in a layer: --secret id=apt.conf,src=FILE, and so on for pip.conf, npmrc and cargo.toml. What they name as the file of
# their authorities, /run/secrets/ca.crt, is the secret ca.crt.
ARG PYTHON_IMAGE=python:3.11-slim
# Its glibc must not be newer than that of the image in which the gate runs.
ARG RUST_IMAGE=rust:1-slim-bookworm

FROM ${RUST_IMAGE} AS build
# For its static build, which runs in every image.
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# The dependencies, below programs that do nothing: a layer that lasts until the lock file changes.
RUN --mount=type=secret,id=ca.crt \
    --mount=type=secret,id=cargo.toml,target=/usr/local/cargo/config.toml \
    mkdir -p src tests/it tests/faults tests/bench && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs tests/it/main.rs tests/faults/main.rs >tests/bench/main.rs \
    && cargo build --locked --release && rm -rf src
COPY config/default.toml config/default.toml
COPY src src
# Cargo goes by times, and the sources may be older than the programs that did nothing.
RUN touch src/main.rs src/lib.rs && cargo build --locked --release --offline
# What goes into the image that has nothing else: the gate, the libraries that it loads, and the users it may run as.
COPY config/container/entrypoint /build/worker-gate-entrypoint
RUN set -eu; mkdir -p /gate/usr/local/bin /gate/etc/ssl/certs /gate/etc/worker-gate; \
    cp target/release/worker-gate /gate/usr/local/bin/; \
    cp /usr/bin/tini-static /gate/usr/local/bin/tini; \
    install -m 755 worker-gate-entrypoint /gate/usr/local/bin/; \
    ldd target/release/worker-gate | grep -o '/[^ ]*' | xargs -I LIBRARY cp --parents -L LIBRARY /gate; \
    cp /etc/ssl/certs/ca-certificates.crt /gate/etc/ssl/certs/; \
    printf 'root:x:0:0::/:/sbin/nologin\ncelery:x:1000:1000::/home/celery:/sbin/nologin\n' >/gate/etc/passwd; \
    printf 'root:x:0:\ncelery:x:1000:\n' >/gate/etc/group; \
    echo 'hosts: files dns' >/gate/etc/nsswitch.conf; \
    mkdir -p /empty; chmod 700 /empty; mkdir -m 1777 -p /gate/tmp

FROM scratch AS gate
COPY --from=build /gate /
COPY --from=build --chown=1000:1000 /empty /var/lib/worker-gate
COPY --from=build --chown=1000:1000 /empty /home/celery
LABEL org.opencontainers.image.title="worker-gate" \
    org.opencontainers.image.description="Admission control for Celery workers at the message broker" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/usr/local/bin
USER 1000:1000
VOLUME /var/lib/worker-gate
ENTRYPOINT ["worker-gate"]
CMD ["status"]

FROM ${PYTHON_IMAGE} AS runtime
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    apt-get update && apt-get install -y --no-install-recommends nodejs && rm -rf /var/lib/apt/lists/*

FROM runtime AS tools
ARG NPM_VERSION=10.9.4
ARG CODEX_CLI_VERSION=0.169.0
ARG SPEC_KIT_VERSION=1.2.3
ARG CELERY_VERSION=5.7.0
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    apt-get update && apt-get install -y --no-install-recommends npm && rm -rf /var/lib/apt/lists/*
# A newer npm for `image verify`, in one folder, which the image does not keep.
RUN --mount=type=secret,id=ca.crt \
    --mount=type=secret,id=npmrc,target=/root/.npmrc \
    npm install --global --prefix /opt/npm --no-audit --no-fund npm@${NPM_VERSION} \
    && npm install --global --prefix /opt/codex --no-audit --no-fund @openai/codex@${CODEX_CLI_VERSION} \
    && rm -rf /root/.npm
# The Spec Kit CLI has an environment of its own, so that an app's packages never change it.
RUN --mount=type=secret,id=ca.crt \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/celery && python3 -m venv --without-pip /opt/spec-kit \
    && /opt/celery/bin/pip install --no-cache-dir "celery[redis]==${CELERY_VERSION}" \
    && /opt/celery/bin/pip --python /opt/spec-kit/bin/python install --no-cache-dir "specify-cli==${SPEC_KIT_VERSION}"

FROM runtime AS worker
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="worker-gate worker" \
    org.opencontainers.image.description="A Celery worker with the Codex CLI, the Spec Kit CLI and a gate" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}"
RUN groupadd --gid 1000 celery && useradd --uid 1000 --gid 1000 --create-home celery \
    && mkdir -m 700 /var/lib/worker-gate && mkdir /app \
    && ln -s /opt/codex/bin/codex /opt/spec-kit/bin/specify /usr/local/bin/ && ln -s specify /usr/local/bin/speckit
COPY --from=tools /opt/codex /opt/codex
COPY --from=tools /opt/spec-kit /opt/spec-kit
COPY --from=tools /opt/celery /opt/celery
COPY --from=build /gate/usr/local/bin/ /usr/local/bin/
COPY config/wheel/data/share/ /usr/local/share/
COPY config/container/codex.toml /etc/codex/config.toml
COPY config/container/worker-gate.toml /etc/worker-gate/worker-gate.toml
ENV PATH=/opt/celery/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Built, and promoted to verified: of the versions npm and pip ask their registries. An image that breaks a rule is none.
RUN --mount=type=bind,from=tools,source=/opt/npm,target=/opt/npm \
    --mount=type=secret,id=ca.crt,mode=0444 \
    --mount=type=secret,id=npmrc,target=/home/celery/.npmrc,mode=0444 \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf,mode=0444 \
    worker-gate image record --base-image "${PYTHON_IMAGE}" \
    && PATH="$PATH:/opt/npm/bin" worker-gate image verify \
    && rm -rf /home/celery/.npm /home/celery/.cache /home/celery/.codex
WORKDIR /app
VOLUME /var/lib/worker-gate
# Ready is a container whose worker gets work.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["worker-gate-entrypoint"]
CMD ["celery", "-A", "app", "worker", "-Q", "codex-0", "-n", "codex-0@worker"]
