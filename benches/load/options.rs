//! Options of one measurement, and options that several subcommands share.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use crate::Fallible;
use crate::stage::certificate::Key;
use crate::stage::machine;
use crate::stage::recipe::From;
use crate::stage::server::Target;
use crate::stage::sidecar::Source;
use crate::stage::tokens::Algorithm;
use crate::wire::body::Framing;
use crate::wire::coding::Coding;
use crate::wire::stamp::Content;

/// A kind of measurement, with its own defaults for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// 1,000 clients on one subject, 40 events per second
    Broadcast,
    /// 10,000 idle clients: memory per client, then ten events
    Idle,
    /// 2,000 clients, each with its own subject, 20,000 events per second in all
    ManySubjects,
    /// 5,000 clients connect at once: until the first byte
    Storm,
    /// One event at a time to 1,000 idle clients
    Single,
    /// 10,000 clients on one subject, one event per second: time until the last client has it
    TenThousand,
    /// 1,000 clients on one subject, the rate rises until they lag by a second
    Saturate,
    /// 1,000 clients, each with its own subject, return at once; each missed 1,000 events
    Replay,
    /// 10 HTTP/2 connections with 100 clients each, 100 events per second
    H2,
    /// 10,000 HTTP/2 connections with 100 clients each: memory, idle CPU time, and a drain
    Million,
    /// 50 clients over HTTP/1.1 and 20 over HTTP/2, one second of events: a test of correctness
    Smoke,
}

/// HTTP version of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// A connection for each client
    H1,
    /// `--connections` with `--streams` clients on each, with prior knowledge
    H2,
}

/// All options outside of subcommands.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Scenario to measure; it has defaults for most options
    #[arg(long, value_enum, default_value = "broadcast")]
    pub(crate) scenario: Scenario,
    /// Start nats-server (unless --nats) and the targets, and stop them at the end
    #[arg(long)]
    pub(crate) spawn: bool,
    /// Servers to measure in turn (with --spawn): bare,sidestream,nchan,node
    #[arg(
        long = "target",
        value_enum,
        value_delimiter = ',',
        default_value = "sidestream"
    )]
    pub(crate) targets: Vec<Target>,
    /// Number of runs; the report has medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) runs: u16,
    /// Print JSON to standard output, the table to standard error
    #[arg(long)]
    pub(crate) json: bool,

    /// Measure this running server; "n" in braces becomes the number of the client's subject
    #[arg(long, conflicts_with = "spawn", requires = "nats")]
    pub(crate) url: Option<String>,
    /// Publish to this subject (with --url); "n" in braces as above
    #[arg(long, requires = "url")]
    pub(crate) subject: Option<String>,
    /// Process id of the server at --url, to measure its processor time and memory
    #[arg(long, requires = "url")]
    pub(crate) pid: Option<u32>,
    /// PEM file with the trusted certificate of the server at --url
    #[arg(long, requires = "url")]
    pub(crate) ca: Option<PathBuf>,
    /// Running NATS server to use
    #[arg(long)]
    pub(crate) nats: Option<String>,

    /// nats-server to start [default: the one in .tools, else in PATH]
    #[arg(long)]
    pub(crate) nats_server: Option<PathBuf>,
    /// sidestream binary to start
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    pub(crate) sidestream: PathBuf,
    /// Log filter of the sidecar
    #[arg(long, default_value = "info")]
    pub(crate) log: String,
    /// Ratio of traces; the sidecar exports them to a collector of this process (with --spawn)
    #[arg(long, requires = "spawn")]
    pub(crate) traces: Option<f64>,
    /// Core for the server
    #[arg(long)]
    pub(crate) server_cpu: Option<usize>,
    /// Core for clients, publisher and nats-server
    #[arg(long)]
    pub(crate) load_cpu: Option<usize>,

    /// HTTP version [default: h1; scenarios h2 and million: h2; smoke: both]
    #[arg(long, value_enum)]
    pub(crate) protocol: Option<Protocol>,
    /// Framing of the event streams; bare, nchan and node have Server-Sent Events only
    #[arg(long, value_enum, default_value = "sse")]
    pub(crate) framing: Framing,
    /// Content coding of the event streams (sse and ndjson) that the clients ask the sidecar for
    #[arg(long, value_enum, conflicts_with = "url")]
    pub(crate) compression: Option<Coding>,
    /// Use TLS (with --spawn)
    #[arg(long, conflicts_with = "url")]
    pub(crate) tls: bool,
    /// Key of the server's certificate
    #[arg(long, value_enum, requires = "tls", default_value = "ecdsa")]
    pub(crate) key: Key,
    /// Clients return to another sidecar with their session tickets, as after a drain; only the
    /// return is measured
    #[arg(long, requires = "tls")]
    pub(crate) resume: bool,
    /// Authenticate the clients with tokens of this algorithm, on one subject
    #[arg(long, value_enum, conflicts_with_all = ["url", "subjects"])]
    pub(crate) tokens: Option<Algorithm>,
    /// Number of different tokens, shared evenly [default: one for each client]
    #[arg(long, requires = "tokens", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) principals: Option<u32>,
    /// Number of clients over HTTP/1.1
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: Option<u32>,
    /// Number of connections over HTTP/2 [default: 10; scenario million: 10,000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connections: Option<u32>,
    /// Clients on each HTTP/2 connection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) streams: u32,
    /// Distinct subjects, shared evenly by the clients
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) subjects: Option<u32>,
    /// Source of the events
    #[arg(long, value_enum, default_value = "jetstream")]
    pub(crate) source: Source,
    /// Storage of the missed events (scenario replay)
    #[arg(long, value_enum, default_value = "window")]
    pub(crate) from: From,
    /// Events that each client missed (scenario replay)
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) missed: u32,
    /// Maximum number of clients between connect and first byte
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connecting: Option<u32>,

    /// Events per second over all subjects (scenario saturate: in the first step)
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Seconds to publish for
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) seconds: Option<u16>,
    /// Number of events to publish, instead of --seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) events: Option<u64>,
    /// Bytes of each payload
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) size: u32,
    /// Content of each payload
    #[arg(long, value_enum, default_value = "padding")]
    pub(crate) payload: Content,
    /// Events that are published together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) burst: u64,

    /// Skip failed runs of targets other than the sidecar and the bare loop
    #[arg(skip)]
    pub(crate) forgiving: bool,

    /// Added by cargo
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

/// Cores of a comparison of servers.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Core for the servers that are compared [default: the first core of this process]
    #[arg(long, requires = "load_cpu")]
    pub(crate) server_cpu: Option<usize>,
    /// Core for clients, publisher, application and nats-server [default: the second core of this
    /// process]
    #[arg(long, requires = "server_cpu")]
    pub(crate) load_cpu: Option<usize>,
}

/// Command line without subcommands.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

impl Options {
    /// Returns the options of a measurement of servers that the load tool starts.
    pub(crate) fn spawning(options: &str) -> Fallible<Self> {
        let words = ["load", "--spawn"].into_iter();
        let words = words.chain(options.split_ascii_whitespace());
        Ok(Line::try_parse_from(words)?.options)
    }
}

impl Cores {
    /// Chooses the cores that the command line did not name, if there are two. Must run before this
    /// thread is pinned.
    pub(crate) fn choose(&mut self) -> Fallible<()> {
        if self.load_cpu.is_none()
            && let Some([server, load]) = machine::two_cores()?
        {
            (self.server_cpu, self.load_cpu) = (Some(server), Some(load));
        }
        Ok(())
    }
}
