//! Payloads of events: versions of their form, the conversions between them, CloudEvents, and JSON
//! Schemas.
//!
//! A route declares [`Versions`]. Each version that clients can ask for has a [`Converter`], which a
//! feed of that version applies to every event once. [`schema`] validates payloads, and compares two
//! versions of a schema.

mod cloud_events;
mod converter;
pub mod schema;
mod versions;

pub use cloud_events::{CloudEventCounters, PayloadFormat};
pub use converter::{ConversionCounters, Converted, Converter, VersionConverter};
pub use versions::{Conversion, Deprecation, Versions};
