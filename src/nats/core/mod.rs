//! Core subjects: one subscription per filter, shared by all feeds that use the filter.
//!
//! [`subscriptions`] is the task that subscribes on demand and writes to the feeds;
//! [`subscription_set`] merges the messages of many subscriptions into one stream.

pub(in crate::nats) mod subscription_set;
pub(in crate::nats) mod subscriptions;
