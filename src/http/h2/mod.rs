//! HTTP/2 transport: connections, their event streams, keepalive and idle timeout.
//!
//! ```text
//! connection   one task: h2, PING, the group's timer, GOAWAY
//!     |  spawns for each stream
//! request      one task: the request's response, then
//! stream       the event stream, for hours; or
//! passed       the response of the application
//!     |  gives bytes to h2, at most one batch in flight
//! sink         the stream, shared with the dispatcher of its feed
//! ```
//!
//! All tasks of a connection run on one thread. h2 reports neither how much of a window is left nor
//! what the client returns; [`frames`] reads the client's frames for that, and the connection's
//! [`StreamGroup`](super::stream::group::StreamGroup) counts. [`read_budget`] limits how much a
//! connection reads at a time ([`io`]), and [`write_coalescing`] makes h2 write the frames of many streams
//! at once.
//!
//! A connection ends for three reasons (`connection::GoAwayReason`): the pod drains, an event
//! stream reached `max_age`, or the connection is [`idle`]. [`keepalive`] finds dead peers.

pub(in crate::http) mod connection;
mod frames;
pub(in crate::http) mod idle;
mod io;
mod keepalive;
mod passed;
pub(in crate::http) mod read_budget;
mod request;
pub(in crate::http) mod sink;
mod stream;
mod write_coalescing;
