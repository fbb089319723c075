//! State that the admin shows, and the channel for its commands.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::access::Token;
use super::tap::Taps;
use crate::lifecycle::health::Health;
use crate::lifecycle::phase::Progress;
use crate::presence::StreamTable;
use crate::telemetry::Metrics;

/// State that the admin shows, and the channel for its commands.
pub struct Parts {
    /// Name of this pod.
    pub pod: String,
    /// The checks.
    pub health: Health,
    /// The metrics. The admin adds its own samplers.
    pub metrics: Arc<Metrics>,
    /// Open event streams.
    pub streams: StreamTable,
    /// Progress of the drain.
    pub drain: watch::Receiver<Progress>,
    /// Body of `/config`: the effective configuration with masked secrets, and the last reload.
    pub config: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Token of the protected pages.
    pub token: Token,
    /// Routes whose events the page can show.
    pub taps: Box<dyn Taps>,
    /// Receives the commands of the control socket.
    pub commands: mpsc::Sender<Command>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

/// Command for the application.
#[derive(Debug)]
pub enum Command {
    /// Reads the configuration again.
    Reload {
        /// Receives the outcome.
        outcome: oneshot::Sender<Outcome>,
    },
    /// Starts a drain. A second command joins the running drain.
    Drain {
        /// Receives the outcome when the drain has started.
        outcome: oneshot::Sender<Outcome>,
    },
}

/// Outcome of a command; the error is a sentence for people.
pub type Outcome = Result<(), String>;
