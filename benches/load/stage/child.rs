//! A child process: started on a core, observed through its log, stopped by its pid.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::machine;
use crate::Fallible;

/// Running child process. Dropping it without [`Child::stop`] kills it.
pub(crate) struct Child {
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command` on `core`. Its output goes to a file in `folder`.
    ///
    /// A pipe would have to be read all the time.
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

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the JSON log line with this message, and returns its `address` field.
    pub(crate) async fn address(&mut self, message: &str) -> Fallible<SocketAddr> {
        let log = self.log.clone();
        self.wait_for(message, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().find_map(|line| address(line, message))
        })
        .await
    }

    /// Waits until `find` returns something. Fails if the child ends, or after [`START_TIMEOUT`].
    pub(crate) async fn wait_for<T>(
        &mut self,
        what: &str,
        find: impl Fn() -> Option<T>,
    ) -> Fallible<T> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            self.check_running(what)?;
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "no `{what}` in {START_TIMEOUT:?}; its log ends with:\n{}",
                    self.log_end()
                )
                .into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Fails with the end of the log if the child has ended before `what`.
    pub(crate) fn check_running(&mut self, what: &str) -> Fallible<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!(
                "{status} before `{what}`; its log ends with:\n{}",
                self.log_end()
            )
            .into()),
        }
    }

    /// Stops the child: SIGTERM, a second SIGTERM that cuts a drain short, then SIGKILL.
    pub(crate) async fn stop(mut self) -> Fallible<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        for _ in 0..2 {
            if let Some(pid) = pid {
                kill_process(pid, Signal::TERM)?;
            }
            let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
            while tokio::time::Instant::now() < deadline {
                if self.process.try_wait()?.is_some() {
                    return Ok(());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        // Dropping the child kills it.
        Ok(())
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if the process has ended.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Returns the address of a log line. Its fields are at the top level, or under `fields`.
fn address(line: &str, message: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")?.as_str()? != message {
        return None;
    }
    fields.get("address")?.as_str()?.parse().ok()
}

/// 20 s: a debug build that reads a full stream before it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// 3 s: the duration of a drain without clients, and a margin.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
