//! Decoding: NATS messages become events.

pub(in crate::nats) mod decoder;
pub(in crate::nats) mod message;
