//! What a person has to know about one injection: a wrong annotation, or a consequence.

use std::fmt;

/// One sentence about one workload. Short: the API server passes on 256 characters of a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something is wrong, and another value, or none, was taken in its place.
    Problem(String),
    /// An annotation has a value that cannot be used.
    Annotation {
        /// The name of the annotation, with its prefix.
        name: String,
        /// The beginning of its value, in quotes.
        shown: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing is wrong, but it may not be what was expected.
    Remark(String),
}

impl Notice {
    /// Whether something is wrong.
    #[must_use]
    pub fn is_problem(&self) -> bool {
        matches!(self, Self::Problem(_) | Self::Annotation { .. })
    }

    /// The sentence for the annotation of the pod: without the value, which the pod has beside it.
    pub(super) fn without_value(&self) -> String {
        match self {
            Self::Annotation { name, why, .. } => format!("annotation `{name}` {why}"),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(text) | Self::Remark(text) => f.write_str(text),
            Self::Annotation { name, shown, why } => {
                write!(f, "annotation `{name}`: {shown} {why}")
            }
        }
    }
}
