//! The process's signals as values: SIGTERM and SIGINT end it, SIGHUP reads the configuration again.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
}

/// Installs the handlers and returns what they hear. To be called first in the process: as PID 1 it has no default
/// action for signals.
///
/// # Errors
/// When the system refuses the handlers or the thread that waits for them.
pub fn listen() -> io::Result<mpsc::Receiver<Request>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // 16: a person with a finger on Ctrl-C; what does not fit was said already.
    let (heard, requests) = mpsc::channel(16);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let request = if signal == SIGHUP {
                    Request::Reload
                } else {
                    Request::End
                };
                if let Err(mpsc::error::TrySendError::Closed(_)) = heard.try_send(request) {
                    return;
                }
            }
        })?;
    Ok(requests)
}
