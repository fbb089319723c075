//! A child process: started on its core, known by its log, stopped by its pid.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::machine;
use crate::Fallible;

/// A running child; killed when it is dropped without [`Child::stop`].
pub(crate) struct Child {
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command` on `core`. Its output goes to a file in `folder`: a pipe would have to be read all the time.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        core: Option<usize>,
        folder: &Path,
    ) -> Fallible<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let process = machine::on_core(core, || command.spawn())?;
        let program = command.get_program().to_string_lossy();
        Ok(Self {
            process: process.map_err(|error| format!("{program}: {error}"))?,
            log,
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The `address` field of the JSON line in its log whose message is `message`.
    pub(crate) async fn address(&mut self, message: &str) -> Fallible<SocketAddr> {
        let log = self.log.clone();
        self.wait_for(message, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().find_map(|line| address(line, message))
        })
        .await
    }

    /// Waits until `look` finds something; fails when the child ends or [`START_PATIENCE`] is over.
    pub(crate) async fn wait_for<T>(
        &mut self,
        what: &str,
        look: impl Fn() -> Option<T>,
    ) -> Fallible<T> {
        let deadline = tokio::time::Instant::now() + START_PATIENCE;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            self.check_running(what)?;
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "no `{what}` in {START_PATIENCE:?}; it said:\n{}",
                    self.last_words()
                )
                .into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Fails with the end of the log if the child has ended before `what`.
    pub(crate) fn check_running(&mut self, what: &str) -> Fallible<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(format!("{status} before `{what}`; it said:\n{}", self.last_words()).into())
            }
        }
    }

    /// SIGTERM, again after a while (a second one cuts a drain short), then SIGKILL.
    pub(crate) async fn stop(mut self) -> Fallible<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        for _ in 0..2 {
            if let Some(pid) = pid {
                kill_process(pid, Signal::TERM)?;
            }
            let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
            while tokio::time::Instant::now() < deadline {
                if self.process.try_wait()?.is_some() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        // Dropping kills.
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that is gone.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Fields of a log line stand beside the message, or all of them under `fields`.
fn address(line: &str, message: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")?.as_str()? != message {
        return None;
    }
    fields.get("address")?.as_str()?.parse().ok()
}

/// 20 s: a debug build that waits for a full stream to be read again.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// 3 s: what a drain without clients takes, and some.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
