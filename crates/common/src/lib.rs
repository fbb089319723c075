//! Code that the sidecar and the injector share: bounded listeners, TLS with certificate reload,
//! the log filter.
//!
//! Both are small servers that must stay reachable while peers misbehave, so they use the same
//! parts:
//!
//! - [`listener`] binds a TCP socket and accepts connections; it survives a shortage of file
//!   descriptors.
//! - [`slots`] bounds the connections of a port and evicts idle ones, so that idle peers cannot
//!   exhaust it.
//! - [`socket`] sets the options of client sockets, and resets one.
//! - [`tls`] loads a certificate and its key, and follows the files.
//! - [`request_head`] rejects request heads on which HTTP servers disagree.
//! - [`log_filter`] parses the filter of the log and rejects words that would silence it.
//! - [`drain`] has the default durations of the sidecar's drain, which decide a pod's termination
//!   grace period.
//!
//! Nothing here knows NATS, event streams or Kubernetes.

pub mod drain;
pub mod listener;
pub mod log_filter;
pub mod request_head;
pub mod slots;
pub mod socket;
pub mod tls;
