//! Positions with which clients open, and the outcomes that are right for them.

use fastrand::Rng;
use sidestream::event::{Fingerprint, Position, SourceTag};
use sidestream::feed::{GapReason, Outcome, Start};

use super::pod::{Kind, Pod};
use super::source::{self, Fate, Shared, lock};

/// Returns a start: live, after the last event of a client that has left, or invented.
pub(crate) fn start(rng: &mut Rng, source: &Shared, left: &[Position]) -> Start {
    match rng.u8(..20) {
        0..4 => Start::Live,
        4 => Start::Unknown(GapReason::Invalid),
        5 => Start::After(Position {
            tag: SourceTag::of_identity("other"),
            seq: rng.u64(..50),
            fingerprint: None,
        }),
        6 => Start::After(Position {
            tag: lock(source).tag,
            seq: rng.u64(..100),
            fingerprint: Some(Fingerprint::of_publish_time(rng.u16(..).into())),
        }),
        _ if left.is_empty() => Start::Live,
        _ => Start::After(as_version_0_1(left[rng.usize(..left.len())])),
    }
}

/// Returns the position as an id of version 0.1 carries it, for every fourth sequence number.
fn as_version_0_1(at: Position) -> Position {
    Position {
        fingerprint: at.fingerprint.map(|fingerprint| {
            if at.seq.is_multiple_of(4) {
                fingerprint.to_short()
            } else {
                fingerprint
            }
        }),
        ..at
    }
}

/// Asserts the outcome for a position. `is_memory_whole`: everything since the start of the epoch is
/// in memory.
pub(crate) fn assert_outcome(
    pod: &Pod,
    at: Position,
    outcome: Outcome,
    has_archive: bool,
    is_memory_whole: bool,
) {
    let source = lock(&pod.source);
    let is_tag_known = at.tag == pod.tag && (!has_archive || pod.tag == source.tag);
    let is_other = |fingerprint: Option<Fingerprint>| {
        at.fingerprint
            .zip(fingerprint)
            .is_some_and(|(one, other)| !one.agrees_with(other))
    };
    let written = pod.history.iter().rev().find(|entry| {
        entry.epoch == pod.epoch
            && entry.position.seq == at.seq
            && matches!(entry.kind, Kind::Event { .. })
    });
    let written = written.and_then(|entry| entry.position.fingerprint);
    let stored = source
        .records
        .get(&at.seq)
        .filter(|one| one.fate == Fate::Kept && pod.tag == source.tag);
    let stored = stored.map(|one| source::fingerprint(one.content));
    let last = source.last_seq.max(pod.head);
    match outcome {
        Outcome::Live => panic!("{at} is not a live start"),
        Outcome::Window | Outcome::Archive => {
            assert_eq!(at.tag, pod.tag, "an id of another source was accepted");
            assert!(
                !(has_archive && is_other(stored)),
                "{at} is another message"
            );
            assert!(
                !has_archive || at.seq <= last,
                "{at} is ahead of the source"
            );
            assert!(has_archive || outcome == Outcome::Window);
        }
        Outcome::Gap(gap) => match gap.reason {
            GapReason::Recreated => {
                assert!(
                    !is_tag_known || is_other(written) || is_other(stored),
                    "{at} is known"
                );
            }
            GapReason::Ahead => assert!(at.seq > last, "{at} is not ahead of {last}"),
            GapReason::Expired if has_archive => {
                assert!(at.seq + 1 < source.first_seq, "{at} is retained")
            }
            GapReason::Expired => {
                let is_inside = pod.floor <= at.seq && at.seq <= pod.head;
                assert!(!(is_inside && is_memory_whole), "{at} is in memory");
            }
            _ => panic!("{at}: {gap:?}"),
        },
    }
}
