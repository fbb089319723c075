//! How an event stream ends: what its client is told, and what the log and the registry are.

use super::EventStream;
use crate::http::stream::state::StreamState;
use crate::http::stream::write_batch::WriteBatch;
use crate::presence::{CloseReason, Delivered, State, StreamHandle as _};
use crate::sse::encode;
use crate::sse::id::Joined;

impl EventStream {
    pub(super) fn write_close(&mut self, close: CloseReason, out: &mut WriteBatch) {
        let Some(reason) = close.client_reason() else {
            return;
        };
        let config = &self.state.route.config;
        let retry = match close {
            CloseReason::Slow => Some(config.slow.retry),
            CloseReason::Drain => self.context.draw_drain_retry(),
            _ => None,
        };
        // With chance in it: those who end together shall not return together.
        let retry = retry.unwrap_or_else(|| config.retry.mul_f64(0.5 + fastrand::f64()));
        if close != CloseReason::Slow {
            self.checkpoint();
        }
        out.write(|bytes| encode::put_close(bytes, reason, retry, Some(Joined(&self.positions))));
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let state = &self.state;
        // Dropped without an end of its own: the peer is gone, or it was aborted for the reason that was asked. That
        // reason counts too when it came upon an end that the client did not take.
        let forced = state
            .close_request()
            .filter(|close| StreamState::is_forced(*close));
        let ended = forced.or(self.ending.map(|ending| ending.close));
        let close = ended
            .or(state.close_request())
            .unwrap_or(CloseReason::Client);
        state.route.metrics.closed(state.peer.protocol, close);
        let sent = state.totals();
        let lag = state.lag();
        // Only what the socket has taken is known to be sent: another pod goes on behind it.
        let handed_over = (close == CloseReason::Drain && self.is_delivered).then(|| Delivered {
            last_event_id: Joined(&self.positions).to_string(),
            can_be_claimed: state.can_come_back,
        });
        let end = if handed_over.is_some() {
            State::Reconnecting
        } else {
            State::Closed
        };
        self.registration.ended(&**state, close, handed_over);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    client = &*state.client,
                    client.addr = %state.peer.text(),
                    route = &*state.route.label,
                    protocol = state.peer.protocol.as_str(),
                    state = end.as_str(),
                    reason = close.label(),
                    seconds = state.age().as_secs_f64(),
                    events = sent.events,
                    bytes = sent.bytes,
                    lag = lag.events,
                    gaps = state.gaps(),
                    missed = self.missed_events,
                    position = %Joined(&self.positions),
                    "event stream closed"
                )
            };
        }
        match close.level() {
            tracing::Level::ERROR => log!(error),
            tracing::Level::WARN => log!(warn),
            _ => log!(info),
        }
    }
}
