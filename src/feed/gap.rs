//! Gap: events that a client does not receive, reported in-band.

use std::fmt;

/// Reason for missing events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Older than the retention of the source.
    Expired,
    /// After the end of the source: it was restored from an older snapshot.
    Ahead,
    /// The source was recreated.
    Recreated,
    /// The position is of core subjects, numbered by another process.
    Restarted,
    /// The client sent an invalid event id.
    Invalid,
    /// NATS rejects the replay until an operator changes something.
    Rejected,
    /// NATS lost core messages, or a loss in a republished stream cannot be repaired.
    Upstream,
    /// The client was too slow.
    Slow,
    /// The client was too slow and received only the newest event per subject.
    Conflated,
    /// A drain recorded the client's position and it cannot resume from there: another connection
    /// of its name has, or NATS did not confirm the claim.
    Claimed,
    /// The payload has no conversion to the version that the client asks for, or it failed.
    Conversion,
    /// The payload does not match its JSON Schema.
    Schema,
}

impl GapReason {
    /// All reasons, in the order of the variants.
    pub const ALL: [Self; 12] = [
        Self::Expired,
        Self::Ahead,
        Self::Recreated,
        Self::Restarted,
        Self::Invalid,
        Self::Rejected,
        Self::Upstream,
        Self::Slow,
        Self::Conflated,
        Self::Claimed,
        Self::Conversion,
        Self::Schema,
    ];

    /// Value in gap events and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Ahead => "ahead",
            Self::Recreated => "recreated",
            Self::Restarted => "restarted",
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
            Self::Upstream => "upstream",
            Self::Slow => "slow",
            Self::Conflated => "conflated",
            Self::Claimed => "claimed",
            Self::Conversion => "conversion",
            Self::Schema => "schema",
        }
    }

    /// Resume point after the gap: the oldest event that is left, or the next one.
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

/// Events that a reader does not receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Reason.
    pub reason: GapReason,
    /// Number of events, if known.
    pub missed: Option<u64>,
}

impl Gap {
    /// Gap of one event.
    #[must_use]
    pub const fn one(reason: GapReason) -> Self {
        Self {
            reason,
            missed: Some(1),
        }
    }

    /// Gap with an unknown number of events.
    #[must_use]
    pub const fn uncounted(reason: GapReason) -> Self {
        Self {
            reason,
            missed: None,
        }
    }

    /// Merges two gaps with no event between them.
    pub(super) fn and(self, next: Self) -> Self {
        if self.reason != next.reason {
            return Self::uncounted(GapReason::Expired);
        }
        let missed = self.missed.zip(next.missed).map(|(one, other)| one + other);
        Self {
            reason: self.reason,
            missed,
        }
    }
}
