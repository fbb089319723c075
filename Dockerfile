# syntax=docker/dockerfile:1

# The image holds one stripped binary and the certificates of public authorities; it runs as nobody in particular on a
# read-only root file system. There is no HEALTHCHECK: Kubernetes asks the admin port.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
# The caches outlive the layer; what is wanted leaves them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin sidestream \
    && strip --output-file=/sidestream target/release/sidestream

FROM debian:12-slim
LABEL org.opencontainers.image.title="sidestream" \
      org.opencontainers.image.description="Delivers events from NATS over Server-Sent Events, from a sidecar in every pod" \
      org.opencontainers.image.licenses="Apache-2.0"
# For NATS servers with certificates of public authorities.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /sidestream /sidestream
# A number, so that `runAsNonRoot` can be checked without a user database.
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/sidestream"]
CMD ["run", "--config", "/etc/sidestream/sidecar.yaml"]
