//! JetStream: requests to its API, pull consumers, and the tailer that follows one stream.

pub(in crate::nats) mod api;
pub(in crate::nats) mod consumer;
pub(in crate::nats) mod error;
pub(in crate::nats) mod tags;
pub(in crate::nats) mod tailer;
