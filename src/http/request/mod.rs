//! Requests: from the head of a request to an event stream or a rejection.

pub(in crate::http) mod body;
pub(in crate::http) mod client_address;
pub(in crate::http) mod cors;
pub(in crate::http) mod rejection;
pub(in crate::http) mod request;
pub(in crate::http) mod respond;
pub(in crate::http) mod route;
