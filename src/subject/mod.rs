//! NATS subjects without I/O: filters with wildcards, sets of filters, and templates for both.
//!
//! [`filter`] is one subject with wildcards, [`set`] the canonical set that identifies a feed,
//! [`cover`] an index over many filters, and [`template`] builds subjects from a request, also from
//! its claims ([`claim_path`]); [`allow`] bounds them. [`bucket_name`] is the name of a KV bucket.

pub mod allow;
pub mod bucket_name;
pub mod claim_path;
pub mod cover;
pub mod filter;
pub mod set;
pub mod template;
pub mod variable;

pub use allow::{Allow, Bounds};
pub use bucket_name::BucketName;
pub use claim_path::ClaimPath;
pub use cover::Covers;
pub use filter::{Filter, InvalidFilter, is_reserved};
pub use set::FilterSet;
pub use template::{SubjectTemplate, TextTemplate};
pub use variable::{Unfilled, Variable, Variables};
