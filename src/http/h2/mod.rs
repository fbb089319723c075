//! HTTP/2 transport: connections, their event streams, keepalive and idle timeout.

pub(in crate::http) mod connection;
mod frames;
pub(in crate::http) mod group;
pub(in crate::http) mod idle;
mod keepalive;
mod read_budget;
mod request;
pub(in crate::http) mod sink;
mod stream;
