//! Situations that the simulation has to reach: a run that reaches none of one kind proves nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use sidestream::feed::GapReason;

/// One kind of situation of an event stream.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub(crate) enum Case {
    DirectWrite,
    DirectWriteInPart,
    DirectWriteRefused,
    TaskWrite,
    TaskWriteInPart,
    TaskWriteRefused,
    LeftWithBytesInTheSidecar,
    LeftWithHalfAnEvent,
    Http10,
    Ndjson,
    ReadOfTheArchive,
    Rejection,
    Expired,
    Recreated,
    Upstream,
    Slow,
    Conflated,
    ClosedByDrain,
    ClosedByAge,
    ClosedAsSlow,
    ClosedByUpstream,
    Cut,
    EndWithoutLastChunk,
}

impl Case {
    const ALL: [Self; 23] = [
        Self::DirectWrite,
        Self::DirectWriteInPart,
        Self::DirectWriteRefused,
        Self::TaskWrite,
        Self::TaskWriteInPart,
        Self::TaskWriteRefused,
        Self::LeftWithBytesInTheSidecar,
        Self::LeftWithHalfAnEvent,
        Self::Http10,
        Self::Ndjson,
        Self::ReadOfTheArchive,
        Self::Rejection,
        Self::Expired,
        Self::Recreated,
        Self::Upstream,
        Self::Slow,
        Self::Conflated,
        Self::ClosedByDrain,
        Self::ClosedByAge,
        Self::ClosedAsSlow,
        Self::ClosedByUpstream,
        Self::Cut,
        Self::EndWithoutLastChunk,
    ];

    /// Case of a gap inside an event stream.
    pub(crate) fn of_gap(reason: GapReason) -> Option<Self> {
        match reason {
            GapReason::Expired => Some(Self::Expired),
            GapReason::Recreated => Some(Self::Recreated),
            GapReason::Upstream => Some(Self::Upstream),
            GapReason::Slow => Some(Self::Slow),
            GapReason::Conflated => Some(Self::Conflated),
            _ => None,
        }
    }

    /// Case of the reason in a close event.
    pub(crate) fn of_close(reason: &str) -> Self {
        match reason {
            "drain" => Self::ClosedByDrain,
            "age" => Self::ClosedByAge,
            "slow" => Self::ClosedAsSlow,
            "upstream" => Self::ClosedByUpstream,
            _ => panic!("unknown reason {reason}"),
        }
    }
}

static COUNTS: [AtomicU64; Case::ALL.len()] = [const { AtomicU64::new(0) }; Case::ALL.len()];

pub(crate) fn reach(case: Case) {
    COUNTS[case as usize].fetch_add(1, Ordering::Relaxed);
}

/// Asserts that every situation was reached, and prints how often.
pub(crate) fn assert_complete() {
    let counts = Case::ALL.map(|case| (case, COUNTS[case as usize].load(Ordering::Relaxed)));
    println!("{counts:?}");
    for (case, count) in counts {
        assert!(count > 0, "{case:?} was never reached");
    }
}
