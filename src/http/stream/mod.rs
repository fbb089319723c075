//! Event streams: one open response that carries events, independent of the HTTP version.
//!
//! ```text
//! Opening (from request)
//!    |  event_stream::opening   a cursor for each source, known gaps, first bytes
//!    v
//! EventStream <--------------- polled by its task: h1::stream or h2::stream
//!    |  cursors -> write_batch  bytes of one turn, shared with other clients
//!    v
//! WriteBatch ----------------> the transport writes it, and reports what the socket accepted
//! ```
//!
//! - [`event_stream`] is the state machine: events, heartbeat, position, `max_age`, end. The files
//!   in its folder are its opening, its clock, its gaps and its end.
//! - [`state`] is the part that other threads see: the stream table, the drain, `/connections`.
//! - [`direct_path`] controls writes that bypass the task: the dispatcher of a feed writes to an
//!   idle client directly.
//! - [`throttle`] limits the rate of one event stream, [`stall`] detects a socket that accepts no
//!   bytes, [`group`] has the timer of all event streams on one HTTP/2 connection.
//! - [`handover`] finds the position of a client that reconnects without one after a drain.
//! - [`subscriptions`] has the subjects that the client of a WebSocket adds and removes.
//! - [`expiry`] has the times at which credentials are renewed and an event stream ends.
//! - [`ages`] records how old event streams are at their end, and which side ended them.
//! - [`compact_time`] stores times in four bytes.
//!
//! An event stream and everything that polls it runs on one thread, the shard that accepted the
//! connection. Only [`state::StreamState`] is used from other threads.
//!
//! States, as `/connections` and the log show them:
//!
//! ```text
//! connecting -----> active ------> closed
//!      (no id)         ^     \
//!                      |      '--> reconnecting (a drain recorded its position)
//! reconnecting --------'
//!      (resumes from an id, until it has caught up)
//! ```

pub(in crate::http) mod ages;
pub(in crate::http) mod client_messages;
pub(in crate::http) mod compact_time;
mod cursors;
pub(in crate::http) mod direct_path;
pub(in crate::http) mod event_stream;
pub(in crate::http) mod expiry;
pub(in crate::http) mod group;
pub(in crate::http) mod handover;
mod probes;
pub(in crate::http) mod stall;
pub(in crate::http) mod state;
pub(in crate::http) mod subscriptions;
pub(in crate::http) mod throttle;
pub(in crate::http) mod write_batch;
