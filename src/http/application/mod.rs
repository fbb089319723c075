//! Application beside this sidecar: requests for paths without a route pass to it.
//!
//! ```text
//! request -> pass: checks, fields -> client: permit, pool, timeouts -> application
//!         <- fields <- response body, streamed | tunnel, after 101
//! ```
//!
//! Bodies stream in both directions: nothing is read from one side before the other side has taken
//! it. A slow application cannot harm event streams: requests in progress have a maximum of their
//! own, and wait for it a second at most.
//!
//! | file | job |
//! | --- | --- |
//! | `pass` | the order of a passed request, and the answers to its failures |
//! | `fields` | header fields that are removed, kept and added |
//! | `cache` | responses that the application marks cacheable (RFC 9111) |
//! | `client` | a pool of connections for each shard, permits, timeouts, one retry |
//! | `request_body` | body of the client, with its progress |
//! | `response_body` | body of the application, which holds the permit |
//! | `subscribe` | responses that turn their request into an event stream |
//! | `request_log` | line in the log for each request |
//! | `tunnel` | bytes of a WebSocket in both directions |
//! | `config` | `application:` of the configuration |

use std::time::Duration;

pub(super) mod cache;
pub(super) mod client;
pub mod config;
mod fields;
pub(super) mod pass;
pub(super) mod request_body;
mod request_log;
pub(super) mod response_body;
mod subscribe;
pub(super) mod tunnel;

pub use client::Application;
pub use config::{ApplicationConfig, ApplicationVersion, CacheConfig};

/// 60 s: time without progress until a client that does not read its response is cut. It holds a
/// connection of the application.
pub(super) const STALL_MAX: Duration = Duration::from_secs(60);
