//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::guard::Guard;
use crate::stage::server::Target;
use crate::stage::sidecar::Source;
use crate::suite::Suite;

/// Measures a server of event streams: opens clients, publishes stamped events through NATS, tells what arrived, when,
/// and what it cost. Exits 1 when an event is missing, doubled or out of order.
///
/// `--spawn` starts everything; `--url` measures a server that runs already.
#[derive(Debug, Parser)]
#[command(name = "load", args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// What this program also is.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The bare send loop, as `--target bare` starts it
    #[command(hide = true)]
    Bare {
        /// The NATS server it reads from
        #[arg(long)]
        nats: String,
        /// Forget no event, for those who come back
        #[arg(long)]
        keep: bool,
    },
    /// Everything that docs/benchmarks.md says, in one go: some forty minutes
    Suite(Suite),
    /// Compares the speed of two builds; exits 1 if the tree is slower
    Guard(Guard),
}

/// A kind of measurement, with its own defaults for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// 1,000 clients on one subject, 40 events per second
    Broadcast,
    /// 10,000 clients that wait: memory per client, then ten events
    Idle,
    /// 2,000 clients, each with its own subject, 20,000 events per second in all
    ManySubjects,
    /// 5,000 clients at once, up to the first byte
    Storm,
    /// One event at a time to 1,000 idle clients
    Single,
    /// 10,000 clients on one subject, one event per second: time until the last of them has it
    TenThousand,
    /// 1,000 clients on one subject, the rate raised step by step until they lag a second
    Saturate,
    /// 1,000 clients, each with its own subject, come back at once, 1,000 events behind each
    Replay,
    /// 10 HTTP/2 connections with 100 clients each, 100 events per second
    H2,
    /// 50 clients over HTTP/1.1 and 20 over HTTP/2, a second of events: is anything missing or doubled?
    Smoke,
}

/// Where a server has the events that clients come back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum From {
    /// In its memory
    Window,
    /// In JetStream: its window is smaller than what is missed
    Archive,
}

/// HTTP version of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// One connection per client
    H1,
    /// `--connections` with `--streams` clients in each, by prior knowledge
    H2,
}

/// Everything but the subcommand.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// What is measured, and the defaults of the rest
    #[arg(long, value_enum, default_value = "broadcast")]
    pub(crate) scenario: Scenario,
    /// Start nats-server (unless --nats) and the targets, and stop them at the end
    #[arg(long)]
    pub(crate) spawn: bool,
    /// The servers to measure, in turn (with --spawn): bare,sidestream,nchan,node
    #[arg(
        long = "target",
        value_enum,
        value_delimiter = ',',
        default_value = "sidestream"
    )]
    pub(crate) targets: Vec<Target>,
    /// How often; the report tells medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) runs: u16,
    /// JSON on standard output, the table on standard error
    #[arg(long)]
    pub(crate) json: bool,

    /// Measure what answers here; the number of the client's subject takes the place of "n" in braces
    #[arg(long, conflicts_with = "spawn", requires = "nats")]
    pub(crate) url: Option<String>,
    /// Publish to this subject (with --url); "n" in braces as above
    #[arg(long, requires = "url")]
    pub(crate) subject: Option<String>,
    /// The process behind --url, for its processor time and memory
    #[arg(long, requires = "url")]
    pub(crate) pid: Option<u32>,
    /// PEM file with the certificate to trust behind --url
    #[arg(long, requires = "url")]
    pub(crate) ca: Option<PathBuf>,
    /// A NATS server that runs already
    #[arg(long)]
    pub(crate) nats: Option<String>,

    /// nats-server to start [default: the one in .tools, else in PATH]
    #[arg(long)]
    pub(crate) nats_server: Option<PathBuf>,
    /// sidestream to start
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    pub(crate) sidestream: PathBuf,
    /// Log filter of the sidecar that is started
    #[arg(long, default_value = "info")]
    pub(crate) log: String,
    /// Core for the server
    #[arg(long)]
    pub(crate) server_cpu: Option<usize>,
    /// Core for clients, publisher and nats-server
    #[arg(long)]
    pub(crate) load_cpu: Option<usize>,

    /// HTTP version [default: h1; scenario h2: h2; smoke: both]
    #[arg(long, value_enum)]
    pub(crate) protocol: Option<Protocol>,
    /// TLS (HTTP/1.1, with --spawn)
    #[arg(long, conflicts_with = "url")]
    pub(crate) tls: bool,
    /// Clients over HTTP/1.1
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: Option<u32>,
    /// Connections over HTTP/2
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connections: u32,
    /// Clients per HTTP/2 connection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) streams: u32,
    /// Distinct subjects, shared evenly by the clients
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) subjects: Option<u32>,
    /// Where the events come from
    #[arg(long, value_enum, default_value = "jetstream")]
    pub(crate) source: Source,
    /// Where the server has what a client missed (scenario replay)
    #[arg(long, value_enum, default_value = "window")]
    pub(crate) from: From,
    /// How many events each client missed (scenario replay)
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) behind: u32,
    /// Clients between connect and first byte at one time
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connecting: Option<u32>,

    /// Events per second, over all subjects (scenario saturate: to begin with)
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// How long events are published
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) seconds: Option<u16>,
    /// How many events are published, instead of --seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) events: Option<u64>,
    /// Payload bytes
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) size: u32,

    /// A run that fails is told and left out, if its target only stands beside the sidecar
    #[arg(skip)]
    pub(crate) forgiving: bool,

    /// What cargo adds
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}
