//! The report: medians of several runs, and a table.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Returns the median of runs with equal fields.
///
/// Each number is the median of that number; everything else comes from the first run.
pub(crate) fn median(runs: &[Value]) -> Value {
    match runs.first() {
        Some(Value::Object(first)) => {
            let field = |name: &String| {
                runs.iter()
                    .filter_map(|run| run.get(name).cloned())
                    .collect::<Vec<_>>()
            };
            Value::Object(
                first
                    .keys()
                    .map(|name| (name.clone(), median(&field(name))))
                    .collect::<Map<_, _>>(),
            )
        }
        Some(Value::Number(_)) => {
            let mut numbers: Vec<&Value> = runs.iter().filter(|run| run.is_number()).collect();
            numbers.sort_by(|a, b| {
                a.as_f64()
                    .unwrap_or(0.0)
                    .total_cmp(&b.as_f64().unwrap_or(0.0))
            });
            numbers[numbers.len() / 2].clone()
        }
        Some(other) => other.clone(),
        None => Value::Null,
    }
}

/// Returns the median of numbers, or `None` if there are no numbers.
pub(crate) fn middle(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

/// Formats the table: a column for each target (name and median), and the ratios to the first one.
pub(crate) fn table(title: &str, columns: &[(String, Value)]) -> String {
    let mut text = format!("{title}\n\n{:<36}", "");
    for (name, _) in columns {
        write!(text, "{name:>14}").ok();
    }
    for (name, _) in columns.iter().skip(1) {
        write!(text, "{:>16}", format!("{name} ratio")).ok();
    }
    text.push('\n');
    for (label, pointer, decimals) in ROWS {
        let values: Vec<Option<f64>> = columns
            .iter()
            .map(|(_, value)| value.pointer(pointer)?.as_f64())
            .collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        write!(text, "{label:<36}").ok();
        for value in &values {
            write!(
                text,
                "{:>14}",
                value.map_or("-".to_owned(), |value| number(value, *decimals))
            )
            .ok();
        }
        for value in values.iter().skip(1) {
            let ratio = values[0]
                .zip(*value)
                .filter(|(first, _)| *first > 0.0)
                .map(|(first, value)| value / first);
            write!(
                text,
                "{:>16}",
                ratio.map_or("-".to_owned(), |ratio| number(ratio, 2))
            )
            .ok();
        }
        text.push('\n');
    }
    for (name, value) in columns {
        if let Some(problem) = value["faults"]["first_problem"].as_str() {
            writeln!(text, "{name}: {problem}").ok();
        }
    }
    text
}

/// Formats a number with thousands separators.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

/// Label, JSON pointer into the result of a run, and decimals.
pub(crate) const ROWS: &[(&str, &str, usize)] = &[
    ("clients opened", "/connect/opened", 0),
    ("TLS sessions resumed", "/connect/resumed", 0),
    ("connects per second", "/connect/per_second", 0),
    ("CPU us per connect", "/connect/cpu_us_per_client", 1),
    ("first byte p50 ms", "/connect/first_byte_ms/p50", 1),
    ("first byte p99 ms", "/connect/first_byte_ms/p99", 1),
    ("first byte max ms", "/connect/first_byte_ms/max", 1),
    ("memory before bytes", "/memory/before_bytes", 0),
    (
        "memory per idle client bytes",
        "/memory/idle_per_client_bytes",
        0,
    ),
    (
        "memory per client afterwards bytes",
        "/memory/after_per_client_bytes",
        0,
    ),
    ("peak memory bytes", "/memory/peak_bytes", 0),
    ("clients that returned", "/replay/clients", 0),
    ("events replayed", "/replay/events", 0),
    ("seconds until the last client", "/replay/seconds", 3),
    ("events per second", "/replay/per_second", 0),
    ("first byte p50 ms", "/replay/first_byte_ms/p50", 1),
    ("first byte p99 ms", "/replay/first_byte_ms/p99", 1),
    ("CPU us per event", "/replay/cpu_us_per_event", 3),
    ("events per read", "/replay/events_per_read", 1),
    ("bytes per delivery", "/delivery/bytes_per_event", 0),
    ("bytes per event", "/replay/bytes_per_event", 0),
    ("server busy (share of a core)", "/replay/server_busy", 2),
    ("load busy (share of a core)", "/replay/load_busy", 2),
    (
        "JetStream consumers at once, max",
        "/replay/consumers_max",
        0,
    ),
    (
        "JetStream consumers in total",
        "/replay/consumers_created",
        0,
    ),
    ("most deliveries per second", "/saturation/per_second", 0),
    ("  at events per second", "/saturation/rate", 0),
    ("  latency p50 ms", "/saturation/latency_ms/p50", 1),
    ("  latency p99 ms", "/saturation/latency_ms/p99", 1),
    (
        "  CPU us per delivery",
        "/saturation/cpu_us_per_delivery/total",
        3,
    ),
    ("  events per read", "/saturation/events_per_read", 1),
    (
        "  server busy (share of a core)",
        "/saturation/server_busy",
        2,
    ),
    ("  load busy (share of a core)", "/saturation/load_busy", 2),
    ("published", "/delivery/published", 0),
    ("deliveries", "/delivery/deliveries", 0),
    ("deliveries per second", "/delivery/per_second", 0),
    ("latency p50 ms", "/delivery/latency_ms/p50", 2),
    ("latency p90 ms", "/delivery/latency_ms/p90", 2),
    ("latency p99 ms", "/delivery/latency_ms/p99", 2),
    ("latency p99.9 ms", "/delivery/latency_ms/p999", 2),
    ("latency max ms", "/delivery/latency_ms/max", 2),
    ("last client p50 ms", "/delivery/last_client_ms/p50", 2),
    ("last client p99 ms", "/delivery/last_client_ms/p99", 2),
    (
        "CPU us per delivery",
        "/delivery/cpu_us_per_delivery/total",
        2,
    ),
    ("  user", "/delivery/cpu_us_per_delivery/user", 2),
    ("  system", "/delivery/cpu_us_per_delivery/system", 2),
    (
        "CPU us per read of a client",
        "/delivery/cpu_us_per_read",
        2,
    ),
    (
        "CPU us per idle client and second",
        "/rest/cpu_us_per_client_second",
        3,
    ),
    ("drain seconds", "/drain/seconds", 1),
    ("CPU us per drained client", "/drain/cpu_us_per_client", 1),
    ("server busy (share of a core)", "/delivery/server_busy", 2),
    ("load busy (share of a core)", "/delivery/load_busy", 2),
    ("events per read", "/delivery/events_per_read", 2),
    (
        "publisher late max ms",
        "/delivery/publisher_late_max_ms",
        1,
    ),
    ("not stored by NATS", "/faults/not_stored", 0),
    ("missing", "/faults/missing", 0),
    ("duplicates", "/faults/duplicates", 0),
    ("out of order", "/faults/out_of_order", 0),
    ("holes in sequences", "/faults/holes", 0),
    ("gap events", "/faults/gap_events", 0),
    ("events without id", "/faults/without_id", 0),
    ("clients rejected", "/faults/refused", 0),
    ("clients unanswered", "/faults/unanswered", 0),
    ("TLS sessions not resumed", "/faults/not_resumed", 0),
    ("event streams ended", "/faults/ended", 0),
];
