//! Where a reader begins: what becomes of its last event id, per component.

use std::fmt;

use super::history::State;
use crate::sse::{Position, SourceTag};

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
    /// NATS rejects the replay until an operator changes something.
    Rejected,
    /// NATS lost core messages, or a hole in a source cannot be repaired.
    Upstream,
    /// The client was too slow.
    Slow,
    /// The client was too slow and got the newest of each subject.
    Conflated,
    /// A drain recorded the client's position, and it cannot resume from there: another connection of its name has, or
    /// NATS did not confirm that this one may.
    Claimed,
}

impl GapReason {
    /// Every reason, in the order of the variants.
    pub const ALL: [Self; 10] = [
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
    ];

    /// The word in the gap event and in metric labels.
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

impl Gap {
    /// One gap for two that follow each other with no event between.
    pub(super) fn and(self, next: Self) -> Self {
        if self.reason != next.reason {
            return Self {
                reason: GapReason::Expired,
                missed: None,
            };
        }
        let missed = self.missed.zip(next.missed).map(|(one, other)| one + other);
        Self {
            reason: self.reason,
            missed,
        }
    }
}

/// Where a reader wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Live,
    /// After this position.
    After(Position),
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
    /// Everything after its position is at the source still.
    Archive,
    /// Events are missing; the reader is told before anything else.
    Gap(Gap),
}

impl Outcome {
    /// Every value of the metric label.
    pub const LABELS: [&str; 4] = ["live", "window", "archive", "gap"];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Window => "window",
            Self::Archive => "archive",
            Self::Gap(_) => "gap",
        }
    }
}

/// Where a source and what is in memory of it stand, as seen by a reader with a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// The tag of the source's ids.
    pub(super) tag: SourceTag,
    /// Everything after this one is in memory.
    pub(super) floor: u64,
    /// The newest that is in memory, or is known not to concern it.
    pub(super) head: u64,
    /// What the source says of itself, if it was asked.
    pub(super) source: Option<State>,
    /// The check of the message at the position, if it is known or was asked for.
    pub(super) check: Check,
}

/// What is known of the message at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing; the source would have to be asked.
    Unknown,
    /// No message stands there (any more).
    Nothing,
    /// This one.
    Is(u16),
}

/// The answer for one component of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This becomes of it.
    Outcome(Outcome),
    /// The source has to be asked where it is.
    AskState,
    /// The source has to be asked for the message at the position.
    AskCheck,
}

/// What becomes of a reader that was at `at`: every rule of resuming is here.
pub(super) fn decide(at: Position, view: &View) -> Decision {
    use GapReason::{Ahead, Expired, Recreated};
    let gap = |reason| {
        Decision::Outcome(Outcome::Gap(Gap {
            reason,
            missed: None,
        }))
    };
    if at.tag != view.tag || view.source.is_some_and(|source| source.tag != view.tag) {
        return gap(Recreated);
    }
    // Inside of what is known here the source need not be asked; beyond it only the source knows.
    let inside = view.floor <= at.seq && at.seq <= view.head;
    if !inside {
        let Some(source) = view.source else {
            return Decision::AskState;
        };
        if at.seq > source.last_seq.max(view.head) {
            return gap(Ahead);
        }
        if at.seq.saturating_add(1) < source.first_seq {
            return gap(Expired);
        }
    }
    match (at.check, view.check) {
        (Some(_), Check::Unknown) => return Decision::AskCheck,
        (Some(known), Check::Is(found)) if known != found => return gap(Recreated),
        _ => {}
    }
    Decision::Outcome(if at.seq < view.floor {
        Outcome::Archive
    } else {
        Outcome::Window
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64, check: Option<u16>) -> Position {
        Position {
            tag: SourceTag::of_identity("s"),
            seq,
            check,
        }
    }

    /// In memory: 51 to 80. At the source: 21 to 90.
    fn view() -> View {
        let source = State {
            tag: SourceTag::of_identity("s"),
            first_seq: 21,
            last_seq: 90,
        };
        View {
            tag: SourceTag::of_identity("s"),
            floor: 50,
            head: 80,
            source: Some(source),
            check: Check::Nothing,
        }
    }

    fn outcome(at: Position, view: &View) -> &'static str {
        match decide(at, view) {
            Decision::Outcome(Outcome::Gap(gap)) => gap.reason.as_str(),
            Decision::Outcome(outcome) => outcome.as_str(),
            Decision::AskState => "ask state",
            Decision::AskCheck => "ask check",
        }
    }

    #[test]
    fn every_position_has_the_outcome_of_the_table() {
        for (seq, expected) in [
            (0, "expired"),
            (19, "expired"),
            (20, "archive"),
            (21, "archive"),
            (49, "archive"),
            (50, "window"),
            (80, "window"),
            (81, "window"),
            (90, "window"),
            (91, "ahead"),
            (u64::MAX, "ahead"),
        ] {
            assert_eq!(outcome(at(seq, None), &view()), expected, "{seq}");
        }
        assert_eq!(
            outcome(
                Position {
                    tag: SourceTag::of_identity("other"),
                    seq: 60,
                    check: None
                },
                &view()
            ),
            "recreated"
        );
    }

    #[test]
    fn the_source_is_asked_only_for_what_memory_does_not_know() {
        let known = View {
            source: None,
            check: Check::Is(7),
            ..view()
        };
        assert_eq!(outcome(at(60, Some(7)), &known), "window");
        assert_eq!(outcome(at(60, Some(8)), &known), "recreated");
        let unknown = View {
            source: None,
            check: Check::Unknown,
            ..view()
        };
        assert_eq!(outcome(at(60, None), &unknown), "window");
        assert_eq!(outcome(at(60, Some(7)), &unknown), "ask check");
        assert_eq!(outcome(at(40, None), &unknown), "ask state");
        assert_eq!(outcome(at(85, None), &unknown), "ask state");
        assert_eq!(
            outcome(
                at(40, Some(7)),
                &View {
                    check: Check::Unknown,
                    ..view()
                }
            ),
            "ask check"
        );
    }

    #[test]
    fn a_message_that_was_deleted_contradicts_nobody() {
        assert_eq!(outcome(at(60, Some(7)), &view()), "window");
        assert_eq!(outcome(at(40, Some(7)), &view()), "archive");
    }

    #[test]
    fn a_stream_that_was_recreated_since_the_tail_saw_it_is_told_at_once() {
        let source = State {
            tag: SourceTag::of_identity("new"),
            first_seq: 1,
            last_seq: 90,
        };
        assert_eq!(
            outcome(
                at(40, None),
                &View {
                    source: Some(source),
                    ..view()
                }
            ),
            "recreated"
        );
    }
}
