//! Names and labels of all metrics, and `docs/metrics.md`, which a test writes.

use std::collections::BTreeMap;
use std::path::Path;

use sidestream::telemetry::Metrics;
use sidestream::telemetry::metrics::Described;

/// Every metric with its labels. Some are reserved and not registered yet.
const NAMES: &[(&str, &str)] = &[
    ("build_info", "version"),
    ("connections", "protocol, tls"),
    ("connections_total", "protocol, tls"),
    ("tls_handshakes_total", "kind"),
    ("connections_memory_bytes", ""),
    ("streams", "route, protocol, framing"),
    ("streams_opened_total", "route, protocol, framing"),
    ("version_streams", "route, version"),
    ("version_conversions_total", "route, version, result"),
    ("schema_payloads_total", "schema, result"),
    ("cloud_events_total", "route, mode"),
    ("streams_closed_total", "route, reason"),
    ("stream_age_seconds", "side"),
    ("refusals_total", "code"),
    ("events_received_total", "source"),
    ("events_rejected_total", "source, reason"),
    ("events_delivered_total", "route, framing"),
    ("bytes_sent_total", "route, framing"),
    ("compression_bytes_total", "route, coding, form"),
    ("delivery_seconds", "route"),
    ("lag_events", "route"),
    ("lag_bytes", "route"),
    ("lag_seconds", "route"),
    ("slow_clients", "route"),
    ("gaps_total", "route, reason"),
    ("missed_events_total", "route, reason"),
    ("shed_events_total", "route, tier"),
    ("throttled_total", "limit"),
    ("health_check", "check, status"),
    ("pressure_level", "level"),
    ("begins_total", "begin"),
    ("subject_changes_total", "outcome"),
    ("finished_total", "route"),
    ("resumes_total", "outcome"),
    ("states_total", "cause"),
    ("state_reads_total", ""),
    ("replays_running", ""),
    ("replays_queued", ""),
    ("replay_seconds", ""),
    ("replayed_events_total", ""),
    ("window_events", "source"),
    ("window_bytes", "source"),
    ("feeds", "source"),
    ("file_descriptors", ""),
    ("file_descriptors_limit", ""),
    ("sockets", "state"),
    ("nats_connected", ""),
    ("nats_reconnects_total", ""),
    ("nats_slow_consumer_total", ""),
    ("republish_losses_total", "source, outcome"),
    ("nats_pending_bytes", ""),
    ("consumers_created_total", ""),
    ("drain_phase", "phase"),
    ("drain_streams_left", ""),
    ("drain_cut_total", ""),
    ("config_reloads_total", "result"),
    ("authentication_key_loads_total", "provider, result"),
    ("authentication_keys_loaded_timestamp_seconds", "provider"),
    ("revocations", ""),
    ("revocation_streams_ended_total", "kind"),
    ("revocation_entries_ignored_total", "reason"),
    ("authentication_forward_requests_total", "provider, result"),
    ("authentication_forward_seconds", "provider"),
    ("ticket_issues_total", "result"),
    ("ticket_redemptions_total", "result"),
    ("application_responses_total", "status"),
    ("application_requests_in_progress", ""),
    ("application_cache_bytes", ""),
    ("application_cache_requests_total", "result"),
    ("application_response_seconds", ""),
    ("presence_errors_total", ""),
    ("trace_spans_total", "result"),
    ("admin_refusals_total", "port, code"),
    ("presence_full_total", ""),
    ("log_lines_dropped_total", ""),
    ("cpu_limit_cores", ""),
    ("memory_limit_bytes", ""),
    ("log_lines_suppressed_total", ""),
];

const INTRODUCTION: &str = "\
# Metrics

Prometheus text on `GET /metrics` of the admin port. Counters end in `_total` and begin at 0 with the process; a
series with a label from a closed list appears at 0, with the process (codes, limits) or with the route (reasons, tiers,
protocols, framings); other series appear with their first value. The id of a client is never a label. Histograms have the usual
`_bucket`, `_sum` and `_count` series.

This table is written by a test from the metrics themselves: `UPDATE_DOCS=1 cargo test --test it metrics::`.

| name | type | labels | what it is |
| --- | --- | --- | --- |
";

const INJECTOR: &str = "
The injector (`sidestream-injector`) is a process of its own, with these on its admin port. This table is written by
`UPDATE_DOCS=1 cargo test -p sidestream-injector metrics`.

| name | type | labels | what it is |
| --- | --- | --- | --- |
";

#[test]
fn every_metric_has_its_documented_name_and_labels() {
    let names: BTreeMap<&str, &str> = NAMES.iter().copied().collect();
    let metrics = Metrics::new().unwrap();
    assert!(!metrics.described().is_empty());
    for metric in metrics.described() {
        let name = metric.name.strip_prefix("sidestream_").expect(&metric.name);
        let labels = names
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the list"));
        assert_eq!(metric.labels.join(", "), **labels, "{name}");
        assert_eq!(
            name.ends_with("_total"),
            metric.kind == "counter",
            "{name} is a {}",
            metric.kind
        );
        assert!(
            metric.help.ends_with('.') && !metric.help.contains('|'),
            "{name}: {}",
            metric.help
        );
        assert!(
            !metric.labels.iter().any(|label| label.contains("client")),
            "{name}"
        );
    }
}

#[test]
fn the_documentation_of_metrics_is_up_to_date() {
    let mut written = INTRODUCTION.to_owned();
    written.extend(Metrics::new().unwrap().described().iter().map(row));
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = std::fs::read_to_string(&page).unwrap_or_default();
    // The table of the injector is checked by a test of the injector.
    written.push_str(INJECTOR);
    let head = "| --- | --- | --- | --- |\n";
    let injector = text.rfind(head).map_or(0, |at| at + head.len());
    written.push_str(&text[injector..]);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, &written).unwrap();
        return;
    }
    assert!(
        text == written,
        "docs/metrics.md is out of date: UPDATE_DOCS=1 cargo test --test it metrics::"
    );
}

fn row(metric: &Described) -> String {
    let labels: Vec<_> = metric
        .labels
        .iter()
        .map(|label| format!("`{label}`"))
        .collect();
    format!(
        "| `{}` | {} | {} | {} |\n",
        metric.name,
        metric.kind,
        labels.join(", "),
        metric.help
    )
}
