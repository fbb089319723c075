//! Where a tailer begins or goes on, decided from the state of the stream alone: pure.

use std::time::Duration;

use crate::feed::{GapReason, Limits};
use crate::nats::jetstream::api::StreamState;

/// How far a tailer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nats) struct Known {
    /// The creation time of the stream that it followed.
    pub(in crate::nats) created: i128,
    /// Whether a configured identity says that numbers go on when the stream was created anew.
    pub(in crate::nats) has_identity: bool,
    /// The last sequence that it passed.
    pub(in crate::nats) head: u64,
    /// The check of the message at the last event, and what JetStream holds there now.
    pub(in crate::nats) is_content_known: bool,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nats) enum Start {
    /// With the recent past: from this sequence on, and not before this time (unix nanoseconds).
    Recent { first: u64, since: Option<i128> },
    /// Directly behind what was passed.
    Onward { first: u64 },
    /// Events are missing: some expired while we were away.
    Behind { first: u64, missed: u64 },
    /// The numbers mean other messages now: from the present end on.
    Anew { head: u64, reason: GapReason },
}

/// The latest of the stream's first message, so many events before its last, and so long ago.
pub(in crate::nats) fn recent(state: &StreamState, window: Limits, now: i128) -> Start {
    let events = u64::try_from(window.events).unwrap_or(u64::MAX);
    let first = state
        .first_seq
        .max((state.last_seq + 1).saturating_sub(events));
    let since = now - nanos(window.age);
    if state.last_seq < first || state.last_time < since {
        return Start::Recent {
            first: state.last_seq + 1,
            since: None,
        };
    }
    Start::Recent {
        first,
        since: (state.first_time < since).then_some(since),
    }
}

/// Where a tailer goes on that has come so far.
pub(in crate::nats) fn onward(
    state: &StreamState,
    known: Known,
    window: Limits,
    now: i128,
) -> Start {
    let is_same = state.created == known.created || known.has_identity;
    if !is_same {
        return recent(state, window, now);
    }
    if known.head > state.last_seq {
        // Restored from an older snapshot, or an unsynced tail was lost.
        return Start::Anew {
            head: state.last_seq,
            reason: GapReason::Ahead,
        };
    }
    if !known.is_content_known {
        return Start::Anew {
            head: state.last_seq,
            reason: GapReason::Recreated,
        };
    }
    if known.head + 1 < state.first_seq {
        return Start::Behind {
            first: state.first_seq,
            missed: state.first_seq - known.head - 1,
        };
    }
    Start::Onward {
        first: known.head + 1,
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::jetstream::api::Retention;

    const SECOND: i128 = 1_000_000_000;

    fn stream(first_seq: u64, last_seq: u64) -> StreamState {
        StreamState {
            created: 7,
            first_seq,
            last_seq,
            first_time: 100 * SECOND,
            last_time: 200 * SECOND,
            subjects: Vec::new(),
            retention: Retention::Limits,
            republish: None,
            unservable: None,
        }
    }

    fn window(events: usize, seconds: u64) -> Limits {
        Limits {
            events,
            bytes: 1,
            age: Duration::from_secs(seconds),
        }
    }

    fn known(head: u64) -> Known {
        Known {
            created: 7,
            has_identity: false,
            head,
            is_content_known: true,
        }
    }

    #[test]
    fn a_tailer_begins_at_the_latest_of_first_message_events_and_age() {
        let at = |state: &StreamState, window, now| recent(state, window, now * SECOND);
        assert_eq!(
            at(&stream(5, 50), window(1000, 1000), 201),
            Start::Recent {
                first: 5,
                since: None
            }
        );
        assert_eq!(
            at(&stream(5, 50), window(10, 1000), 201),
            Start::Recent {
                first: 41,
                since: None
            }
        );
        assert_eq!(
            at(&stream(5, 50), window(10, 50), 201),
            Start::Recent {
                first: 41,
                since: Some(151 * SECOND)
            }
        );
        assert_eq!(
            at(&stream(5, 50), window(10, 50), 300),
            Start::Recent {
                first: 51,
                since: None
            }
        );
        assert_eq!(
            at(&stream(51, 50), window(10, 50), 201),
            Start::Recent {
                first: 51,
                since: None
            }
        );
        assert_eq!(
            at(&stream(1, 0), window(10, 50), 201),
            Start::Recent {
                first: 1,
                since: None
            }
        );
    }

    #[test]
    fn a_tailer_goes_on_behind_what_it_passed() {
        let at = |state: StreamState, known| onward(&state, known, window(10, 1000), 201 * SECOND);
        assert_eq!(at(stream(5, 50), known(50)), Start::Onward { first: 51 });
        assert_eq!(at(stream(5, 50), known(4)), Start::Onward { first: 5 });
        assert_eq!(
            at(stream(5, 50), known(3)),
            Start::Behind {
                first: 5,
                missed: 1
            }
        );
        assert_eq!(
            at(stream(51, 50), known(40)),
            Start::Behind {
                first: 51,
                missed: 10
            }
        );
    }

    #[test]
    fn numbers_that_mean_other_messages_are_never_continued() {
        let at = |state: StreamState, known| onward(&state, known, window(10, 1000), 201 * SECOND);
        assert_eq!(
            at(stream(5, 50), known(51)),
            Start::Anew {
                head: 50,
                reason: GapReason::Ahead
            }
        );
        let other = Known {
            is_content_known: false,
            ..known(20)
        };
        assert_eq!(
            at(stream(5, 50), other),
            Start::Anew {
                head: 50,
                reason: GapReason::Recreated
            }
        );
        let recreated = StreamState {
            created: 8,
            ..stream(1, 3)
        };
        assert_eq!(
            at(recreated.clone(), known(2)),
            Start::Recent {
                first: 1,
                since: None
            }
        );
        let identified = Known {
            has_identity: true,
            ..known(2)
        };
        assert_eq!(at(recreated, identified), Start::Onward { first: 3 });
    }
}
