//! Source: one configured origin of events, of one of three kinds.
//!
//! Routes hold sources and open readers on them. The reverse direction, a cursor that uses the
//! source of its feed, is the trait `Origin`.

use std::sync::Arc;

use crate::subject::FilterSet;

use super::buffer::StreamBuffer;
use super::core_source::CoreSource;
use super::opening::{OpenError, Opened};
use super::options::FeedOptions;
use super::republish_source::RepublishSource;
use super::resume::Start;

/// One configured origin of events.
#[derive(Clone, Debug)]
pub enum Source {
    /// JetStream stream, read by one consumer for the whole pod.
    JetStream(Arc<StreamBuffer>),
    /// JetStream stream with `republish`, subscribed to on demand.
    Republish(Arc<RepublishSource>),
    /// Core subjects, subscribed to on demand.
    Core(Arc<CoreSource>),
}

impl Source {
    /// Address of the source in memory, unique among the live sources.
    #[must_use]
    pub fn address(&self) -> usize {
        match self {
            Self::JetStream(buffer) => Arc::as_ptr(buffer).addr(),
            Self::Republish(stream) => Arc::as_ptr(stream).addr(),
            Self::Core(core) => Arc::as_ptr(core).addr(),
        }
    }

    /// Opens a reader of all events that match.
    ///
    /// # Errors
    /// [`OpenError`] if NATS is not available or a limit is reached.
    pub async fn open(
        &self,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        match self {
            Self::JetStream(buffer) => buffer.open(filters, options, start).await,
            Self::Republish(stream) => stream.open(filters, options, start).await,
            Self::Core(core) => core.open(filters, options, start).await,
        }
    }
}
