//! Where a reader begins: what becomes of its last event id, per component.

use std::fmt;

use crate::sse::Component;

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Older than what the source retains.
    Expired,
    /// After the end of the source: it was restored from an older snapshot.
    Ahead,
    /// The source is another one now.
    Recreated,
    /// The core subjects of another process.
    Restarted,
    /// The client's id is none.
    Invalid,
    /// NATS lost core messages, or a hole in a source cannot be repaired.
    Upstream,
    /// The client was too slow.
    Slow,
    /// The client was too slow and got the newest of each subject.
    Conflated,
}

impl GapReason {
    /// The word in the gap event and in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Ahead => "ahead",
            Self::Recreated => "recreated",
            Self::Restarted => "restarted",
            Self::Invalid => "invalid",
            Self::Upstream => "upstream",
            Self::Slow => "slow",
            Self::Conflated => "conflated",
        }
    }

    /// From where the reader goes on: the oldest that is left, or what comes next.
    #[must_use]
    pub fn resume(self) -> &'static str {
        match self {
            Self::Expired | Self::Slow => "oldest",
            _ => "live",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Events that a reader can no longer be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// How many, where that is known.
    pub missed: Option<u64>,
}

/// Where a reader wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Live,
    /// After this position.
    After(Component),
    /// With what comes next, after being told that its position means nothing here.
    Lost(GapReason),
}

/// What becomes of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Begins with what comes next; nothing is missing.
    Live,
    /// Everything after its position is in memory.
    Window,
    /// Events are missing; the reader is told before anything else.
    Gap(Gap),
}

impl Outcome {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Window => "window",
            Self::Gap(_) => "gap",
        }
    }
}
