//! `sidestream revoke`: revokes credentials on all pods until a time.

use std::path::PathBuf;
use std::time::Duration;

use super::exit::Exit;
use super::output::{exit_of, print};
use super::revocation::write;
use crate::auth::revocations::Kind;
use crate::config;

/// Arguments of `revoke`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    value: Value,
    /// Time until the revocation ends; must be longer than tokens live
    #[arg(long = "for", value_name = "DURATION", default_value = "24h", value_parser = config::duration)]
    valid_for: Duration,
    /// The configuration file of the sidecar, for its connection to NATS and its bucket [default:
    /// sidecar.yaml, else /etc/sidestream/sidecar.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Value {
    /// Every token of this subject that was issued until now
    #[arg(long, value_name = "SUBJECT")]
    sub: Option<String>,
    /// One token, by its claim `jti`
    #[arg(long, value_name = "ID")]
    jti: Option<String>,
    /// Every token of one session, by the claim `sid`
    #[arg(long, value_name = "ID")]
    sid: Option<String>,
    /// Every token of a client that was issued until now; its name, as in /connections
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
}

impl Value {
    fn get(&self) -> Option<(Kind, &str)> {
        let values = [
            (Kind::Sub, &self.sub),
            (Kind::Jti, &self.jti),
            (Kind::Sid, &self.sid),
            (Kind::Client, &self.client),
        ];
        values
            .into_iter()
            .find_map(|(kind, value)| Some((kind, value.as_deref()?)))
    }
}

pub(super) fn run(arguments: &Args) -> Exit {
    // clap requires one.
    let Some((kind, value)) = arguments.value.get() else {
        return Exit::Usage;
    };
    let config = arguments.config.as_deref();
    match write(config, kind, value, arguments.valid_for) {
        Ok(written) => exit_of(print(&format!(
            "revoked {} {value} until {} (bucket {})\n",
            kind.as_str(),
            written.until,
            written.bucket
        ))),
        Err(exit) => exit,
    }
}
