//! Where messages of one source become events: counted, matched, and handed on in batches.

use std::time::Instant;

use prometheus::IntCounter;

use super::message::{MessageFields, to_event};
use crate::feed::{GapReason, Received, StreamWriter};
use crate::sse::{Event, Position};
use crate::subject::FilterSet;
use crate::telemetry::Metrics;

/// The most messages that are taken before they are handed on: one wake for all of them.
pub(crate) const BATCH_MAX: usize = 256;

/// The counters of one source, resolved once.
#[derive(Clone, Debug)]
pub(crate) struct EventDecoder {
    received: IntCounter,
    name: IntCounter,
    tier: IntCounter,
    oversize: IntCounter,
    status: IntCounter,
    repeated: IntCounter,
    foreign: IntCounter,
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
            tier: rejected("priority"),
            oversize: rejected("oversize"),
            status: rejected("status"),
            repeated: rejected("repeated"),
            foreign: rejected("foreign"),
        }
    }

    /// Counts messages that were received.
    pub(crate) fn received(&self, count: usize) {
        self.received.inc_by(count as u64);
    }

    /// Counts a message that says something about the subscription and is no event.
    pub(crate) fn status(&self) {
        self.status.inc();
    }

    /// Counts a message on a stream's destination that the stream did not send.
    pub(crate) fn foreign(&self) {
        self.foreign.inc();
    }

    /// Makes an event of a message that one of the filters selects.
    pub(crate) fn take(
        &self,
        parts: MessageFields<'_>,
        position: Position,
        received: Instant,
        filters: &FilterSet,
        batch: &mut Batch,
    ) {
        // Matched again here: NATS was asked for a wider set, and NATS 2.9 ignores what it does not know.
        if !filters.matches(parts.subject) {
            return;
        }
        match self.convert(parts, position, received) {
            Received::Event(event) => batch.push(event),
            Received::TooLarge(_) => batch.lost(position.seq),
        }
    }

    /// Makes an event of a message of core subjects.
    pub(crate) fn convert(
        &self,
        parts: MessageFields<'_>,
        position: Position,
        received: Instant,
    ) -> Received {
        let converted = to_event(parts, position, received);
        if converted.name_refused {
            self.name.inc();
        }
        if converted.tier_refused {
            self.tier.inc();
        }
        converted.event.map_or_else(
            || {
                self.oversize.inc();
                tracing::warn!(
                    subject = parts.subject,
                    sequence = position.seq,
                    bytes = parts.payload.len().max(parts.dropped_bytes),
                    "message too large for an event"
                );
                Received::TooLarge(parts.subject.into())
            },
            Received::Event,
        )
    }

    /// Counts messages that a window had already.
    pub(crate) fn repeated(&self, count: usize) {
        self.repeated.inc_by(count as u64);
    }
}

/// Events in their order, and where between them one is missing.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<BatchItem>);

/// What a batch is made of.
#[derive(Debug)]
pub(crate) enum BatchItem {
    /// Events side by side.
    Events(Vec<Event>),
    /// The message at this position cannot be given to anybody.
    Lost(u64),
}

impl Batch {
    pub(crate) fn push(&mut self, event: Event) {
        match self.0.last_mut() {
            Some(BatchItem::Events(events)) => events.push(event),
            _ => self.0.push(BatchItem::Events(vec![event])),
        }
    }

    fn lost(&mut self, sequence: u64) {
        self.0.push(BatchItem::Lost(sequence));
    }

    /// What is in it, in order.
    pub(crate) fn into_steps(self) -> Vec<BatchItem> {
        self.0
    }

    /// Writes everything to a log.
    pub(crate) fn write_to_log(self, log: &mut StreamWriter) {
        for step in self.0 {
            match step {
                BatchItem::Events(events) => log.append(events),
                BatchItem::Lost(sequence) => {
                    // The gap stands directly before what is missing, on every pod the same.
                    log.advance(sequence.saturating_sub(1));
                    log.gap(GapReason::Upstream, Some(1));
                    log.advance(sequence);
                }
            }
        }
    }
}
