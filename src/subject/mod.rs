//! NATS subjects, filters with wildcards and the templates that make them, pure.

pub mod filter;
pub mod set;
pub mod template;

pub use filter::{Filter, InvalidFilter, is_reserved};
pub use set::FilterSet;
pub use template::{SubjectTemplate, TextTemplate, Variable, Variables};
