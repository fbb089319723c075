//! JSON Schemas of payloads: the documents, whether payloads are valid, and whether a change of a
//! schema is backward compatible.
//!
//! | file | job |
//! | --- | --- |
//! | `documents`, `folder` | valid documents with their references; the files of a folder |
//! | `schemas`, `live` | which document describes a payload; `count` and `reject`; the documents in force |
//! | `compiled` | validators with a bounded cost |
//! | `linked` | documents as parts of another one |
//! | `sample` | the thread that validates for `count` |
//! | `compatibility`, `groups`, `place` | the comparison of two versions |
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
mod compiled;
mod documents;
mod folder;
mod groups;
mod linked;
mod live;
mod place;
mod sample;
mod schemas;
#[cfg(test)]
mod tests;

pub use compatibility::{Incompatibility, incompatibilities};
pub use documents::{InvalidSchema, SchemaDocuments};
pub use folder::{FolderLimits, read_file, read_folder};
pub use linked::linked;
pub use schemas::{
    FoundDocuments, RouteSchemas, SchemaOrigin, SchemaRule, Schemas, SchemasConfig, Validation,
    limits,
};
