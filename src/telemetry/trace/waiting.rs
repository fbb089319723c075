//! Spans that wait for the exporter, within bounds.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use super::span::{EndedSpan, EventSpan};
use crate::telemetry::Metrics;

/// Spans of the process that are not exported yet.
#[derive(Debug)]
pub(super) struct Waiting {
    spans: Mutex<Spans>,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
struct Spans {
    /// Sampled events by age. Their number is bounded by the table of samples.
    open: VecDeque<EventSpan>,
    ended: Vec<EndedSpan>,
}

/// Counters of `sidestream_trace_spans_total`.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) exported: IntCounter,
    pub(super) failed: IntCounter,
    pub(super) dropped: IntCounter,
}

/// 4,096 ended spans of event streams wait for the exporter at most.
pub(super) const ENDED_MAX: usize = 4096;

/// 1 s: the span of an event ends this long after its receipt, at its last delivery until then.
const OPEN_FOR: Duration = Duration::from_secs(1);

impl Waiting {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counter = |result| metrics.trace_spans_total.with_label_values(&[result]);
        Self {
            spans: Mutex::default(),
            counters: Counters {
                exported: counter("exported"),
                failed: counter("failed"),
                dropped: counter("dropped"),
            },
        }
    }

    /// Keeps the span of a sampled event until it is old enough.
    pub(super) fn open(&self, span: EventSpan) {
        self.lock().open.push_back(span);
    }

    /// Keeps a span that has ended, or drops and counts it.
    pub(super) fn end(&self, span: impl FnOnce() -> EndedSpan) {
        let mut spans = self.lock();
        if spans.ended.len() < ENDED_MAX {
            spans.ended.push(span());
        } else {
            self.counters.dropped.inc();
        }
    }

    /// Takes the spans to export, at most `most`: those that have ended, and sampled events that are
    /// old enough. `is_last`: all sampled events.
    pub(super) fn take(&self, most: usize, is_last: bool) -> Vec<EndedSpan> {
        let mut spans = self.lock();
        let ended = spans.ended.len().min(most);
        let mut taken: Vec<_> = spans.ended.drain(..ended).collect();
        let now = Instant::now();
        while taken.len() < most
            && let Some(span) = spans.open.pop_front_if(|span| {
                is_last || now.saturating_duration_since(span.received) >= OPEN_FOR
            })
        {
            taken.push(span.end());
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
