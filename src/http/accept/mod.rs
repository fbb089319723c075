//! Connections: listeners, the task of each connection, and protocol detection.

pub(in crate::http) mod connection;
pub(in crate::http) mod connection_task;
pub(in crate::http) mod listen;
pub(in crate::http) mod reclaim;
