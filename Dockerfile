# The image holds one stripped binary, the C library, and the certificates of public authorities: 13 MB, no shell, no
# package manager. It runs as an unprivileged user on a read-only root file system. There is no HEALTHCHECK: Kubernetes
# probes the admin port. `tests/image.rs` runs the image content that scripts/rootfs.sh assembles.

# The base image, with its digest: rust:1.95-bookworm@sha256:... There is no default, because a tag can move to another
# image. docs/kubernetes.md explains how to find the digest.
ARG BUILD_IMAGE
FROM ${BUILD_IMAGE} AS build
ARG BUILD_IMAGE
RUN case "$BUILD_IMAGE" in *@sha256:*) ;; *) echo "BUILD_IMAGE has no digest: $BUILD_IMAGE" >&2; exit 1 ;; esac
WORKDIR /build
COPY . .
# Cache mounts are not part of the layer, so this step copies the binary out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin sidestream \
    && strip --output-file=target/release/sidestream-stripped target/release/sidestream \
    && scripts/rootfs.sh target/release/sidestream-stripped /rootfs

FROM scratch
ARG BUILD_IMAGE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sidestream" \
      org.opencontainers.image.description="Delivers events from NATS over Server-Sent Events, from a sidecar in every pod" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="$BUILD_IMAGE" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /rootfs /
# A number, so that `runAsNonRoot` can be checked without a user database.
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/sidestream"]
CMD ["run", "--config", "/etc/sidestream/sidecar.yaml"]
