//! Start position of a tailer, a pure function of the stream's state.
//!
//! A tailer without progress starts at its window ([`window_start`]). One with progress resumes
//! ([`resume`]) unless the sequences no longer continue:
//!
//! ```text
//! stream recreated, no identity           -> Window    as for a new tailer
//! head is after the stream's last message -> NewEpoch  restored from an older snapshot
//! last message differs                    -> NewEpoch  recreated, or restored and written again
//! head + 1 is before the first message    -> Expired   some messages are gone
//! otherwise                               -> Continue
//! ```

use std::time::Duration;

use crate::feed::{GapReason, Limits};
use crate::nats::jetstream::stream_state::StreamState;

/// Progress of a tailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nats) struct Progress {
    /// Creation time of the followed stream.
    pub(in crate::nats) created: i128,
    /// An identity is configured: sequences continue although the stream was recreated.
    pub(in crate::nats) has_identity: bool,
    /// Last sequence that was passed.
    pub(in crate::nats) head: u64,
    /// JetStream still holds the message of the last event.
    pub(in crate::nats) is_last_unchanged: bool,
}

/// Start position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nats) enum Start {
    /// At the window: from this sequence on, and not before this time (unix nanoseconds).
    Window { first: u64, since: Option<i128> },
    /// Directly after the head.
    Continue { first: u64 },
    /// Messages expired while the tailer was disconnected.
    Expired { first: u64, missed: u64 },
    /// The sequences belong to other messages: from the current end on.
    NewEpoch { head: u64, reason: GapReason },
}

/// Returns the latest of the stream's first message, the last `window.events` messages, and the
/// last `window.age`.
pub(in crate::nats) fn window_start(state: &StreamState, window: Limits, now: i128) -> Start {
    let events = u64::try_from(window.events).unwrap_or(u64::MAX);
    let first = state
        .first_seq
        .max((state.last_seq + 1).saturating_sub(events));
    let since = now - nanos(window.age);
    if state.last_seq < first || state.last_time < since {
        return Start::Window {
            first: state.last_seq + 1,
            since: None,
        };
    }
    Start::Window {
        first,
        since: (state.first_time < since).then_some(since),
    }
}

/// Returns the start position of a tailer with progress.
pub(in crate::nats) fn resume(
    state: &StreamState,
    progress: Progress,
    window: Limits,
    now: i128,
) -> Start {
    let is_same = state.created == progress.created || progress.has_identity;
    if !is_same {
        return window_start(state, window, now);
    }
    if progress.head > state.last_seq {
        // Restored from an older snapshot, or the unsynced end of the stream was lost.
        return Start::NewEpoch {
            head: state.last_seq,
            reason: GapReason::Ahead,
        };
    }
    if !progress.is_last_unchanged {
        return Start::NewEpoch {
            head: state.last_seq,
            reason: GapReason::Recreated,
        };
    }
    if progress.head + 1 < state.first_seq {
        return Start::Expired {
            first: state.first_seq,
            missed: state.first_seq - progress.head - 1,
        };
    }
    Start::Continue {
        first: progress.head + 1,
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::jetstream::stream_state::Retention;

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
            expires_silently: false,
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

    fn progress(head: u64) -> Progress {
        Progress {
            created: 7,
            has_identity: false,
            head,
            is_last_unchanged: true,
        }
    }

    #[test]
    fn new_tailer_starts_at_the_latest_of_first_message_event_limit_and_age_limit() {
        let at = |state: &StreamState, window, now| window_start(state, window, now * SECOND);
        assert_eq!(
            at(&stream(5, 50), window(1000, 1000), 201),
            Start::Window {
                first: 5,
                since: None
            }
        );
        assert_eq!(
            at(&stream(5, 50), window(10, 1000), 201),
            Start::Window {
                first: 41,
                since: None
            }
        );
        assert_eq!(
            at(&stream(5, 50), window(10, 50), 201),
            Start::Window {
                first: 41,
                since: Some(151 * SECOND)
            }
        );
        assert_eq!(
            at(&stream(5, 50), window(10, 50), 300),
            Start::Window {
                first: 51,
                since: None
            }
        );
        assert_eq!(
            at(&stream(51, 50), window(10, 50), 201),
            Start::Window {
                first: 51,
                since: None
            }
        );
        assert_eq!(
            at(&stream(1, 0), window(10, 50), 201),
            Start::Window {
                first: 1,
                since: None
            }
        );
    }

    #[test]
    fn tailer_continues_after_its_head_or_after_expired_messages() {
        let at =
            |state: StreamState, progress| resume(&state, progress, window(10, 1000), 201 * SECOND);
        assert_eq!(
            at(stream(5, 50), progress(50)),
            Start::Continue { first: 51 }
        );
        assert_eq!(at(stream(5, 50), progress(4)), Start::Continue { first: 5 });
        assert_eq!(
            at(stream(5, 50), progress(3)),
            Start::Expired {
                first: 5,
                missed: 1
            }
        );
        assert_eq!(
            at(stream(51, 50), progress(40)),
            Start::Expired {
                first: 51,
                missed: 10
            }
        );
    }

    #[test]
    fn sequences_of_other_messages_are_never_continued() {
        let at =
            |state: StreamState, progress| resume(&state, progress, window(10, 1000), 201 * SECOND);
        assert_eq!(
            at(stream(5, 50), progress(51)),
            Start::NewEpoch {
                head: 50,
                reason: GapReason::Ahead
            }
        );
        let other = Progress {
            is_last_unchanged: false,
            ..progress(20)
        };
        assert_eq!(
            at(stream(5, 50), other),
            Start::NewEpoch {
                head: 50,
                reason: GapReason::Recreated
            }
        );
        let recreated = StreamState {
            created: 8,
            ..stream(1, 3)
        };
        assert_eq!(
            at(recreated.clone(), progress(2)),
            Start::Window {
                first: 1,
                since: None
            }
        );
        let identified = Progress {
            has_identity: true,
            ..progress(2)
        };
        assert_eq!(at(recreated, identified), Start::Continue { first: 3 });
    }
}
