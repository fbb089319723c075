//! Child process of a test: output is kept, signals are sent by pid, dropping the handle ends it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// Maximum number of lines that are kept, so that a runaway child cannot fill the memory. Tests log
/// far fewer.
const LINES_MAX: usize = 200_000;

/// Number of lines that are printed when a test fails.
const LINES_SHOWN: usize = 150;

/// Treatment of the output of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Read line by line.
    Read,
    /// Not read: the pipe fills.
    Left,
    /// Not read: the pipe is closed.
    Closed,
}

/// Set by the test; the threads that read the output wait for changes.
type Reading = Arc<(Mutex<Output>, Condvar)>;

/// Running child. Dropping it kills and reaps the process, and prints its last output if the test
/// is failing.
pub struct Process {
    name: String,
    child: Child,
    exit: Option<ExitStatus>,
    lines: Arc<Mutex<Vec<String>>>,
    reading: Reading,
}

impl Process {
    /// Starts `command` without stdin and with stdout and stderr captured line by line.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reading: Reading = Arc::new((Mutex::new(Output::Read), Condvar::new()));
        keep_lines(child.stdout.take(), &lines, &reading);
        keep_lines(child.stderr.take(), &lines, &reading);
        Self {
            name: name.to_owned(),
            child,
            exit: None,
            lines,
            reading,
        }
    }

    /// Changes the treatment of the output, from the line after the next on.
    pub fn set_output(&self, output: Output) {
        *self.reading.0.lock().unwrap() = output;
        self.reading.1.notify_all();
    }

    /// Process id, for reading `/proc`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All output until now, stdout and stderr together.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Calls `read` with the lines from index `from` on, without a copy.
    pub fn scan<T>(&self, from: usize, read: impl FnOnce(&[String]) -> T) -> T {
        let lines = self.lines.lock().unwrap();
        read(lines.get(from..).unwrap_or_default())
    }

    /// Exit status, if the child has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().unwrap();
        }
        self.exit
    }

    /// Sends a signal, unless the child has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal)
                .unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// Sends SIGKILL and reaps the process.
    pub fn kill9(&mut self) {
        if self.exited().is_none() {
            self.signal(Signal::KILL);
            self.exit = Some(self.child.wait().unwrap());
        }
    }

    /// Waits for the end of the child.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let fact = format!("{} has ended", self.name);
        let mut status = None;
        eventually(deadline, &fact, || {
            status = self.exited();
            std::future::ready(status)
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.is_none() {
            // Not `kill9`: it may panic, and a panic in `drop` aborts the whole test binary.
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
        if std::thread::panicking() {
            let lines = self
                .lines
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let skipped = lines.len().saturating_sub(LINES_SHOWN);
            eprintln!("--- last output of {} ({skipped} lines before)", self.name);
            lines
                .iter()
                .skip(skipped)
                .for_each(|line| eprintln!("{line}"));
        }
    }
}

fn keep_lines(
    output: Option<impl Read + Send + 'static>,
    lines: &Arc<Mutex<Vec<String>>>,
    reading: &Reading,
) {
    let Some(output) = output else { return };
    let (lines, reading) = (Arc::clone(lines), Arc::clone(reading));
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        // Bytes instead of `lines()`: a line that is not UTF-8 must not end the capture and block
        // the child.
        while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let mut lines = lines.lock().unwrap();
            if lines.len() < LINES_MAX {
                lines.push(text);
            }
            line.clear();
            let (now, changed) = &*reading;
            let now = changed
                .wait_while(now.lock().unwrap(), |now| *now == Output::Left)
                .unwrap();
            if *now == Output::Closed {
                return;
            }
        }
    });
}
