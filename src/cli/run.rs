//! `sidestream run`: the sidecar, from its file to its last signal.

use std::path::Path;
use std::time::Duration;

use super::Exit;
use super::output::complain;
use crate::app::{self, StartError};
use crate::lifecycle::signals;
use crate::{config, telemetry};

pub(super) fn run(path: &Path) -> Exit {
    // First of all: as PID 1 a process has no default action for signals.
    let signals = match signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(format_args!("sidestream: signals cannot be handled: {error}"));
            return Exit::Internal;
        }
    };
    let loaded = match config::load(path) {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(problems);
            return Exit::Usage;
        }
    };
    let grace = match grace() {
        Ok(grace) => grace,
        Err(why) => {
            complain(format_args!("sidestream: {GRACE}: {why}"));
            return Exit::Usage;
        }
    };
    telemetry::logs::init(&loaded.config.log);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), hash = loaded.content_hash, "starting");
    match app::run(path.to_owned(), loaded, signals, grace) {
        Ok(()) => Exit::Clean,
        Err(error) => {
            tracing::error!(%error, "could not start");
            match error {
                StartError::Configuration(_) => Exit::Usage,
                StartError::System(_) => Exit::Unavailable,
            }
        }
    }
}

/// The variable in which whoever starts the process says how long it may take to end: a pod's
/// `terminationGracePeriodSeconds`, which the pod itself cannot see.
const GRACE: &str = "SIDESTREAM_TERMINATION_GRACE_PERIOD";

fn grace() -> Result<Option<Duration>, &'static str> {
    let Some(text) = std::env::var_os(GRACE).filter(|text| !text.is_empty()) else { return Ok(None) };
    let text = text.to_str().ok_or("this is no text")?;
    // Seconds without a unit: so the manifest has them.
    match text.parse() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => config::duration(text).map(Some),
    }
}
