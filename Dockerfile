# Two images: the sidecar (the default target) and the webhook (`--target injector`). Each holds one stripped binary, the C
# library, and the certificates of public authorities: no shell, no package manager. They run as an unprivileged user on a
# read-only root file system. There is no HEALTHCHECK: Kubernetes probes the admin port. `tests/image.rs` runs the image
# content that scripts/rootfs.sh assembles.

# The base image, with its digest: rust:1.95-bookworm@sha256:... There is no default, because a tag can move to another
# image. docs/kubernetes.md explains how to find the digest.
ARG BUILD_IMAGE
FROM ${BUILD_IMAGE} AS source
ARG BUILD_IMAGE
RUN case "$BUILD_IMAGE" in *@sha256:*) ;; *) echo "BUILD_IMAGE has no digest: $BUILD_IMAGE" >&2; exit 1 ;; esac
WORKDIR /build
COPY . .

# Cache mounts are not part of the layer, so these steps copy the binary out of them.
FROM source AS build-sidecar
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked -p sidestream --bin sidestream \
    && strip --output-file=target/release/sidestream-stripped target/release/sidestream \
    && scripts/rootfs.sh target/release/sidestream-stripped /rootfs sidestream

FROM source AS build-injector
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked -p sidestream-injector --bin sidestream-injector \
    && strip --output-file=target/release/injector-stripped target/release/sidestream-injector \
    && scripts/rootfs.sh target/release/injector-stripped /rootfs sidestream-injector

FROM scratch AS injector
ARG BUILD_IMAGE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sidestream-injector" \
      org.opencontainers.image.description="Admission webhook that adds the Sidestream sidecar to pods" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="$BUILD_IMAGE" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build-injector /rootfs /
USER 65532:65532
EXPOSE 8443 9090
ENTRYPOINT ["/sidestream-injector"]

# Last, so that it is what `docker build` without a target builds.
FROM scratch AS sidecar
ARG BUILD_IMAGE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sidestream" \
      org.opencontainers.image.description="Delivers events from NATS over Server-Sent Events, from a sidecar in every pod" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="$BUILD_IMAGE" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build-sidecar /rootfs /
# A number, so that `runAsNonRoot` can be checked without a user database.
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/sidestream"]
CMD ["run", "--config", "/etc/sidestream/sidecar.yaml"]
