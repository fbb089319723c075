//! Failures that end the demo, with their exit codes.

use std::io;

use crate::cli::exit::Exit;

/// Failure that ends the demo.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn unavailable(message: String) -> Self {
        Self {
            exit: Exit::Unavailable,
            message,
        }
    }

    pub(super) fn internal(message: String) -> Self {
        Self {
            exit: Exit::Internal,
            message,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::internal(error.to_string())
    }
}
