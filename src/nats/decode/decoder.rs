//! Decoder of one source: counts, matches and converts messages, and collects events in batches.
//!
//! A message is matched against the filters again, because NATS may be asked for a wider set and
//! NATS 2.9 ignores several filters. A message that is too large becomes a lost item of the batch;
//! its gap is written directly before its sequence, so that every pod reports the same.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntCounter;

use super::message::{MessageFields, to_event};
use crate::event::{Event, Position};
use crate::feed::{GapReason, Received, StreamWriter};
use crate::subject::FilterSet;
use crate::telemetry::trace::SampledMessage;
use crate::telemetry::{Metrics, Tracer};

/// Maximum number of messages per batch: one notification for all of them.
pub(crate) const BATCH_MAX: usize = 256;

/// Counters of one source, resolved once.
#[derive(Clone, Debug)]
pub(crate) struct EventDecoder {
    received: IntCounter,
    name: IntCounter,
    tier: IntCounter,
    version: IntCounter,
    oversize: IntCounter,
    status: IntCounter,
    duplicate: IntCounter,
    not_from_stream: IntCounter,
    /// Traces of live events; `None` for those of the history.
    traces: Option<Traces>,
}

/// Tracer, with the name of the source.
#[derive(Clone, Debug)]
struct Traces {
    tracer: Tracer,
    source: Arc<str>,
}

impl EventDecoder {
    pub(crate) fn new(metrics: &Metrics, source: &str) -> Self {
        let rejected = |reason| {
            metrics
                .events_rejected_total
                .with_label_values(&[source, reason])
        };
        Self {
            received: metrics.events_received_total.with_label_values(&[source]),
            name: rejected("event_name"),
            tier: rejected("tier"),
            version: rejected("version"),
            oversize: rejected("oversize"),
            status: rejected("status"),
            duplicate: rejected("duplicate"),
            not_from_stream: rejected("not_from_stream"),
            traces: None,
        }
    }

    /// Returns a decoder of live events, which traces may record.
    pub(crate) fn live(metrics: &Metrics, source: &str, tracer: &Tracer) -> Self {
        Self {
            traces: Some(Traces {
                tracer: tracer.clone(),
                source: source.into(),
            }),
            ..Self::new(metrics, source)
        }
    }

    /// Counts received messages.
    pub(crate) fn count_received(&self, count: usize) {
        self.received.inc_by(count as u64);
    }

    /// Counts a status message of a subscription, which is not an event.
    pub(crate) fn count_status(&self) {
        self.status.inc();
    }

    /// Counts a message on the republish destination that the stream did not send.
    pub(crate) fn count_not_from_stream(&self) {
        self.not_from_stream.inc();
    }

    /// Decodes a message that one of the filters selects.
    pub(crate) fn decode_into(
        &self,
        fields: MessageFields<'_>,
        position: Position,
        received: Instant,
        filters: &FilterSet,
        batch: &mut Batch,
    ) {
        // Matched again: NATS may be asked for a wider set, and NATS 2.9 ignores what it does not
        // know.
        if !filters.matches(fields.subject) {
            return;
        }
        match self.decode(fields, position, received) {
            Received::Event(event) => batch.push(event),
            Received::TooLarge(_) => batch.push_lost(position.seq),
        }
    }

    /// Decodes a message without matching.
    pub(crate) fn decode(
        &self,
        fields: MessageFields<'_>,
        position: Position,
        received: Instant,
    ) -> Received {
        let mut decoded = to_event(fields, position, received);
        if let (Some(traces), Some(event)) = (&self.traces, &mut decoded.event)
            && traces.tracer.is_on()
            && !fields.is_past
        {
            event.sample = traces.sample(&fields, position, received);
        }
        if decoded.is_name_invalid {
            self.name.inc();
        }
        if decoded.is_tier_invalid {
            self.tier.inc();
        }
        if decoded.is_version_invalid {
            self.version.inc();
        }
        decoded.event.map_or_else(
            || {
                self.oversize.inc();
                tracing::warn!(
                    subject = fields.subject,
                    sequence = position.seq,
                    bytes = fields.payload.len().max(fields.dropped_bytes),
                    "message too large for an event; reported as a gap"
                );
                Received::TooLarge(fields.subject.into())
            },
            Received::Event,
        )
    }

    /// Counts messages that a window held already.
    pub(crate) fn count_duplicates(&self, count: usize) {
        self.duplicate.inc_by(count as u64);
    }
}

impl Traces {
    /// Decides whether traces record an event.
    fn sample(
        &self,
        fields: &MessageFields<'_>,
        position: Position,
        received: Instant,
    ) -> Option<NonZeroU32> {
        self.tracer.sample_event(SampledMessage {
            source: &self.source,
            context: fields.trace_context(),
            // Core events are numbered later, and every pod numbers its own.
            sequence: Some(position.seq).filter(|sequence| *sequence > 0),
            published: fields.published,
            received,
            bytes: fields.payload.len(),
        })
    }
}

/// Events in order, and the positions where one is missing.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<BatchItem>);

/// Item of a batch.
#[derive(Debug)]
pub(crate) enum BatchItem {
    /// Consecutive events.
    Events(Vec<Event>),
    /// The message at this sequence cannot become an event.
    Lost(u64),
}

impl Batch {
    pub(crate) fn push(&mut self, event: Event) {
        match self.0.last_mut() {
            Some(BatchItem::Events(events)) => events.push(event),
            _ => self.0.push(BatchItem::Events(vec![event])),
        }
    }

    fn push_lost(&mut self, sequence: u64) {
        self.0.push(BatchItem::Lost(sequence));
    }

    /// Returns the items in order.
    pub(crate) fn into_items(self) -> Vec<BatchItem> {
        self.0
    }

    /// Writes everything to a stream buffer.
    pub(crate) fn write_to(self, buffer: &mut StreamWriter) {
        for item in self.0 {
            match item {
                BatchItem::Events(events) => buffer.append(events),
                BatchItem::Lost(sequence) => {
                    // The gap comes directly before the missing sequence, on every pod the same.
                    buffer.advance(sequence.saturating_sub(1));
                    buffer.gap(GapReason::Upstream, Some(1));
                    buffer.advance(sequence);
                }
            }
        }
    }
}
