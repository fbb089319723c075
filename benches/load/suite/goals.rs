//! Goals of the sidecar, compared with the results.

use std::path::Path;

use serde_json::Value;

use super::Result;
use crate::report;
use crate::stage::server::Target;

/// One line of the table of goals.
pub(super) struct Verdict {
    /// Scenario and quantity.
    pub(super) what: &'static str,
    /// Median of the sidecar.
    pub(super) measured: String,
    /// Ratio to the target it is compared with.
    pub(super) ratio: String,
    /// Bound of the goal.
    pub(super) goal: String,
    /// `None` if it was not measured, or has no bound.
    pub(super) reached: Option<bool>,
}

struct Goal {
    what: &'static str,
    measurement: &'static str,
    pointer: &'static str,
    decimals: usize,
    bound: Bound,
}

enum Bound {
    /// Upper bound of the sidecar's figure.
    AtMost(f64),
    AtLeast(f64),
    /// Upper bound of the ratio to another target, in the same round of runs.
    Times(Target, f64),
    /// Upper bound of the ratio to the sidecar's figure in another measurement.
    TimesOwn(&'static str, f64),
    /// No bound; the ratio to another target is shown.
    Beside(Target),
    /// No bound.
    Stated,
}

/// Compares all goals with the results.
pub(super) fn verdicts(results: &[Result], micro: &[(String, f64)]) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = GOALS.iter().map(|goal| goal.verdict(results)).collect();
    let trie = micro
        .iter()
        .find(|(name, _)| name == TRIE)
        .map(|(_, nanoseconds)| *nanoseconds);
    verdicts.push(Verdict {
        what: "one event among 100,000 filters: match, ns",
        measured: trie.map_or("not measured".to_owned(), |value| report::number(value, 0)),
        ratio: String::new(),
        goal: "below 1,000".to_owned(),
        reached: trie.map(|value| value < 1_000.0),
    });
    verdicts
}

/// Returns the means in nanoseconds of criterion's benchmarks; empty if nothing was measured.
pub(super) fn micro(folder: &Path) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for group in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        for case in std::fs::read_dir(group.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let text =
                std::fs::read_to_string(case.path().join("new/estimates.json")).unwrap_or_default();
            let estimates: Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(mean) = estimates["mean"]["point_estimate"].as_f64() {
                let names = [group.file_name(), case.file_name()]
                    .map(|name| name.to_string_lossy().into_owned());
                found.push((names.join("/"), mean));
            }
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

// === impl Goal ===

impl Goal {
    fn verdict(&self, results: &[Result]) -> Verdict {
        let median = report::middle(self.values(results, self.measurement, Target::Sidestream));
        let (goal, ratio, reached) = match self.bound {
            Bound::AtMost(most) => (
                format!("at most {}", self.number(most)),
                None,
                median.map(|value| value <= most),
            ),
            Bound::AtLeast(least) => (
                format!("at least {}", self.number(least)),
                None,
                median.map(|value| value >= least),
            ),
            Bound::Times(other, most) => {
                let ratio = self.ratio(results, other);
                (
                    format!("at most {most} x {}", other.name()),
                    ratio.map(|ratio| format!("{ratio:.2} x {}", other.name())),
                    ratio.map(|ratio| ratio <= most),
                )
            }
            Bound::TimesOwn(other, most) => {
                let ratio = self.ratio_to_own(results, other);
                (
                    format!("at most {most} x {other}"),
                    ratio.map(|ratio| format!("{ratio:.2} x {other}")),
                    ratio.map(|ratio| ratio <= most),
                )
            }
            Bound::Beside(other) => {
                let ratio = self.ratio(results, other);
                (
                    String::new(),
                    ratio.map(|ratio| format!("{ratio:.2} x {}", other.name())),
                    None,
                )
            }
            Bound::Stated => (String::new(), None, None),
        };
        Verdict {
            what: self.what,
            measured: median.map_or("not measured".to_owned(), |value| self.number(value)),
            ratio: ratio.unwrap_or_default(),
            goal,
            reached,
        }
    }

    /// Returns the figure of every run of a target in a measurement.
    fn values(&self, results: &[Result], measurement: &str, target: Target) -> Vec<f64> {
        results
            .iter()
            .find(|result| result.measurement.name == measurement)
            .map(|result| values(result.runs(target), self.pointer))
            .unwrap_or_default()
    }

    /// Returns the median of the ratios of the sidecar to another target.
    ///
    /// Both figures of a ratio are from one round, because the machine drifts between rounds.
    fn ratio(&self, results: &[Result], other: Target) -> Option<f64> {
        let own = self.values(results, self.measurement, Target::Sidestream);
        let others = self.values(results, self.measurement, other);
        let ratios = own.iter().zip(others).map(|(own, other)| own / other);
        report::middle(ratios.collect())
    }

    fn ratio_to_own(&self, results: &[Result], measurement: &str) -> Option<f64> {
        let figure = |name| report::middle(self.values(results, name, Target::Sidestream));
        Some(figure(self.measurement)? / figure(measurement)?)
    }

    fn number(&self, value: f64) -> String {
        report::number(value, self.decimals)
    }
}

fn values(runs: &[Value], pointer: &str) -> Vec<f64> {
    runs.iter()
        .filter_map(|run| run.pointer(pointer)?.as_f64())
        .collect()
}

const TRIE: &str = "match/100000";
const CPU: &str = "/delivery/cpu_us_per_delivery/total";
const IDLE: &str = "/memory/idle_per_client_bytes";
const CONNECT: &str = "/connect/cpu_us_per_client";

/// Goals that were set before the first line was written.
const GOALS: [Goal; 33] = [
    goal(
        "idle HTTP/1.1 client: bytes",
        "idle",
        IDLE,
        0,
        Bound::AtMost(1_638.0),
    ),
    goal(
        "idle HTTP/1.1 client: bytes",
        "idle",
        IDLE,
        0,
        Bound::Times(Target::Nchan, 1.0),
    ),
    goal(
        "idle HTTP/1.1 client over TLS: bytes",
        "idle-tls",
        IDLE,
        0,
        Bound::AtMost(9_216.0),
    ),
    goal(
        "idle HTTP/2 client, 100 per connection: bytes",
        "idle-h2",
        IDLE,
        0,
        Bound::AtMost(2_560.0),
    ),
    goal(
        "broadcast: CPU µs per delivery",
        "broadcast",
        CPU,
        2,
        Bound::Times(Target::Bare, 1.12),
    ),
    goal(
        "broadcast: CPU µs per delivery",
        "broadcast",
        CPU,
        2,
        Bound::Times(Target::Nchan, 1.0),
    ),
    goal(
        "broadcast: CPU µs per delivery",
        "broadcast",
        CPU,
        2,
        Bound::Times(Target::Node, 1.0),
    ),
    goal(
        "broadcast over TLS: CPU µs per delivery",
        "broadcast-tls",
        CPU,
        2,
        Bound::Times(Target::Bare, 1.15),
    ),
    goal(
        "JSON of 512 bytes with zstd: CPU µs per delivery",
        "json-zstd",
        CPU,
        2,
        Bound::TimesOwn("json", 1.15),
    ),
    goal(
        "JSON of 512 bytes with zstd: bytes per delivery",
        "json-zstd",
        "/delivery/bytes_per_event",
        0,
        Bound::TimesOwn("json", 0.7),
    ),
    goal(
        "JSON of 512 bytes with gzip: CPU µs per delivery",
        "json-gzip",
        CPU,
        2,
        Bound::TimesOwn("json", 1.15),
    ),
    goal(
        "JSON of 512 bytes with gzip: bytes per delivery",
        "json-gzip",
        "/delivery/bytes_per_event",
        0,
        Bound::TimesOwn("json", 0.7),
    ),
    goal(
        "bursts of 16 with zstd: CPU µs per delivery",
        "burst-zstd",
        CPU,
        2,
        Bound::TimesOwn("burst", 1.15),
    ),
    goal(
        "bursts of 16 with zstd: bytes per delivery",
        "burst-zstd",
        "/delivery/bytes_per_event",
        0,
        Bound::TimesOwn("burst", 0.25),
    ),
    goal(
        "bursts of 16 with gzip: CPU µs per delivery",
        "burst-gzip",
        CPU,
        2,
        Bound::TimesOwn("burst", 1.15),
    ),
    goal(
        "bursts of 16 with gzip: bytes per delivery",
        "burst-gzip",
        "/delivery/bytes_per_event",
        0,
        Bound::TimesOwn("burst", 0.25),
    ),
    goal(
        "saturate: deliveries/s",
        "saturate",
        "/saturation/per_second",
        0,
        Bound::AtLeast(3_000_000.0),
    ),
    goal(
        "saturate: deliveries/s",
        "saturate",
        "/saturation/per_second",
        0,
        Bound::Beside(Target::Bare),
    ),
    goal(
        "ten-thousand: last client, ms",
        "ten-thousand",
        "/delivery/last_client_ms/p50",
        1,
        Bound::Times(Target::Bare, 1.1),
    ),
    goal(
        "many-subjects: CPU µs per delivery",
        "many-subjects",
        CPU,
        2,
        Bound::Times(Target::Bare, 1.25),
    ),
    // 1.5 µs where bare costs 8.
    goal(
        "HTTP/2: CPU µs per delivery",
        "h2",
        CPU,
        2,
        Bound::Times(Target::Bare, 0.1875),
    ),
    goal(
        "HTTP/2 over TLS: CPU µs per delivery",
        "h2-tls",
        CPU,
        2,
        Bound::TimesOwn("h2", 1.15),
    ),
    goal(
        "HTTP/2 over TLS: CPU µs per delivery",
        "h2-tls",
        CPU,
        2,
        Bound::Beside(Target::BareH2),
    ),
    goal(
        "replay from the window: events/s",
        "replay-window",
        "/replay/per_second",
        0,
        Bound::AtLeast(2_500_000.0),
    ),
    goal(
        "replay from JetStream: events/s",
        "replay-archive",
        "/replay/per_second",
        0,
        Bound::Stated,
    ),
    goal(
        "replay from JetStream: consumers at once",
        "replay-archive",
        "/replay/consumers_max",
        0,
        Bound::AtMost(4.0),
    ),
    // 3 GiB.
    goal(
        "a million HTTP/2 clients: bytes of the process",
        "million",
        "/memory/after_bytes",
        0,
        Bound::AtMost(3_221_225_472.0),
    ),
    goal(
        "a million HTTP/2 clients: CPU µs per idle client and second",
        "million",
        "/rest/cpu_us_per_client_second",
        2,
        Bound::AtMost(0.6),
    ),
    goal(
        "storm: CPU µs per client",
        "storm",
        CONNECT,
        1,
        Bound::Times(Target::Bare, 1.5),
    ),
    goal(
        "storm: CPU µs per client",
        "storm",
        CONNECT,
        1,
        Bound::Times(Target::Nchan, 1.0),
    ),
    goal(
        "storm over TLS: CPU µs per client",
        "storm-tls",
        CONNECT,
        1,
        Bound::Stated,
    ),
    goal(
        "storm over TLS, resumed sessions: CPU µs per client",
        "storm-tls-resumed",
        CONNECT,
        1,
        Bound::TimesOwn("storm-tls", 0.5),
    ),
    goal(
        "one event, 1,000 idle clients: p99, ms",
        "single",
        "/delivery/latency_ms/p99",
        1,
        Bound::Times(Target::Bare, 1.15),
    ),
];

const fn goal(
    what: &'static str,
    measurement: &'static str,
    pointer: &'static str,
    decimals: usize,
    bound: Bound,
) -> Goal {
    Goal {
        what,
        measurement,
        pointer,
        decimals,
        bound,
    }
}
