//! Beginning of a reader that has no position: with the first, a recent or the next event.
//!
//! The beginning is turned into a position once, when the reader opens (`opening::begin_at`); from there
//! on it is a reader that resumes at this position:
//!
//! ```text
//! Last(count) -> window has as many events -> position in the window
//! otherwise   -> Archive::locate           -> position: in the window, or read by a replay
//! ```
//!
//! The archive is asked by at most `limits.replays.running` readers of the process at the same time.
//! A reader that waits or asks counts as a reader of a replay (`limits.replays.queued`).

use std::num::NonZeroU64;
use std::time::SystemTime;

/// Beginning of a reader without a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest retained event.
    First,
    /// With the last event of each subject.
    Latest,
    /// With the first event that was published at this time or later.
    Since(SystemTime),
    /// With the last events, as many as this.
    Last(NonZeroU64),
}

impl Begin {
    /// Value of the metric label without a beginning: with the next event.
    pub const LIVE: &str = "live";

    /// All values of the metric label.
    pub const LABELS: [&str; 5] = [Self::LIVE, "first", "latest", "since", "last"];

    /// Value of the metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Latest => "latest",
            Self::Since(_) => "since",
            Self::Last(_) => "last",
        }
    }
}
