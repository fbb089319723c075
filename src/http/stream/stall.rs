//! How long one socket may refuse bytes: when its client is slow, when it is ended for that, when it is given up.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::state::StreamState;
use crate::presence::{CloseReason, StreamHandle as _};

/// Watches one socket, or the window of one HTTP/2 stream, while it refuses bytes; while it takes them this is nothing.
#[derive(Default)]
pub(in crate::http) struct StallTimer {
    timer: Option<Pin<Box<Sleep>>>,
    /// The event stream is ended for its slowness, and the timer runs until its peer is cut.
    is_last: bool,
}

/// 25 s, as long as the kernel waits for an acknowledgement (`net::socket`): for peers that the kernel does not find
/// because they acknowledge something, such as one stalled stream of a living HTTP/2 connection.
const STALLED_MAX: Duration = Duration::from_secs(25);

/// 5 s: after that an event stream of HTTP/2 is ended that is not read and holds the window of its connection, so that the
/// others on it wait. A client that reads on takes a window's worth sooner; most give their connections much more than an
/// event stream can hold.
const BLOCKS_OTHERS_MAX: Duration = Duration::from_secs(5);

/// 2 s: after that it is looked whether others wait.
const BLOCKS_OTHERS_CHECK: Duration = Duration::from_secs(2);

/// 1 s: how often it is looked how much waits for a slow client.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// 1 s: how long a client that was too slow has to take the word that it was.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// What comes of a look at a socket that refuses bytes.
enum Check {
    Again(Duration),
    Stalled,
}

impl StallTimer {
    /// To be polled as long as bytes are refused. Ready when the peer is to be cut. `holds_others_back`: whether other event
    /// streams of its connection wait because of this one.
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
            // The timer and the socket are looked at in one turn of the runtime: it refuses bytes still, however late
            // this turn came.
            match look(state, blocks_others()) {
                Check::Again(wait) => timer.as_mut().reset(Instant::now() + wait),
                Check::Stalled => return Poll::Ready(()),
            }
        }
    }

    /// The socket takes bytes again.
    pub(in crate::http) fn rest(&mut self) {
        if self.timer.is_some() && !self.is_last {
            self.timer = None;
        }
    }
}

/// Looks at how long its bytes were refused and how much waits; ends the event stream if that is too much.
fn look(state: &StreamState, blocks_others: bool) -> Check {
    let (slow, refused) = (&state.route.config.slow, state.blocked_for());
    if refused >= STALLED_MAX || (refused >= BLOCKS_OTHERS_MAX && blocks_others) {
        state.close(CloseReason::Slow);
        return Check::Stalled;
    }
    if refused < slow.stall_timeout {
        return Check::Again((slow.stall_timeout - refused).min(CHECK_EVERY));
    }
    state.set_slow();
    if state.exceeds_max_lag(state.lag().events) {
        state.close(CloseReason::Slow);
    }
    Check::Again(CHECK_EVERY.min(STALLED_MAX - refused))
}
