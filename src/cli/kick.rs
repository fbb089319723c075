//! `sidestream kick`: ends the open event streams of a client once, on all pods.

use std::path::PathBuf;
use std::time::Duration;

use super::exit::Exit;
use super::output::{exit_of, print};
use super::revocation::write;
use crate::auth::revocations::Kind;

/// One minute: pods whose connection to NATS is interrupted for less still end the event streams.
const VALID_FOR: Duration = Duration::from_secs(60);

/// Arguments of `kick`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the client, as in /connections
    #[arg(long, value_name = "NAME")]
    client: String,
    /// The configuration file of the sidecar, for its connection to NATS and its bucket [default:
    /// sidecar.yaml, else /etc/sidestream/sidecar.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Args) -> Exit {
    let client = &arguments.client;
    match write(arguments.config.as_deref(), Kind::Kick, client, VALID_FOR) {
        Ok(written) => exit_of(print(&format!(
            "kicked client {client} (bucket {}): its open event streams end, and it may return\n",
            written.bucket
        ))),
        Err(exit) => exit,
    }
}
