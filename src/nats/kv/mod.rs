//! NATS KV buckets: one general bucket, and what is kept in buckets.
//!
//! | file | job |
//! | --- | --- |
//! | `bucket` | one bucket: settings, keys as texts, values as bytes |
//! | `watch` | every value of a bucket, then every change |
//! | `revocations` | revoked credentials, and clients to disconnect |
//! | `presence` | which clients are connected to which pod |
//! | `schemas` | JSON Schemas of payloads |
//! | `tickets` | credentials for one event stream, each of which one pod redeems |

pub(super) mod bucket;
pub(super) mod presence;
pub(super) mod revocations;
pub(super) mod schemas;
pub(super) mod tickets;
mod watch;
