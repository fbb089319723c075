//! HTTP client of the commands that read an event stream: `tail` and `doctor`.

pub(super) mod connection;
mod insecure;
pub(super) mod target;
