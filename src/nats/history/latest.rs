//! State of a stream: the last message of each subject, up to its last sequence.
//!
//! The leader is asked for the last sequence S first. A consumer that is created afterwards delivers
//! the last message of each subject, and then every later one, in the order of the stream. Those
//! above S are left out: they follow as ordinary events after S. A message that a newer one replaces
//! while the consumer delivers is missing in the state, and the newer one follows.
//!
//! The consumer reads from any replica of the stream, which may not have everything up to S yet. Its
//! count of pending messages says nothing about that. The state is therefore complete when a message
//! above S has arrived, or the newest message that the leader has for the filters. A replica that
//! lags delivers that message when it has caught up; until then the state waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::DeliverPolicy;

use super::read_health::StreamContext;
use crate::event::{Event, Fingerprint, Position, SourceTag};
use crate::feed::archive::{Latest, state_bytes};
use crate::nats::decode::message::MessageFields;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer::{self, Consumer, Received, Spec};
use crate::nats::jetstream::stream_state::StreamState;
use crate::subject::FilterSet;

/// 60 s for the whole state: a million small messages take a few seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// State that is being read.
struct Reading<'r> {
    context: &'r StreamContext,
    filters: &'r FilterSet,
    tag: SourceTag,
    /// Last sequence of the state: S.
    through: u64,
    /// In the order of the stream; `None` in place of those that a later message has replaced.
    events: Vec<Option<Event>>,
    /// Index of the event of each subject.
    places: HashMap<Arc<str>, usize>,
    bytes: usize,
    bytes_max: usize,
    /// Everything up to this sequence has arrived, as far as the replica has it.
    passed: u64,
    /// The replica has delivered what it has.
    is_at_end: bool,
}

impl StreamContext {
    /// Reads the last message of each subject that some filters select.
    pub(super) async fn latest(
        self: &Arc<Self>,
        filters: &FilterSet,
        bytes_max: usize,
    ) -> Result<Latest, JetStreamError> {
        // Above every last sequence: a state that is newer than the call.
        let state = self.nats.stream_state(&self.stream, u64::MAX).await?;
        let state = self.subjects.shareable(state)?;
        let tag = state.tag(&self.stream, self.identity.as_deref());
        if state.expires_silently {
            self.expiry_warning.call_once(|| {
                tracing::warn!(
                    stream = self.stream,
                    "messages of this stream expire without a marker, so clients of `begin: latest` keep expired keys: set `subject_delete_marker_ttl` on the stream (NATS 2.11)"
                );
            });
        }
        let inner = &self.nats.0;
        let name = consumer::name(&inner.api, &inner.identity, &self.stream, "s");
        let read = self.read_state(filters, &state, bytes_max, name.clone());
        let read = tokio::time::timeout(TIMEOUT, read).await;
        inner.api.delete_later(&self.stream, &name).await;
        Ok(Latest {
            position: state.position_after(state.last_seq, tag),
            events: read.map_err(|_| JetStreamError::Timeout)??,
        })
    }

    /// Returns the state up to the last sequence of `state`; `None` if it is too large.
    async fn read_state(
        &self,
        filters: &FilterSet,
        state: &StreamState,
        bytes_max: usize,
        name: String,
    ) -> Result<Option<Vec<Event>>, JetStreamError> {
        let inner = &self.nats.0;
        let spec = Spec {
            stream: self.stream.clone(),
            name,
            filters: self.subjects.server_filters(&inner.api, filters),
            from: DeliverPolicy::LastPerSubject,
            batch: 256,
            bytes: 1 << 20,
            headers_only: false,
        };
        let connection = inner.connections.replay.clone();
        let mut consumer = Consumer::create(&inner.api, connection, spec).await?;
        inner.metrics.consumers_created_total.inc();
        let mut reading = Reading {
            context: self,
            filters,
            tag: state.tag(&self.stream, self.identity.as_deref()),
            through: state.last_seq,
            events: Vec::new(),
            places: HashMap::new(),
            bytes: 0,
            bytes_max,
            passed: 0,
            is_at_end: consumer.pending == 0,
        };
        let mut newest = None;
        loop {
            if reading.is_at_end && newest.is_none() {
                let filters = self.subjects.requested(filters.disjoint());
                let found = inner.api.newest_stored(&self.stream, &filters).await?;
                newest = Some(found.map_or(0, |newest| newest.sequence));
            }
            if reading.passed >= newest.unwrap_or(u64::MAX).min(reading.through) {
                return Ok(Some(reading.events.into_iter().flatten().collect()));
            }
            let mut received = consumer.receive().await;
            if !reading.add(&received) {
                return Ok(None);
            }
            if reading.passed < reading.through
                && let Some(lost) = received.lost.take()
            {
                return Err(JetStreamError::Failed(format!("consumer lost: {lost:?}")));
            }
        }
    }
}

impl Reading<'_> {
    /// Adds messages; false if the state is too large.
    fn add(&mut self, received: &Received) -> bool {
        for (info, message) in &received.messages {
            if info.sequence <= self.passed {
                continue;
            }
            self.passed = info.sequence;
            self.is_at_end |= info.pending == 0;
            if info.sequence > self.through {
                return true;
            }
            let position = Position {
                tag: self.tag,
                seq: info.sequence,
                fingerprint: Some(Fingerprint::of_publish_time(info.published)),
            };
            self.put(self.context.subjects.fields(message), position);
        }
        self.passed = self.passed.max(received.passed.unwrap_or(0));
        self.is_at_end |= received.passed.is_some();
        self.bytes <= self.bytes_max
    }

    /// Replaces the event of a subject. A removed key is not part of the state.
    fn put(&mut self, fields: MessageFields<'_>, position: Position) {
        // Matched again: NATS may be asked for a wider set.
        if !self.filters.matches(fields.subject) {
            return;
        }
        let before = self.places.remove(fields.subject);
        let before = before.and_then(|place| self.events[place].take());
        self.bytes -= before.as_ref().map_or(0, state_bytes);
        if fields.removed.is_some() {
            return;
        }
        let decoder = &self.context.decoder;
        // One that is too large for an event is counted.
        if let Some(event) = decoder.decode(fields, position, Instant::now()).event() {
            self.bytes += state_bytes(&event);
            self.places.insert(event.subject.clone(), self.events.len());
            self.events.push(Some(event));
        }
    }
}
