//! Core subjects: subscriptions on demand, shared by all feeds with the same filters.

pub(in crate::nats) mod inlet;
pub(in crate::nats) mod subscriptions;
