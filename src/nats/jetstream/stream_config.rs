//! Settings of one followed JetStream stream.

use crate::feed::Limits;
use crate::subject::FilterSet;

/// Settings of one followed stream.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Name of the stream.
    pub name: String,
    /// Union of the filters of all routes.
    pub filters: FilterSet,
    /// Name that replaces the stream's creation time in event ids.
    pub identity: Option<String>,
    /// Amount of recent messages that are read at the start.
    pub window: Limits,
}

/// Name of a stream's health check.
pub(in crate::nats) fn check_name(stream: &str) -> String {
    format!("stream:{stream}")
}
