//! JSON Schemas of payloads: the documents, and whether a change of them is backward compatible.
//!
//! [`SchemaDocuments`] are valid schemas that may refer to each other. A change from old ones to
//! new ones is backward compatible if each document that is valid under the new schema is valid
//! under the old one: consumers that know only the old schema then read all of them.
//! [`incompatibilities`] returns each place of an old schema that a new one no longer satisfies.
//!
//! The set operations come from `jsonschema::canonical`. They decide whether one schema covers
//! another, or return that they do not know. The [comparison](incompatibilities) splits schemas
//! into their keywords to find the place, and to prove more than one question does.

mod compatibility;
mod documents;
mod groups;
mod place;
#[cfg(test)]
mod tests;

pub use compatibility::{Incompatibility, incompatibilities};
pub use documents::{InvalidSchema, SchemaDocuments};
