//! History of one JetStream stream: messages that are no longer in memory.
//!
//! Implements the feed core's `Archive` trait. The position where a reader without an id begins is
//! found by [`locate`]. A replay reads pages with its own ephemeral consumer
//! on the `replay` connection ([`reader`]), so that it does not delay live messages. If reading
//! fails permanently, [`read_health`] degrades a health check and probes until it works again;
//! meanwhile clients that need a replay are rejected at once.

mod latest;
mod locate;
mod read_health;
mod reader;

use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::event::{Fingerprint, Position, SourceTag};
use crate::feed::Begin;
use crate::feed::archive::{Archive, BoxFuture, Latest, Pages, State};
use crate::nats::client::Nats;
use crate::nats::decode::decoder::EventDecoder;
use crate::nats::jetstream::stream_config::StreamConfig;
use crate::subject::FilterSet;
use read_health::{ReadHealth, StreamContext};
use reader::HistoryReader;

/// History of one JetStream stream.
#[derive(Debug)]
pub(super) struct JetStreamArchive(Arc<StreamContext>);

impl JetStreamArchive {
    pub(super) fn new(nats: Nats, config: &StreamConfig) -> Self {
        let decoder = EventDecoder::new(&nats.0.metrics, &config.name);
        let (stream, identity) = (config.name.clone(), config.identity.clone());
        let (last_tag, read_health) = (Mutex::default(), ReadHealth::default());
        Self(Arc::new(StreamContext {
            nats,
            stream,
            subjects: config.subjects(),
            identity,
            all: config.filters.clone(),
            decoder,
            last_tag,
            read_health,
            expiry_warning: Once::new(),
        }))
    }

    /// Reads what these filters select of the stream with this tag.
    pub(super) fn read_as(
        &self,
        filters: &FilterSet,
        after: u64,
        tag: SourceTag,
    ) -> impl Pages + use<> {
        HistoryReader::new(Arc::clone(&self.0), filters.clone(), after, Some(tag))
    }
}

impl Archive for JetStreamArchive {
    fn state(&self, seq: u64) -> BoxFuture<'_, State> {
        Box::pin(async move {
            let context = &self.0;
            let state = context
                .nats
                .stream_state(&context.stream, seq)
                .await
                .and_then(|state| context.subjects.shareable(state));
            let state = state.map_err(|error| context.unavailable(&error))?;
            let tag = state.tag(&context.stream, context.identity.as_deref());
            *context
                .last_tag
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(tag);
            Ok(State {
                tag,
                first_seq: state.first_seq,
                last_seq: state.last_seq,
            })
        })
    }

    fn fingerprint(&self, seq: u64) -> BoxFuture<'_, Option<Fingerprint>> {
        Box::pin(async move {
            if seq == 0 {
                return Ok(None); // There is no sequence 0, and the server rejects it.
            }
            let context = &self.0;
            let check = context.nats.message_fingerprint(&context.stream, seq).await;
            check.map_err(|error| context.unavailable(&error))
        })
    }

    fn locate<'a>(&'a self, begin: Begin, filters: &'a FilterSet) -> BoxFuture<'a, Position> {
        Box::pin(async move {
            let context = &self.0;
            let located = context.locate(begin, filters).await;
            let located = located.map_err(|error| context.unavailable(&error))?;
            *context
                .last_tag
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(located.tag);
            Ok(located)
        })
    }

    fn end<'a>(&'a self, filters: &'a FilterSet) -> BoxFuture<'a, Option<u64>> {
        Box::pin(async move {
            let context = &self.0;
            let filters = context.subjects.requested(filters.disjoint());
            let newest = context
                .nats
                .0
                .api
                .newest_stored(&context.stream, &filters)
                .await;
            let newest = newest.map_err(|error| context.unavailable(&error))?;
            Ok(newest
                .filter(|newest| newest.is_end)
                .map(|newest| newest.sequence))
        })
    }

    fn latest<'a>(&'a self, filters: &'a FilterSet, bytes_max: usize) -> BoxFuture<'a, Latest> {
        Box::pin(async move {
            let context = &self.0;
            let latest = context.latest(filters, bytes_max).await;
            let latest = latest.map_err(|error| context.unavailable(&error))?;
            *context
                .last_tag
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(latest.position.tag);
            Ok(latest)
        })
    }

    fn is_rejecting(&self) -> bool {
        self.0.read_health.is_rejecting()
    }

    fn read(&self, filters: &FilterSet, after: u64) -> Box<dyn Pages> {
        let last_tag = *self
            .0
            .last_tag
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Box::new(HistoryReader::new(
            Arc::clone(&self.0),
            filters.clone(),
            after,
            last_tag,
        ))
    }
}
