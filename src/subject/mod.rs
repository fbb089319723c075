//! NATS subjects, filters with wildcards and the templates that make them, pure.

pub mod cover;
pub mod filter;
pub mod set;
pub mod template;

pub use cover::Covers;
pub use filter::{Filter, InvalidFilter, is_reserved};
pub use set::FilterSet;
pub use template::{SubjectTemplate, TextTemplate, Variable, Variables};
