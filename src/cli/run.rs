//! `sidestream run`: the sidecar, from its file to its last signal.

use std::path::Path;

use super::Exit;
use crate::app::{self, StartError};
use crate::lifecycle::signals;
use crate::{config, telemetry};

pub(super) fn run(path: &Path) -> Exit {
    // First of all: as PID 1 a process has no default action for signals.
    let signals = match signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("sidestream: signals cannot be handled: {error}");
            return Exit::Internal;
        }
    };
    let loaded = match config::load(path) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage;
        }
    };
    telemetry::logs::init(&loaded.config.log);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), hash = loaded.content_hash, "starting");
    match app::run(path.to_owned(), loaded, signals) {
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
