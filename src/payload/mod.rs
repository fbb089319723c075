//! Payloads of events, without I/O: versions of their form, and the conversions between them.
//!
//! A route declares [`Versions`]. Each version that clients can ask for has a [`Converter`], which a
//! feed of that version applies to every event once.

mod converter;
mod versions;

pub use converter::{ConversionCounters, Converter};
pub use versions::{Conversion, Deprecation, Versions};
