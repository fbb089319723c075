//! JetStream: requests to its API, pull consumers, and the tailer that follows one stream.
//!
//! [`api`] sends requests on the control connection and maps failures to [`error::JetStreamError`],
//! which knows whether waiting helps and what an operator can do. [`stream_state`] is what
//! `STREAM.INFO` reports. [`stream_subjects`] knows the subjects of events: keys, if the stream is a
//! KV bucket. [`consumer`] is one ephemeral pull consumer with every check for lost messages.
//! [`tailer`] follows one stream for the whole pod and recreates its consumer after a loss. [`tags`]
//! keeps the source tags of event ids unique.

pub(in crate::nats) mod api;
pub(in crate::nats) mod consumer;
pub(in crate::nats) mod error;
pub(in crate::nats) mod stream_config;
pub(in crate::nats) mod stream_state;
pub(in crate::nats) mod stream_subjects;
pub(in crate::nats) mod tags;
pub(in crate::nats) mod tailer;
