//! Requests: from the head of a request to an event stream or a rejection.
//!
//! ```text
//! respond         the order of all checks
//!   call          gRPC: the message of a call becomes a request for the path that it names
//!   tickets       a ticket for valid credentials, at the path of tickets
//!   authenticate  principal of the request, before any variable is filled
//!   revoked       principal and client against the revocations
//!   resolve       filters per source and client, from the route (`http::route`)
//!   request       variables, Last-Event-ID, browser detection
//!   open_stream   the event stream, once its subjects and client are known
//!   negotiate     framing, by Accept
//!   version       version of the payloads, by query or Accept
//!   client_address  through trusted proxies
//!   target        scheme, host, path and query, through trusted proxies
//!   cors          headers for other origins
//!   probe         what `sidestream doctor` asks for
//!   probe_answer  a report for it, or timed lines
//!   probe_body    those lines
//!   rejection     an error instead of an event stream
//!   rejection_code  every code
//!   rejection_row   status, retry rule, message and hint of one code
//!   rejection_table  the row of every code
//!   challenge     `WWW-Authenticate` of a rejection
//!   admission     what the pod lacks: file descriptors, load, a drain
//!   answer        responses of event streams, rejections and OPTIONS
//!   body          hyper's body for a response
//! ```

pub(in crate::http) mod admission;
pub(in crate::http) mod answer;
pub(in crate::http) mod authenticate;
pub(in crate::http) mod begin;
pub(in crate::http) mod body;
pub(in crate::http) mod call;
pub(in crate::http) mod challenge;
pub(in crate::http) mod client_address;
pub(in crate::http) mod cors;
pub(in crate::http) mod negotiate;
pub(in crate::http) mod open_stream;
mod probe;
mod probe_answer;
pub(in crate::http) mod probe_body;
pub(in crate::http) mod rejection;
pub(in crate::http) mod rejection_code;
pub(in crate::http) mod rejection_row;
mod rejection_table;
pub(in crate::http) mod request;
pub(in crate::http) mod resolve;
pub(in crate::http) mod respond;
pub(in crate::http) mod revoked;
pub(in crate::http) mod target;
mod tickets;
pub(in crate::http) mod upgrade;
pub(in crate::http) mod version;
