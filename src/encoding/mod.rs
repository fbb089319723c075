//! Encodings of an event stream, without I/O: one file per framing.
//!
//! [`sse`] encodes `text/event-stream` and, for `sidestream tail` and tests, decodes it.

pub mod sse;
