//! Output of commands on standard output and standard error, which may be a closed pipe or a full
//! disk.
//!
//! `println!` and `eprintln!` panic in that case. Here a command with a closed pipe (`| head`) ends
//! silently, and a command that cannot write for another reason prints one line and fails.

use std::fmt::Display;
use std::io::{self, Write as _};

use super::exit::Exit;

/// Writes a line to standard error. A write error is ignored: nothing is left to report it to.
pub(super) fn complain(line: impl Display) {
    // One write: other processes cannot interleave with the line.
    io::stderr()
        .lock()
        .write_all(format!("{line}\n").as_bytes())
        .ok();
}

/// Writes all of the text to standard output and flushes.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    // Standard output buffers an unfinished line; its error would be lost at exit.
    out.flush()
}

/// Exit code after a write to standard output. A closed pipe counts as success.
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
