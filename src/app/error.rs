//! Failures to start the process.

use std::fmt;

/// Failure to start the process.
#[derive(Debug)]
pub enum StartError {
    /// Something that the configuration names does not work, such as an address or a certificate.
    Configuration(String),
    /// The operating system returned an error: address in use, no thread.
    System(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(why) | Self::System(why) => f.write_str(why),
        }
    }
}
