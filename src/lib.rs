//! Sidestream: NATS events for browsers and services over Server-Sent Events, from a sidecar.
//!
//! NATS messages are decoded into events once and appended to a buffer; every client reads the
//! buffer through a cursor; an encoder and a transport carry what it reads.
//!
//! ```text
//! nats -> feed -> http        upstream, core, downstream
//!  cli -> app -> config       command line, composition root, configuration
//! ```
//!
//! This library exists for the binary and for the tests; it is not a published interface. A module
//! uses only modules of a lower rank; `ARCHITECTURE.md` lists the ranks and the paths through them.

pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod encoding;
pub mod event;
pub mod feed;
pub mod http;
pub mod lifecycle;
pub mod limit;
pub mod nats;
pub mod net;
pub mod payload;
pub mod presence;

pub mod subject;
pub mod telemetry;
