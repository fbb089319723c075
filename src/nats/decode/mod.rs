//! Decoding: NATS messages become events.
//!
//! [`message`] converts one message, without counters or state. [`decoder`] adds the metrics of a
//! source, filter matching and batches.

pub(in crate::nats) mod decoder;
pub(in crate::nats) mod message;
