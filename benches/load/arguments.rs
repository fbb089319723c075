//! Command line of the load tool: the options of one measurement, or a subcommand.

use clap::{Parser, Subcommand};

use crate::bare;
use crate::framings::Framings;
use crate::guard::Guard;
use crate::options::Options;
use crate::proxy::Proxy;
use crate::shards::Shards;
use crate::suite::Suite;

/// Measures a server of event streams: opens clients, publishes events through NATS, and reports
/// latencies, processor time and memory. Exits with 1 if an event is missing, duplicated or out of
/// order.
///
/// `--spawn` starts everything; `--url` measures a running server.
#[derive(Debug, Parser)]
#[command(name = "load", args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The bare send loop, started by `--target bare`
    #[command(hide = true)]
    Bare(bare::Options),
    /// Measures everything in docs/benchmarks.md: about forty minutes
    Suite(Suite),
    /// Compares the speed of two builds; exits 1 if the tree is slower
    Guard(Guard),
    /// Compares WebSocket and the other framings with Server-Sent Events: ten minutes
    Framings(Framings),
    /// Compares passed requests with `proxy_pass` of nginx: processor time and latency
    Proxy(Proxy),
    /// Compares the saturation of one shard and of two, with clients whose bytes the kernel discards
    Shards(Shards),
}
