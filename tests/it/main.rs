//! The integration tests: the real binary and the library, against real servers and real clients, one module per behaviour.
//!
//! All modules are one binary, so that a change of the product is linked once. libtest runs them in
//! alphabetical order on as many threads as there are processors. Tests that change the whole process or
//! measure it are binaries of their own (`tests/*.rs`).
//!
//! `cargo test --test it resume::` runs one module.

#![allow(clippy::unwrap_used)] // a failure is the result
#![allow(unreachable_pub)] // `pub` marks what other modules may use; a test crate exports nothing

mod admin;
mod application;
mod asyncapi;
mod authentication;
mod begin;
mod bucket;
mod check;
mod clients;
mod cloudevents;
mod compression;
mod config;
mod demo;
mod doctor;
mod event_streams;
mod examples;
mod finite;
mod front;
mod grpc;
mod history;
mod latest;
mod long_poll;
mod metrics;
mod nats_connection;
mod nats_core;
mod nats_faults;
mod nats_tailer;
mod ndjson;
mod orders;
mod presence;
mod rejections;
mod reload;
mod republish;
mod resources;
mod resume;
mod schema_check;
mod schemas;
mod selftest;
mod selftest_clients;
mod slow;
mod tail;
mod tls_sessions;
mod traces;
mod upstream;
mod versions;
mod websocket;
