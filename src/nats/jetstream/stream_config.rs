//! Settings of one followed JetStream stream.

use super::stream_subjects::StreamSubjects;
use crate::feed::Limits;
use crate::subject::{BucketName, FilterSet};

/// Settings of one followed stream.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Name of the stream.
    pub name: String,
    /// KV bucket that the stream belongs to, if its keys are the subjects of the events.
    pub bucket: Option<BucketName>,
    /// Union of the filters of all routes.
    pub filters: FilterSet,
    /// Name that replaces the stream's creation time in event ids.
    pub identity: Option<String>,
    /// Amount of recent messages that are read at the start.
    pub window: Limits,
}

impl StreamConfig {
    /// Settings of a stream with the default window.
    #[must_use]
    pub fn new(name: &str, filters: FilterSet) -> Self {
        Self {
            name: name.to_owned(),
            bucket: None,
            filters,
            identity: None,
            window: Limits::default(),
        }
    }

    /// Subjects of the stream.
    pub(in crate::nats) fn subjects(&self) -> StreamSubjects {
        StreamSubjects::of(self.bucket.as_ref())
    }
}

/// Name of a stream's health check.
pub(in crate::nats) fn check_name(stream: &str) -> String {
    format!("stream:{stream}")
}
