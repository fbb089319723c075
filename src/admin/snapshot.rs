//! Snapshot of the pod for the page: one JSON document per second.
//!
//! ```text
//! metrics (samplers run first, as for a scrape)  -> rows of labels and value, zeros left out
//! health checks, progress of the drain           -> as on /health
//! table of event streams                         -> the clients with the largest lag
//! ```
//!
//! Counters are totals since the start of the process. The page makes rates of two snapshots.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricType};
use serde_json::{Map, Value, json};

use super::health;
use super::parts::Parts;
use crate::presence::{CloseReason, SHARDS, StreamHandle, StreamInfo, StreamTable};

/// 20 clients: as many as an operator reads. The search finds the others.
const CLIENTS_MAX: usize = 20;

/// Returns the snapshot. Reads every event stream, so it runs on a blocking thread.
pub(super) fn snapshot(parts: &Parts, started: SystemTime) -> Value {
    let metrics = &parts.metrics;
    metrics.sample();
    let mut snapshot = health::report(parts);
    snapshot["drain"]["total"] = drain_total(parts).into();
    let further = json!({
        "now": unix_millis(SystemTime::now()),
        "started": unix_millis(started),
        "pod": parts.pod,
        "ready": health::is_ready(parts),
        "has_presence": parts.streams.presence().is_some(),
        "load": state_of(&metrics.pressure_level),
        "connections": rows(&metrics.connections),
        "connections_memory": metrics.connections_memory_bytes.get(),
        "files": { "open": metrics.file_descriptors.get(), "limit": metrics.file_descriptors_limit.get() },
        "streams": rows(&metrics.streams),
        "opened": rows(&metrics.streams_opened_total),
        "closed": rows(&metrics.streams_closed_total),
        "delivered": rows(&metrics.events_delivered_total),
        "bytes": rows(&metrics.bytes_sent_total),
        "lag_events": rows(&metrics.lag_events),
        "lag_bytes": rows(&metrics.lag_bytes),
        "lag_seconds": rows(&metrics.lag_seconds),
        "slow": rows(&metrics.slow_clients),
        "gaps": rows(&metrics.gaps_total),
        "missed": rows(&metrics.missed_events_total),
        "rejections": rows(&metrics.refusals_total),
        "throttled": rows(&metrics.throttled_total),
        "resumes": rows(&metrics.resumes_total),
        "received": rows(&metrics.events_received_total),
        "window_events": rows(&metrics.window_events),
        "window_bytes": rows(&metrics.window_bytes),
        "feeds": rows(&metrics.feeds),
        "nats": {
            "connected": metrics.nats_connected.get() == 1,
            "reconnects": metrics.nats_reconnects_total.get(),
            "dropped": metrics.nats_slow_consumer_total.get(),
            "pending_bytes": metrics.nats_pending_bytes.get(),
            "consumers_created": metrics.consumers_created_total.get(),
            "replays_running": metrics.replays_running.get(),
            "replays_queued": metrics.replays_queued.get(),
        },
        "clients": { "total": parts.streams.len(), "shown": clients(&parts.streams) },
    });
    if let (Value::Object(snapshot), Value::Object(further)) = (&mut snapshot, further) {
        snapshot.extend(further);
    }
    snapshot
}

/// Returns the number of event streams that the drain ends, those that it has ended included.
fn drain_total(parts: &Parts) -> u64 {
    let progress = *parts.drain.borrow();
    if !progress.is_draining() {
        return 0;
    }
    let closed = &parts.metrics.streams_closed_total;
    let is_of_drain = |labels: &Labels<'_>| {
        [CloseReason::Drain.label(), CloseReason::Cut.label()]
            .iter()
            .any(|reason| labels.contains(&("reason", reason)))
    };
    parts.streams.len() as u64 + sum(closed, is_of_drain)
}

type Labels<'m> = Vec<(&'m str, &'m str)>;

/// Returns one object per series: its labels and `value`. Series with 0 are left out.
fn rows(collector: &impl Collector) -> Value {
    let mut rows = Vec::new();
    each(collector, |labels, value| {
        if value == 0.0 {
            return;
        }
        let mut row: Map<String, Value> = labels
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text.into()))
            .collect();
        row.insert("value".to_owned(), number(value));
        rows.push(Value::Object(row));
    });
    Value::Array(rows)
}

fn sum(collector: &impl Collector, is_counted: impl Fn(&Labels<'_>) -> bool) -> u64 {
    let mut sum = 0.0;
    each(collector, |labels, value| {
        if is_counted(&labels) {
            sum += value;
        }
    });
    sum as u64
}

/// Returns the label of the series with 1.
fn state_of(gauge: &impl Collector) -> Value {
    let mut state = Value::Null;
    each(gauge, |labels, value| {
        if value == 1.0
            && let Some((_, text)) = labels.first()
        {
            state = (*text).into();
        }
    });
    state
}

fn each(collector: &impl Collector, mut visit: impl FnMut(Labels<'_>, f64)) {
    for family in collector.collect() {
        let kind = family.get_field_type();
        for metric in family.get_metric() {
            let labels = metric
                .get_label()
                .iter()
                .map(|label| (label.name(), label.value()))
                .collect();
            visit(labels, value(kind, metric));
        }
    }
}

fn value(kind: MetricType, metric: &Metric) -> f64 {
    match kind {
        MetricType::COUNTER => metric.get_counter().get_value(),
        _ => metric.get_gauge().get_value(),
    }
}

/// Returns a whole number without a fraction: `1`, not `1.0`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && (0.0..9e15).contains(&value) {
        (value as u64).into()
    } else {
        value.into()
    }
}

/// Order of clients: slow or not, events and bytes of the lag.
type Rank = (bool, u64, u64);

/// Returns the clients with the largest lag, slow ones first.
fn clients(streams: &StreamTable) -> Vec<StreamInfo> {
    let mut first: Vec<(Rank, Arc<dyn StreamHandle>)> = Vec::new();
    for shard in 0..SHARDS {
        for stream in streams.shard(shard) {
            let lag = stream.lag();
            let is_slow = lag.events > 0 && stream.is_slow();
            first.push(((is_slow, lag.events, lag.bytes), stream));
        }
        // Stable: clients without lag keep their places.
        first.sort_by_key(|(rank, _)| Reverse(*rank));
        first.truncate(CLIENTS_MAX);
    }
    first.iter().map(|(_, stream)| stream.describe()).collect()
}

fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn rows_have_labels_and_whole_numbers_without_zeros() {
        let metrics = Metrics::new().unwrap();
        metrics
            .gaps_total
            .with_label_values(&["/a", "lag"])
            .inc_by(3);
        metrics.gaps_total.with_label_values(&["/a", "expired"]);
        metrics.lag_seconds.with_label_values(&["/a"]).set(1.5);
        assert_eq!(
            rows(&metrics.gaps_total),
            json!([{ "route": "/a", "reason": "lag", "value": 3 }])
        );
        assert_eq!(
            rows(&metrics.lag_seconds),
            json!([{ "route": "/a", "value": 1.5 }])
        );
        assert_eq!(state_of(&metrics.pressure_level), Value::Null);
        metrics.pressure_level.with_label_values(&["shed"]).set(1);
        metrics.pressure_level.with_label_values(&["none"]).set(0);
        assert_eq!(state_of(&metrics.pressure_level), "shed");
    }
}
