//! Measures everything in docs/benchmarks.md: `make bench`.
//!
//! [`MEASUREMENTS`] are run in turn, each with all installed targets. [`goals`] compares the
//! results with the goals, [`page`] formats both and replaces the figures in the document.

mod goals;
pub(crate) mod page;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::options::Options;
use crate::report;
use crate::stage::machine;
use crate::stage::server::Target;
use crate::{Fallible, Measured};

/// Options of the suite.
#[derive(Args, Debug)]
pub(crate) struct Suite {
    /// Runs of each target in each measurement; the page has medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Core for the server
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// Core for clients, publisher and nats-server
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// sidestream binary to start
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    sidestream: PathBuf,
    /// Only these measurements: idle,idle-tls,...
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Document whose figures, between two markers, are replaced
    #[arg(long)]
    write: Option<PathBuf>,
    /// Folder with criterion's results of `--bench micro`
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../criterion"), hide_default_value = true)]
    criterion: PathBuf,
    /// File to write all results to, as JSON
    #[arg(long)]
    results: Option<PathBuf>,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One measurement of the suite: a scenario with options and targets.
struct Measurement {
    name: &'static str,
    title: &'static str,
    options: &'static str,
    targets: &'static [Target],
    /// Rows of the page: JSON pointers of [`report::ROWS`].
    rows: &'static [&'static str],
}

/// Results of a measurement: the runs of each target.
pub(crate) struct Result {
    measurement: &'static Measurement,
    targets: Vec<(Target, Vec<Value>)>,
}

impl Suite {
    /// Returns the core for everything but the servers.
    pub(crate) fn load_cpu(&self) -> usize {
        self.load_cpu
    }

    /// Measures everything, prints the page, and writes it if requested.
    ///
    /// Returns true if the sidecar lost nothing.
    pub(crate) async fn run(&self) -> Fallible<bool> {
        let unknown = self
            .only
            .iter()
            .find(|name| MEASUREMENTS.iter().all(|one| one.name != **name));
        if let Some(name) = unknown {
            let names: Vec<&str> = MEASUREMENTS.iter().map(|one| one.name).collect();
            return Err(format!(
                "unknown measurement {name:?}: expected one of {}",
                names.join(", ")
            )
            .into());
        }
        let load_before = machine::load_average();
        let mut results: Vec<Result> = Vec::new();
        for measurement in &MEASUREMENTS {
            if !self.only.is_empty() && !self.only.iter().any(|name| name == measurement.name) {
                continue;
            }
            let done: usize = results
                .iter()
                .flat_map(|result| &result.targets)
                .map(|(_, runs)| runs.len())
                .sum();
            results.push(self.measure(measurement, done).await?);
        }
        let micro = goals::micro(&self.criterion);
        let page = page::write(&results, &micro, self.runs, &load_before);
        println!("{page}");
        if let Some(path) = &self.write {
            page::replace(path, "figures", &page)?;
        }
        if let Some(path) = &self.results {
            std::fs::write(
                path,
                serde_json::to_string_pretty(&json(&results, &load_before))?,
            )?;
        }
        let sidecar = results
            .iter()
            .flat_map(|result| &result.targets)
            .filter(|(target, _)| *target == Sidestream);
        Ok(!sidecar
            .flat_map(|(_, runs)| runs)
            .any(crate::measure::is_faulty))
    }

    async fn measure(&self, measurement: &'static Measurement, done: usize) -> Fallible<Result> {
        let options = self.options(measurement)?;
        eprintln!("--- {}: {}", measurement.name, measurement.options);
        let Measured { targets, runs, .. } = crate::measure_all(&options, done).await?;
        let result = Result {
            measurement,
            targets: targets.into_iter().zip(runs).collect(),
        };
        let columns: Vec<(String, Value)> = result
            .targets
            .iter()
            .map(|(target, runs)| (target.name(), report::median(runs)))
            .collect();
        eprintln!("{}", report::table(measurement.title, &columns));
        Ok(result)
    }

    fn options(&self, measurement: &Measurement) -> Fallible<Options> {
        let mut options = Options::spawning(measurement.options)?;
        // Targets that are not installed are omitted: they are comparisons, not goals.
        options.targets = measurement
            .targets
            .iter()
            .copied()
            .filter(|target| target.is_installed())
            .collect();
        options.runs = self.runs;
        options.forgiving = true;
        options.server_cpu = Some(self.server_cpu);
        options.load_cpu = Some(self.load_cpu);
        options.sidestream.clone_from(&self.sidestream);
        Ok(options)
    }
}

fn json(results: &[Result], load_before: &str) -> Value {
    let of = |result: &Result| -> Value {
        result
            .targets
            .iter()
            .map(|(target, runs)| json!({ "target": target.name(), "runs": runs }))
            .collect()
    };
    let results: serde_json::Map<String, Value> = results
        .iter()
        .map(|result| (result.measurement.name.to_owned(), of(result)))
        .collect();
    json!({ "machine": machine::describe(), "load_before": load_before, "results": results })
}

// === impl Result ===

impl Result {
    /// Returns the runs of one target; empty if it was not measured.
    fn runs(&self, target: Target) -> &[Value] {
        self.targets
            .iter()
            .find(|(other, _)| *other == target)
            .map_or(&[], |(_, runs)| runs)
    }
}

use Target::{Bare, BareH2, Nchan, Node, Sidestream};

const MEASUREMENTS: [Measurement; 23] = [
    Measurement {
        name: "idle",
        title: "idle: 10,000 idle clients, then ten events",
        options: "--scenario idle",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/memory/idle_per_client_bytes",
            "/memory/after_per_client_bytes",
        ],
    },
    Measurement {
        name: "idle-tls",
        title: "idle over TLS: 10,000 clients",
        options: "--scenario idle --tls",
        targets: &[Sidestream],
        rows: &[
            "/memory/idle_per_client_bytes",
            "/connect/cpu_us_per_client",
        ],
    },
    Measurement {
        name: "idle-h2",
        title: "idle over HTTP/2: 100 connections x 100 clients",
        options: "--scenario idle --protocol h2 --connections 100 --streams 100",
        targets: &[Sidestream],
        rows: &[
            "/memory/idle_per_client_bytes",
            "/connect/cpu_us_per_client",
        ],
    },
    Measurement {
        name: "broadcast",
        title: "broadcast: 1,000 clients x 40 events/s",
        options: "--scenario broadcast",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/cpu_us_per_delivery/user",
            "/delivery/latency_ms/p50",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "single",
        title: "single: one event at a time to 1,000 idle clients",
        options: "--scenario single",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/delivery/latency_ms/p50",
            "/delivery/latency_ms/p99",
            "/delivery/cpu_us_per_delivery/total",
        ],
    },
    Measurement {
        name: "saturate",
        title: "saturate: 1,000 clients, the rate rises until they lag by a second",
        options: "--scenario saturate --rate 40",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/saturation/per_second",
            "/saturation/cpu_us_per_delivery/total",
            "/saturation/load_busy",
        ],
    },
    Measurement {
        name: "ten-thousand",
        title: "ten-thousand: 10,000 clients x 1 event/s",
        options: "--scenario ten-thousand",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/delivery/last_client_ms/p50",
            "/delivery/cpu_us_per_delivery/total",
        ],
    },
    Measurement {
        name: "many-subjects",
        title: "many-subjects: 2,000 clients, each its own, 20,000 events/s in total",
        options: "--scenario many-subjects",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "h2",
        title: "h2: 10 HTTP/2 connections x 100 clients, 100 events/s (the others: 1,000 over HTTP/1.1)",
        options: "--scenario h2",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/latency_ms/p50",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "broadcast-tls",
        title: "broadcast over TLS: 1,000 clients x 40 events/s",
        options: "--scenario broadcast --tls",
        targets: &[Bare, Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/cpu_us_per_delivery/user",
            "/delivery/latency_ms/p50",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "json",
        title: "broadcast of JSON of 512 bytes: 1,000 clients x 40 events/s",
        options: "--scenario broadcast --size 512 --payload json",
        targets: &[Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/bytes_per_event",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "json-zstd",
        title: "the same with zstd",
        options: "--scenario broadcast --size 512 --payload json --compression zstd",
        targets: &[Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/bytes_per_event",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "json-gzip",
        title: "the same with gzip",
        options: "--scenario broadcast --size 512 --payload json --compression gzip",
        targets: &[Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/bytes_per_event",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "burst",
        title: "broadcast of JSON of 512 bytes: 1,000 clients x 10 bursts/s of 16 events",
        options: "--scenario broadcast --size 512 --payload json --rate 160 --burst 16",
        targets: &[Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/bytes_per_event",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "burst-zstd",
        title: "the same with zstd",
        options: "--scenario broadcast --size 512 --payload json --rate 160 --burst 16 --compression zstd",
        targets: &[Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/bytes_per_event",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "burst-gzip",
        title: "the same with gzip",
        options: "--scenario broadcast --size 512 --payload json --rate 160 --burst 16 --compression gzip",
        targets: &[Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/bytes_per_event",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "h2-tls",
        title: "h2 over TLS (bare: HTTP/2 too, without flow control)",
        options: "--scenario h2 --tls",
        targets: &[BareH2, Sidestream],
        rows: &[
            "/delivery/cpu_us_per_delivery/total",
            "/delivery/latency_ms/p50",
            "/delivery/latency_ms/p99",
        ],
    },
    Measurement {
        name: "replay-window",
        title: "replay: 1,000 clients reconnect, each with a lag of 1,000 events, from memory",
        options: "--scenario replay --from window",
        targets: &[Bare, Sidestream, Nchan],
        rows: &[
            "/replay/per_second",
            "/replay/seconds",
            "/replay/cpu_us_per_event",
            "/memory/peak_bytes",
        ],
    },
    Measurement {
        name: "replay-archive",
        title: "replay: the same from JetStream (bare: from memory)",
        options: "--scenario replay --from archive",
        targets: &[Bare, Sidestream],
        rows: &[
            "/replay/per_second",
            "/replay/seconds",
            "/replay/cpu_us_per_event",
            "/memory/peak_bytes",
            "/replay/consumers_max",
        ],
    },
    Measurement {
        name: "million",
        title: "million: 10,000 HTTP/2 connections x 100 clients, then a drain",
        options: "--scenario million",
        targets: &[Sidestream],
        rows: &[
            "/memory/idle_per_client_bytes",
            "/memory/after_bytes",
            "/rest/cpu_us_per_client_second",
            "/delivery/cpu_us_per_delivery/total",
            "/drain/seconds",
            "/drain/cpu_us_per_client",
        ],
    },
    Measurement {
        name: "storm",
        title: "storm: 5,000 clients connect at once, until the first byte",
        options: "--scenario storm",
        targets: &[Bare, Sidestream, Nchan, Node],
        rows: &[
            "/connect/cpu_us_per_client",
            "/connect/per_second",
            "/connect/first_byte_ms/p99",
        ],
    },
    Measurement {
        name: "storm-tls",
        title: "storm over TLS",
        options: "--scenario storm --tls",
        targets: &[Bare, Sidestream],
        rows: &[
            "/connect/cpu_us_per_client",
            "/connect/per_second",
            "/connect/first_byte_ms/p99",
        ],
    },
    Measurement {
        name: "storm-tls-resumed",
        title: "storm over TLS: clients return to another sidecar with session tickets",
        options: "--scenario storm --tls --resume",
        targets: &[Bare, Sidestream],
        rows: &[
            "/connect/cpu_us_per_client",
            "/connect/per_second",
            "/connect/first_byte_ms/p99",
        ],
    },
];
