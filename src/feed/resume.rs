//! Rules of resuming: the outcome for each position of a `Last-Event-ID`.
//!
//! `decide` is a pure function of the client's position and a `View` of the source. It answers
//! with an outcome, or with the one question that has to be put to the archive first; `opening.rs`
//! asks it and calls again. In this order:
//!
//! 1. The tag differs: `recreated`.
//! 2. The position is outside of memory: ask the archive for its range. After its end: `ahead`.
//!    Before its oldest message: `expired`.
//! 3. The id has a fingerprint: compare it with the stored message at that sequence number.
//!    Different: `recreated`. A deleted message matches any fingerprint. An id of version 0.1 is
//!    compared in the 16 bits that it has.
//! 4. Otherwise the position is valid: the reader continues in the window, or in the archive.

use super::archive::State;
use super::begin::Begin;
use super::gap::{Gap, GapReason};
use crate::event::{Fingerprint, Position, SourceTag};

/// Requested start of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    Live,
    /// At a beginning that has to be located. Live in a source without an archive.
    Begin(Begin),
    /// After this position.
    After(Position),
    /// With the next event, after a gap: the client's position is not usable here.
    Unknown(GapReason),
}

/// Outcome of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Starts with the next event; nothing is missing.
    Live,
    /// Everything after its position is in memory.
    Window,
    /// Everything after its position is in the archive.
    Archive,
    /// Events are missing; the reader receives the gap first.
    Gap(Gap),
}

impl Outcome {
    /// All values of the metric label.
    pub const LABELS: [&str; 4] = ["live", "window", "archive", "gap"];

    /// Value of the metric label.
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

/// State of a source and of its memory, as seen from a client's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Tag of the source's event ids.
    pub(super) tag: SourceTag,
    /// Every event after this sequence number is in memory.
    pub(super) floor: u64,
    /// Newest sequence number that is in memory, or does not match.
    pub(super) head: u64,
    /// Range of the archive, if it was asked.
    pub(super) source: Option<State>,
    /// Fingerprint of the message at the position, if it is known.
    pub(super) fingerprint: StoredFingerprint,
}

/// Fingerprint of the message at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredFingerprint {
    /// Not known; the archive has not been asked.
    Unknown,
    /// There is no message, or it was deleted.
    Missing,
    /// Fingerprint of the stored message.
    Found(Fingerprint),
}

impl StoredFingerprint {
    /// Fingerprint of the stored message, if there is one and it is known.
    pub(super) fn found(self) -> Option<Fingerprint> {
        match self {
            Self::Found(fingerprint) => Some(fingerprint),
            Self::Unknown | Self::Missing => None,
        }
    }
}

/// Decision for one position of an event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The outcome is final.
    Outcome(Outcome),
    /// Ask the archive for its range.
    AskState,
    /// Ask the archive for the fingerprint of the message at the position.
    AskFingerprint,
}

/// Decides the start of a reader with the position `at`.
pub(super) fn decide(at: Position, view: &View) -> Decision {
    use GapReason::{Ahead, Expired, Recreated};
    let gap = |reason| Decision::Outcome(Outcome::Gap(Gap::uncounted(reason)));
    if at.tag != view.tag || view.source.is_some_and(|source| source.tag != view.tag) {
        return gap(Recreated);
    }
    // Within memory the archive need not be asked; outside, only the archive knows.
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
    match (at.fingerprint, view.fingerprint) {
        (Some(_), StoredFingerprint::Unknown) => return Decision::AskFingerprint,
        (Some(known), StoredFingerprint::Found(found)) if !known.agrees_with(found) => {
            return gap(Recreated);
        }
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

    fn at(seq: u64, fingerprint: Option<Fingerprint>) -> Position {
        Position {
            tag: SourceTag::of_identity("s"),
            seq,
            fingerprint,
        }
    }

    /// Fingerprint of a message. The short forms of `0x0001_0006` and 7 are equal.
    fn print(value: i128) -> Fingerprint {
        Fingerprint::of_publish_time(value)
    }

    /// In memory: 51 to 80. In the archive: 21 to 90.
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
            fingerprint: StoredFingerprint::Missing,
        }
    }

    fn outcome(at: Position, view: &View) -> &'static str {
        match decide(at, view) {
            Decision::Outcome(Outcome::Gap(gap)) => gap.reason.as_str(),
            Decision::Outcome(outcome) => outcome.as_str(),
            Decision::AskState => "ask state",
            Decision::AskFingerprint => "ask fingerprint",
        }
    }

    #[test]
    fn position_outcomes_follow_the_ranges_of_memory_and_archive() {
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
                    fingerprint: None
                },
                &view()
            ),
            "recreated"
        );
    }

    #[test]
    fn archive_is_asked_only_for_positions_outside_of_memory() {
        let known = View {
            source: None,
            fingerprint: StoredFingerprint::Found(print(7)),
            ..view()
        };
        assert_eq!(outcome(at(60, Some(print(7))), &known), "window");
        assert_eq!(outcome(at(60, Some(print(8))), &known), "recreated");
        let unknown = View {
            source: None,
            fingerprint: StoredFingerprint::Unknown,
            ..view()
        };
        assert_eq!(outcome(at(60, None), &unknown), "window");
        assert_eq!(outcome(at(60, Some(print(7))), &unknown), "ask fingerprint");
        assert_eq!(outcome(at(40, None), &unknown), "ask state");
        assert_eq!(outcome(at(85, None), &unknown), "ask state");
        assert_eq!(
            outcome(
                at(40, Some(print(7))),
                &View {
                    fingerprint: StoredFingerprint::Unknown,
                    ..view()
                }
            ),
            "ask fingerprint"
        );
    }

    #[test]
    fn deleted_message_matches_any_fingerprint() {
        assert_eq!(outcome(at(60, Some(print(7))), &view()), "window");
        assert_eq!(outcome(at(40, Some(print(7))), &view()), "archive");
    }

    #[test]
    fn id_of_version_0_1_is_compared_in_its_16_bits() {
        let known = View {
            fingerprint: StoredFingerprint::Found(print(7)),
            ..view()
        };
        let other = print(0x0001_0006);
        assert_eq!(outcome(at(60, Some(other)), &known), "recreated");
        assert_eq!(outcome(at(60, Some(other.to_short())), &known), "window");
        assert_eq!(
            outcome(at(40, Some(print(7).to_short())), &known),
            "archive"
        );
        assert_eq!(
            outcome(at(60, Some(print(8).to_short())), &known),
            "recreated"
        );
    }

    #[test]
    fn stream_recreated_before_the_tailer_noticed_is_reported() {
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
