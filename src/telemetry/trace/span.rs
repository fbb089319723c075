//! Spans of Sidestream, and their form in OpenTelemetry.
//!
//! Attributes have the names of the semantic conventions where there is one. No attribute identifies
//! a person: neither the name and the address of a client, nor subjects, paths with their variables,
//! ids of events, or header fields.

use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::context::TraceContext;
use super::samples::{self, SpanIds};

/// Span of a sampled event, open while it is delivered.
#[derive(Debug)]
pub(super) struct EventSpan {
    pub(super) number: NonZeroU32,
    pub(super) ids: SpanIds,
    /// Context of its publisher.
    pub(super) origin: Option<TraceContext>,
    pub(super) source: Box<str>,
    pub(super) sequence: Option<u64>,
    pub(super) published: Option<i128>,
    pub(super) received: Instant,
    pub(super) received_at: SystemTime,
    pub(super) bytes: usize,
}

/// Span that has ended.
#[derive(Debug)]
pub(super) struct EndedSpan {
    pub(super) name: &'static str,
    pub(super) kind: SpanKind,
    pub(super) ids: SpanIds,
    pub(super) parent: Option<TraceContext>,
    pub(super) link: Option<TraceContext>,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) status: Status,
}

impl EventSpan {
    /// Ends the span at the last delivery.
    pub(super) fn end(self) -> EndedSpan {
        let deliveries = samples::close(self.number);
        let mut attributes = vec![
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.message.body.size", number(self.bytes as u64)),
            KeyValue::new("sidestream.source", String::from(self.source)),
            KeyValue::new(
                "sidestream.fan_out",
                number(u64::from(deliveries.event_streams)),
            ),
        ];
        if let Some(sequence) = self.sequence {
            attributes.push(KeyValue::new("sidestream.sequence", number(sequence)));
        }
        if let Some(published) = self.published {
            let lag = since(self.received_at, published);
            attributes.push(KeyValue::new("sidestream.lag", lag.as_secs_f64()));
        }
        EndedSpan {
            name: "deliver",
            kind: SpanKind::Consumer,
            ids: self.ids,
            parent: None,
            link: self.origin,
            began: self.received_at,
            ended: self.received_at + deliveries.last,
            attributes,
            status: Status::Unset,
        }
    }
}

/// Returns the time since a publish time; 0 if the clock of the server is ahead.
fn since(now: SystemTime, published: i128) -> Duration {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    let published = u128::try_from(published).unwrap_or_default();
    let nanos = nanos.saturating_sub(published);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Value of a count.
pub(super) fn number(count: u64) -> Value {
    Value::I64(i64::try_from(count).unwrap_or(i64::MAX))
}

impl EndedSpan {
    /// Returns the span in the form of the SDK.
    pub(super) fn into_data(self, scope: &InstrumentationScope) -> SpanData {
        // The state of the trace is passed on within it.
        let state = self.parent.as_ref().map(state).unwrap_or_default();
        let span_context = SpanContext::new(
            TraceId::from(self.ids.trace_id),
            SpanId::from(self.ids.span_id),
            TraceFlags::SAMPLED,
            false,
            state,
        );
        let mut links = SpanLinks::default();
        links.links.extend(
            self.link
                .as_ref()
                .map(|origin| Link::with_context(remote(origin))),
        );
        SpanData {
            span_context,
            parent_span_id: self
                .parent
                .as_ref()
                .map_or(SpanId::INVALID, |parent| SpanId::from(parent.span_id)),
            parent_span_is_remote: self.parent.is_some(),
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.began,
            end_time: self.ended,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: self.status,
            instrumentation_scope: scope.clone(),
        }
    }
}

fn remote(context: &TraceContext) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(context.is_sampled);
    SpanContext::new(
        TraceId::from(context.trace_id),
        SpanId::from(context.span_id),
        flags,
        true,
        state(context),
    )
}

/// Returns the `tracestate` of a context; empty if it is not valid.
fn state(context: &TraceContext) -> TraceState {
    let text = context.state.as_deref().unwrap_or_default();
    text.parse().unwrap_or_default()
}
