//! Text for people and scripts on standard output and standard error, which may be a closed pipe or a full disk.
//!
//! `println!` and `eprintln!` panic then. Here a command whose reader has left (`| head`) ends without a word, and a
//! command whose output cannot be written says so in one line and fails.

use std::fmt::Display;
use std::io::{self, Write as _};

use super::Exit;

/// Writes a line to standard error. An error is ignored: there is no place left to report it.
pub(super) fn complain(line: impl Display) {
    // In one write: a line is not torn by those of other processes.
    io::stderr()
        .lock()
        .write_all(format!("{line}\n").as_bytes())
        .ok();
}

/// Writes to standard output, to the last byte.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    // Standard output keeps an unfinished line back, and its error would be lost at the exit.
    out.flush()
}

/// The exit code after a write to standard output. A reader that has left is no failure.
pub(super) fn exit_of(printed: io::Result<()>) -> Exit {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(format_args!(
                "sidestream: cannot write to standard output: {error}"
            ));
            Exit::Internal
        }
        Ok(()) | Err(_) => Exit::Clean,
    }
}
