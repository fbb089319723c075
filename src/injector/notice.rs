//! What a person has to know about one injection: a wrong annotation, or a consequence.

use std::fmt;

/// One sentence about one workload. Short: the API server passes on 256 characters of a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something is wrong, and another value, or none, was taken in its place.
    Problem(String),
    /// Nothing is wrong, but it may not be what was expected.
    Remark(String),
}

impl Notice {
    /// Whether something is wrong.
    #[must_use]
    pub fn is_problem(&self) -> bool {
        matches!(self, Self::Problem(_))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(text) | Self::Remark(text) => f.write_str(text),
        }
    }
}
