//! Detects a socket that accepts no bytes: a slow client, an unread HTTP/2 stream, a dead peer.
//!
//! The task of an event stream polls [`StallTimer`] as long as bytes are pending. The timer checks:
//!
//! | bytes not accepted for | effect |
//! | --- | --- |
//! | `slow.stall_timeout` | slow: shedding starts; closed if more than `slow.lag` events wait |
//! | 5 s, if it blocks others on its HTTP/2 connection | closed as slow, and cut |
//! | 25 s | closed as slow, and cut |
//!
//! A client that is closed as slow has one second to accept the close event. `Poll::Ready` means
//! that the transport must cut the peer. While the socket accepts bytes there is no timer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::state::StreamState;
use crate::presence::{CloseReason, StreamHandle as _};

/// Timer for one socket, or for the window of one HTTP/2 stream.
#[derive(Default)]
pub(in crate::http) struct StallTimer {
    timer: Option<Pin<Box<Sleep>>>,
    /// The event stream was closed as slow; the timer is the grace period until the peer is cut.
    is_last: bool,
}

/// 25 s, the same as the kernel's timeout for an acknowledgement (`net::socket`). The kernel does
/// not detect peers that acknowledge something, such as one stalled stream of a live HTTP/2
/// connection.
const STALLED_MAX: Duration = Duration::from_secs(25);

/// 5 s: limit for an unread event stream that uses up the window of its HTTP/2 connection, so that
/// the others on the connection wait. A client that reads frees a window sooner, and most clients
/// give their connections a much larger window than one event stream can use.
const BLOCKS_OTHERS_MAX: Duration = Duration::from_secs(5);

/// 2 s: first check whether others wait.
const BLOCKS_OTHERS_CHECK: Duration = Duration::from_secs(2);

/// 1 s: interval of the checks of a slow client.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// 1 s: grace period for a slow client to accept the close event.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Result of one check.
enum Check {
    Again(Duration),
    Stalled,
}

impl StallTimer {
    /// Polls the timer while bytes are pending. Ready when the peer must be cut. `blocks_others`
    /// returns true if other event streams of the connection wait because of this one.
    pub(in crate::http) fn poll(
        &mut self,
        task: &mut Context<'_>,
        state: &StreamState,
        blocks_others: impl Fn() -> bool,
    ) -> Poll<()> {
        state.set_blocked();
        loop {
            if state.close_request() == Some(CloseReason::Slow) && !self.is_last {
                self.is_last = true;
                self.timer = Some(Box::pin(tokio::time::sleep(CLOSE_GRACE)));
            }
            let first = state
                .route
                .config
                .slow
                .stall_timeout
                .min(BLOCKS_OTHERS_CHECK);
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(first)));
            ready!(timer.as_mut().poll(task));
            if self.is_last {
                return Poll::Ready(());
            }
            // Socket and timer were polled in the same turn of the runtime: the socket is still
            // blocked, however late this turn is.
            match check(state, blocks_others()) {
                Check::Again(wait) => timer.as_mut().reset(Instant::now() + wait),
                Check::Stalled => return Poll::Ready(()),
            }
        }
    }

    /// Stops the timer: the socket accepts bytes again.
    pub(in crate::http) fn stop(&mut self) {
        if self.timer.is_some() && !self.is_last {
            self.timer = None;
        }
    }
}

/// Marks a client as slow, and closes it if too many events wait or the socket is stalled.
fn check(state: &StreamState, blocks_others: bool) -> Check {
    let (slow, blocked) = (&state.route.config.slow, state.blocked_for());
    if blocked >= STALLED_MAX || (blocked >= BLOCKS_OTHERS_MAX && blocks_others) {
        state.close(CloseReason::Slow);
        return Check::Stalled;
    }
    if blocked < slow.stall_timeout {
        return Check::Again((slow.stall_timeout - blocked).min(CHECK_EVERY));
    }
    state.set_slow();
    if state.exceeds_max_lag(state.lag().events) {
        state.close(CloseReason::Slow);
    }
    Check::Again(CHECK_EVERY.min(STALLED_MAX - blocked))
}
