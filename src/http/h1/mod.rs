//! HTTP/1 transport: an event stream on a socket that was reclaimed from hyper.
//!
//! hyper parses the request. When its response is an event stream, the connection takes the socket
//! back and spawns [`stream::H1Stream`], the task that stays for hours: it writes what the event
//! stream returns as one [`chunk`] per write ([`chunk_writer`]). While it is idle, the dispatcher of
//! the feed writes to the socket directly ([`sink`], [`tls_sink`]).
//!
//! hyper would keep 16 KiB of buffers for each connection. Without them an idle client costs about
//! a kilobyte, and a delivery little more than its system call.

pub(in crate::http) mod chunk;
pub(in crate::http) mod chunk_writer;
pub(in crate::http) mod reclaim;
pub(in crate::http) mod sink;
pub(in crate::http) mod stream;
pub(in crate::http) mod tls_sink;
