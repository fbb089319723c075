//! The test kit: real processes, independent clients and faults, shared by all tests and benchmarks.
//!
//! Nothing here imitates NATS, HTTP or TLS. Servers are the real ones, started as child processes
//! on free ports of loopback. Clients are written from the specifications and share no code with
//! the product, so a defect in the product cannot hide in its test:
//!
//! - servers: [`nats`] (one nats-server or a cluster of three), [`sidestream`] (the sidecar under
//!   test), [`front`] (nginx, HAProxy, Envoy, Caddy and Traefik), [`certs`] (a certificate
//!   authority), [`oidc`] (an OpenID Connect issuer), [`issuer`] (one that misbehaves),
//!   [`endpoint`] (an authentication endpoint of an application), [`application`] (the
//!   application beside a sidecar),
//! - clients: [`sse`] with [`sse_parser`] and [`ndjson`] over [`http1`] and [`h2`], [`websocket`],
//!   [`grpc`] (gRPC and gRPC-Web, and the libraries of applications), [`browser`] (Chromium),
//!   [`node`] (npm packages), [`h2_tap`] (frames as received), [`transport`] (TCP or TLS),
//! - faults: [`proxy`] (delays, stalls, cuts), and the signals of [`process`],
//! - readers of manifests that are not ours: [`kubernetes`],
//! - [`wait`]: a test waits for a fact with a deadline and never for a time.
//!
//! Every child process is killed when its handle is dropped. If the test is failing, the handle
//! prints the last output of the child first.

#![allow(clippy::unwrap_used)] // a failure of the test kit is a failure of the test

pub mod application;
pub mod browser;
pub mod certs;
pub mod endpoint;
pub mod faulty;
pub mod front;
pub mod grpc;
pub mod h2;
pub mod h2_tap;
pub mod http1;
pub mod issuer;
pub mod kubernetes;
pub mod nats;
pub mod ndjson;
pub mod node;
pub mod oidc;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod repository;
pub mod sidestream;
pub mod sse;
pub mod sse_parser;
pub mod transport;
pub mod wait;
pub mod websocket;
