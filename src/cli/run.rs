//! `sidestream run`: the sidecar, from its file to its last signal.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Exit;
use super::output::complain;
use crate::app::{self, StartError};
use crate::config::{Loaded, Problems};
use crate::lifecycle::signals::{self, Request};
use crate::{config, telemetry};

pub(super) fn run(path: &Path) -> Exit {
    // First of all: as PID 1 a process has no default action for signals.
    let mut signals = match signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(format_args!(
                "sidestream: signals cannot be handled: {error}"
            ));
            return Exit::Internal;
        }
    };
    let loaded = match load(path, &mut signals) {
        Ok(Some(Ok(loaded))) => loaded,
        Ok(Some(Err(problems))) => {
            complain(problems);
            return Exit::Usage;
        }
        Ok(None) => return Exit::Clean,
        Err(error) => {
            complain(format_args!(
                "sidestream: the configuration cannot be read: {error}"
            ));
            return Exit::Internal;
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

/// Loads the file on a thread of its own; nothing if a signal ends the process first. A large file takes a second, and a
/// pipe without a writer never ends.
fn load(
    path: &Path,
    signals: &mut mpsc::Receiver<Request>,
) -> io::Result<Option<Result<Loaded, Problems>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (done, loaded) = oneshot::channel();
    let path = path.to_owned();
    std::thread::Builder::new()
        .name("config".into())
        .spawn(move || {
            // The other end is gone when the process ends.
            drop(done.send(config::load(&path)));
        })?;
    runtime.block_on(async {
        let mut loaded = std::pin::pin!(loaded);
        loop {
            tokio::select! {
                biased;
                request = signals.recv() => match request {
                    // It is being read.
                    Some(Request::Reload) => {}
                    Some(Request::End) | None => return Ok(None),
                },
                loaded = &mut loaded => return loaded.map(Some).map_err(io::Error::other),
            }
        }
    })
}

/// The variable in which whoever starts the process says how long it may take to end: a pod's
/// `terminationGracePeriodSeconds`, which the pod itself cannot see.
const GRACE: &str = "SIDESTREAM_TERMINATION_GRACE_PERIOD";

fn grace() -> Result<Option<Duration>, &'static str> {
    let Some(text) = std::env::var_os(GRACE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_str().ok_or("this is no text")?;
    // Seconds without a unit: so the manifest has them.
    match text.parse() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => config::duration(text).map(Some),
    }
}
