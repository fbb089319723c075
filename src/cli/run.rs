//! `sidestream run`: loads the configuration, starts logging and runs the sidecar until a signal.
//!
//! Signal handlers are installed first and stay usable while the file is read, which happens on a
//! thread of its own: a large file takes a second, and a pipe without a writer never ends.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::exit::Exit;
use super::output::complain;
use crate::app::{self, StartError};
use crate::config::{Loaded, Problems};
use crate::lifecycle::signals::{self, Request};
use crate::{config, telemetry};

pub(super) fn run(path: &Path) -> Exit {
    // Must be first: PID 1 has no default action for signals.
    let mut signals = match signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(format_args!(
                "sidestream: cannot install signal handlers: {error}"
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
                "sidestream: cannot read the configuration: {error}"
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
            tracing::error!(%error, "cannot start");
            match error {
                StartError::Configuration(_) => Exit::Usage,
                StartError::System(_) => Exit::Unavailable,
            }
        }
    }
}

/// Loads the file on a thread of its own. Returns `None` if a signal ends the process first.
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
            // The receiver is dropped if a signal ends the process first.
            drop(done.send(config::load(&path)));
        })?;
    runtime.block_on(async {
        let mut loaded = std::pin::pin!(loaded);
        loop {
            tokio::select! {
                biased;
                request = signals.recv() => match request {
                    // The file is being read already.
                    Some(Request::Reload) => {}
                    Some(Request::End) | None => return Ok(None),
                },
                loaded = &mut loaded => return loaded.map(Some).map_err(io::Error::other),
            }
        }
    })
}

/// Environment variable with the pod's `terminationGracePeriodSeconds`, which a container cannot
/// read from inside.
const GRACE: &str = "SIDESTREAM_TERMINATION_GRACE_PERIOD";

fn grace() -> Result<Option<Duration>, &'static str> {
    let Some(text) = std::env::var_os(GRACE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_str().ok_or("not valid UTF-8")?;
    // A number without a unit is seconds, as in the manifest.
    match text.parse() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => config::duration(text).map(Some),
    }
}
