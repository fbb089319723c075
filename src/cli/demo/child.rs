//! One program that the demo started: its process, its log, its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{self, Command};
use tokio::time::timeout;

use super::Failure;

/// A child process. Dropping it kills it.
pub(super) struct Child {
    name: &'static str,
    process: process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command` with both its outputs in the file `log`.
    pub(super) fn spawn(
        name: &'static str,
        mut command: Command,
        log: &Path,
    ) -> Result<Self, Failure> {
        let cannot =
            |error: std::io::Error| Failure::internal(format!("{name} cannot be started: {error}"));
        let out = File::create(log).map_err(cannot)?;
        let err = out.try_clone().map_err(cannot)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // A group of its own: Ctrl-C in a terminal signals our whole group, and NATS would be gone before the
            // sidecar has drained.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        Ok(Self {
            name,
            process,
            log: log.to_owned(),
        })
    }

    /// Resolves when the process has ended, with a sentence that says how, and the end of its log.
    pub(super) async fn died(&mut self) -> String {
        let how = match self.process.wait().await {
            Ok(status) => format!("{} ended by itself ({status})", self.name),
            Err(error) => format!("{} cannot be waited for: {error}", self.name),
        };
        how + &last_lines(&self.log)
    }

    /// Asks the process to end (SIGTERM), gives it `patience`, then kills it. Returns when it is gone.
    pub(super) async fn end(mut self, patience: Duration) {
        let Some(pid) = self
            .process
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        else {
            return;
        };
        // A process that has ended already is what we want; nothing else can be done about an error here.
        kill_process(pid, Signal::TERM).ok();
        if timeout(patience, self.process.wait()).await.is_err() {
            self.process.kill().await.ok();
        }
    }
}

/// The end of a log, indented, below a headline; nothing if there is none.
pub(super) fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES_SHOWN);
    lines[from..]
        .iter()
        .map(|line| format!("\n  | {line}"))
        .collect()
}

/// Enough for a panic or a list of configuration problems, little enough to read.
const LINES_SHOWN: usize = 15;
