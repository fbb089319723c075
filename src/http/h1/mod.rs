//! HTTP/1.1 transport: event streams on a socket that was reclaimed from hyper.

pub(in crate::http) mod chunk_writer;
pub(in crate::http) mod reclaim;
pub(in crate::http) mod sink;
pub(in crate::http) mod stream;
