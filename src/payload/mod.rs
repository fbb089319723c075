//! Payloads of events, without I/O: versions of their form, the conversions between them, and their
//! JSON Schemas.
//!
//! A route declares [`Versions`]. Each version that clients can ask for has a [`Converter`], which a
//! feed of that version applies to every event once. [`schema`] compares two versions of a schema.

mod converter;
pub mod schema;
mod versions;

pub use converter::{ConversionCounters, Converter};
pub use versions::{Conversion, Deprecation, Versions};
