//! Event streams: one response that carries events, without a protocol.

pub(in crate::http) mod compact_time;
pub(in crate::http) mod direct_path;
pub(in crate::http) mod event_stream;
pub(in crate::http) mod handover;
pub(in crate::http) mod stall;
pub(in crate::http) mod state;
pub(in crate::http) mod throttle;
pub(in crate::http) mod write_batch;
