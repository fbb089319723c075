//! Signals as values: SIGTERM and SIGINT end the process, SIGHUP reloads the configuration.
//!
//! A dedicated thread waits for signals and forwards them into a bounded channel that `app` reads.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// Request that a signal makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
}

/// Installs the handlers and returns the requests. Call this first in the process: PID 1 has no
/// default action for signals.
///
/// # Errors
/// If the system cannot install the handlers or start the thread.
pub fn listen() -> io::Result<mpsc::Receiver<Request>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // 16: repeated Ctrl-C; a request that does not fit is a duplicate.
    let (sender, requests) = mpsc::channel(16);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let request = if signal == SIGHUP {
                    Request::Reload
                } else {
                    Request::End
                };
                if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(request) {
                    return;
                }
            }
        })?;
    Ok(requests)
}
