//! Messages to the user about one injection: an invalid annotation, or a consequence that may
//! surprise.
//!
//! A notice never stops an injection: the default value applies instead of an invalid one.
//! `sidestream inject` prints notices on standard error, where a problem makes it write nothing.
//! The webhook sends them as warnings to `kubectl`, logs problems, and writes all of them into the
//! annotation `sidestream.dev/warnings`.

use std::fmt;

/// Sentence about one workload. It is short, because the API server truncates a warning after 256
/// characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something is wrong, and another value, or none, replaces it.
    Problem(String),
    /// An annotation has an invalid value.
    Annotation {
        /// Name of the annotation, with its prefix.
        name: String,
        /// Beginning of its value, in quotes.
        shown: String,
        /// Rest of a sentence that begins with the value.
        why: &'static str,
    },
    /// Nothing is wrong, but the result may not be the expected one.
    Remark(String),
}

impl Notice {
    /// Returns whether something is wrong.
    #[must_use]
    pub fn is_problem(&self) -> bool {
        matches!(self, Self::Problem(_) | Self::Annotation { .. })
    }

    /// Sentence for the annotation of the pod, without the value, which the pod has anyway.
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
