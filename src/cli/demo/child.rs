//! Child process of the demo, with its log and its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{self, Command};
use tokio::time::timeout;

use super::failure::Failure;

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
            |error: std::io::Error| Failure::internal(format!("cannot start {name}: {error}"));
        let out = File::create(log).map_err(cannot)?;
        let err = out.try_clone().map_err(cannot)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // A process group of its own: Ctrl-C signals the whole group of the terminal, and NATS
            // would exit before the sidecar has drained.
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

    /// Returns when the process has exited: a message with its status and the end of its log.
    pub(super) async fn died(&mut self) -> String {
        let how = match self.process.wait().await {
            Ok(status) => format!("{} exited unexpectedly ({status})", self.name),
            Err(error) => format!("cannot wait for {}: {error}", self.name),
        };
        how + &last_lines(&self.log)
    }

    /// Sends SIGTERM, waits for `stop_timeout`, then kills the process. Returns when it has exited.
    pub(super) async fn end(mut self, stop_timeout: Duration) {
        let Some(pid) = self
            .process
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        else {
            return;
        };
        // An error means that the process has exited already.
        kill_process(pid, Signal::TERM).ok();
        if timeout(stop_timeout, self.process.wait()).await.is_err() {
            self.process.kill().await.ok();
        }
    }
}

/// Last lines of a log, indented; empty if the log is missing.
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

/// Enough lines for a panic or a list of configuration problems.
const LINES_SHOWN: usize = 15;
