//! Tracer: decides what is sampled, and keeps spans for the exporter within a bound.
//!
//! ```text
//! decoder  sample_event  -> open samples, closed by the exporter after a second
//! request  begin_stream  -> StreamSpan -> dropped with the event stream -> ended spans
//! ```
//!
//! The rule is the same for both. Without a context of its origin, a random id decides. With one, its
//! trace id decides, so that all pods sample the same events, and only if its origin has sampled it:
//! a link to a span that was never recorded leads to nothing. The comparison is that of
//! `TraceIdRatioBased` of the OpenTelemetry SDKs.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::config::Config;
use super::context::TraceContext;
use super::exporter::Exporter;
use super::samples::{self, SpanIds};
use super::span::EventSpan;
use super::stream_span::StreamSpan;
use super::waiting::Waiting;
use crate::telemetry::Metrics;

/// Handle of the tracer; clones share it.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// See `SampleRatio::threshold`; 0 while tracing is off.
    threshold: AtomicU64,
    waiting: Arc<Waiting>,
    exporter: Mutex<Option<Exporter>>,
}

/// Sampled message, before it becomes an event.
#[derive(Clone, Copy, Debug)]
pub struct SampledMessage<'m> {
    /// Name of its source.
    pub source: &'m str,
    /// Values of the headers `traceparent` and `tracestate`.
    pub context: (Option<&'m str>, Option<&'m str>),
    /// Sequence in its stream; `None` on core subjects.
    pub sequence: Option<u64>,
    /// Publish time in unix nanoseconds, if the stream reports it.
    pub published: Option<i128>,
    /// Time of receipt.
    pub received: Instant,
    /// Bytes of the payload.
    pub bytes: usize,
}

impl Tracer {
    /// Returns a tracer that samples nothing until [`Self::apply`].
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Shared {
            threshold: AtomicU64::new(0),
            waiting: Arc::new(Waiting::new(metrics)),
            exporter: Mutex::default(),
        }))
    }

    /// Applies a configuration: the ratio at once; spans that wait go to the collector that is in
    /// force when they are exported.
    pub fn apply(&self, config: &Config) {
        let threshold = match config.otlp {
            Some(_) => config.sample.threshold(),
            None => 0,
        };
        let mut exporter = self
            .0
            .exporter
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_running = exporter.as_ref().map(Exporter::collector) == config.otlp.as_ref();
        if !is_running {
            // The thread of the former collector exports what it has taken, and ends.
            *exporter = match &config.otlp {
                Some(collector) => Exporter::start(collector.clone(), self.0.waiting.clone()),
                None => None,
            };
        }
        drop(exporter);
        self.0.threshold.store(threshold, Ordering::Relaxed);
    }

    /// Returns true if events and event streams may be sampled.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.threshold.load(Ordering::Relaxed) != 0
    }

    /// Decides on an event. Returns the number of its sample, if it is sampled.
    #[must_use]
    pub fn sample_event(&self, message: SampledMessage<'_>) -> Option<NonZeroU32> {
        let origin = context(message.context);
        self.decide(origin.as_ref())?;
        let ids = SpanIds {
            trace_id: random_trace_id(),
            span_id: random_span_id(),
        };
        let Some(number) = samples::open(ids) else {
            self.0.waiting.counters.dropped.inc();
            return None;
        };
        let span = EventSpan {
            number,
            ids,
            origin,
            source: message.source.into(),
            sequence: message.sequence,
            published: message.published,
            received: message.received,
            // The span begins at the receipt, a moment before now.
            received_at: SystemTime::now()
                .checked_sub(message.received.elapsed())
                .unwrap_or(SystemTime::UNIX_EPOCH),
            bytes: message.bytes,
        };
        self.0.waiting.open(span);
        Some(number)
    }

    /// Decides on a request for an event stream, by the values of its `traceparent` and `tracestate`.
    #[must_use]
    pub fn begin_stream(
        &self,
        parent: Option<&str>,
        state: Option<&str>,
    ) -> Option<Box<StreamSpan>> {
        let parent = context((parent, state));
        let trace_id = self.decide(parent.as_ref())?;
        let ids = SpanIds {
            trace_id,
            span_id: random_span_id(),
        };
        Some(Box::new(StreamSpan::new(
            self.0.waiting.clone(),
            ids,
            parent,
        )))
    }

    /// Returns the trace id if it is sampled: that of the origin, or a new one.
    fn decide(&self, origin: Option<&TraceContext>) -> Option<u128> {
        let threshold = self.0.threshold.load(Ordering::Relaxed);
        let trace_id = match origin {
            Some(origin) if !origin.is_sampled => return None,
            Some(origin) => origin.trace_id,
            None => random_trace_id(),
        };
        // The low half is the random one.
        ((trace_id as u64) >> 1 < threshold).then_some(trace_id)
    }

    /// Stops sampling, and exports what waits. Returns when that is done, after `timeout` at the
    /// latest.
    pub async fn shut_down(&self, timeout: Duration) {
        self.0.threshold.store(0, Ordering::Relaxed);
        let exporter = self
            .0
            .exporter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(exporter) = exporter {
            exporter.finish(timeout).await;
        }
    }
}

fn context((parent, state): (Option<&str>, Option<&str>)) -> Option<TraceContext> {
    TraceContext::parse(parent?, state)
}

/// Returns a trace id, which is never 0.
fn random_trace_id() -> u128 {
    fastrand::u128(1..)
}

/// Returns a span id, which is never 0.
fn random_span_id() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::config::SampleRatio;
    use crate::telemetry::trace::waiting::ENDED_MAX;

    /// A tracer with a ratio and no exporter.
    fn tracer(ratio: f64) -> (Tracer, Metrics) {
        let metrics = Metrics::new().unwrap();
        let tracer = Tracer::new(&metrics);
        let threshold = SampleRatio::new(ratio).unwrap().threshold();
        tracer.0.threshold.store(threshold, Ordering::Relaxed);
        (tracer, metrics)
    }

    fn context_of(trace_id: u128, is_sampled: bool) -> TraceContext {
        TraceContext {
            trace_id,
            span_id: 1,
            is_sampled,
            state: None,
        }
    }

    #[test]
    fn ratio_decides_by_the_trace_id_of_the_origin() {
        let (tracer, _metrics) = tracer(0.25);
        // Bits of the low half without the last one, as `TraceIdRatioBased` reads them.
        let low = |part: u64| (7 << 64) | u128::from(part << 60 | 1);
        for (trace_id, is_expected) in [(low(0x3), true), (low(0x4), false), (low(0xf), false)] {
            let decided = tracer.decide(Some(&context_of(trace_id, true)));
            assert_eq!(decided, is_expected.then_some(trace_id));
        }
        assert_eq!(tracer.decide(Some(&context_of(low(0), false))), None);
    }

    #[test]
    fn without_a_context_the_ratio_is_kept_on_average() {
        let (tracer, _metrics) = tracer(0.1);
        let sampled = (0..20_000).filter(|_| tracer.decide(None).is_some());
        let sampled = sampled.count();
        assert!((1_700..2_300).contains(&sampled), "{sampled}");
    }

    #[test]
    fn ratio_of_zero_and_one_are_exact() {
        let (off, _metrics) = tracer(0.0);
        assert!(!off.is_on());
        let (on, _metrics) = tracer(1.0);
        for trace_id in [1, u128::MAX] {
            let origin = context_of(trace_id, true);
            assert_eq!(off.decide(Some(&origin)), None);
            assert_eq!(on.decide(Some(&origin)), Some(trace_id));
        }
    }

    #[test]
    fn ended_spans_beyond_the_bound_are_dropped_and_counted() {
        let (tracer, metrics) = tracer(1.0);
        for _ in 0..ENDED_MAX + 3 {
            drop(tracer.begin_stream(None, None));
        }
        let dropped = metrics.trace_spans_total.with_label_values(&["dropped"]);
        assert_eq!(dropped.get(), 3);
        assert_eq!(tracer.0.waiting.take(usize::MAX, false).len(), ENDED_MAX);
    }
}
