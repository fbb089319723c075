//! The end of an event stream: the close event, the log line, metrics and presence.
//!
//! ```text
//! end(reason) -> pending events are delivered -> write_close -> the transport flushes -> drop
//! ```
//!
//! [`EventStream::end`] may be called by the event stream itself, by its transport, or through
//! [`StreamState::close_request`] by any thread. An event stream that is dropped without an end was
//! left by its client or cut. Every end passes through `Drop`, which calls
//! [`EventStream::record_end`] exactly once. The context limits the log lines of the whole process; an
//! end that is not logged is counted in `sidestream_log_lines_suppressed_total`.

use std::fmt::{self, Display};

use super::{EventStream, Stage};
use crate::encoding::Framing;
use crate::encoding::grpc::Trailers;
use crate::event::id::Joined;
use crate::http::config::RETRY_UNAUTHENTICATED;
use crate::http::route::Route;
use crate::http::stream::state::StreamState;
use crate::http::stream::write_batch::WriteBatch;
use crate::presence::{CloseReason, Delivered, State, StreamHandle as _};
use crate::telemetry::trace::StreamEnd;

impl EventStream {
    /// Writes `retry:` and `sidestream.close` with the position, if clients receive this reason; or
    /// `sidestream.end`.
    pub(super) fn write_close(&mut self, close: CloseReason, out: &mut WriteBatch) {
        if close == CloseReason::End {
            let positions = self.positions();
            out.write(|bytes| self.encoder().put_end(bytes, &Joined(&positions)));
            return self.set_trailers(Trailers::ended());
        }
        let Some(reason) = close.client_reason() else {
            return;
        };
        let config = &self.state.route.config;
        let retry = match close {
            CloseReason::Slow => Some(config.slow.retry),
            CloseReason::Drain => self.context.draw_drain_retry(),
            CloseReason::Revoked => Some(RETRY_UNAUTHENTICATED.mul_f64(0.5 + fastrand::f64())),
            _ => None,
        };
        // With jitter: clients whose event streams end together must not reconnect together.
        let retry = retry.unwrap_or_else(|| config.retry.mul_f64(0.5 + fastrand::f64()));
        if close != CloseReason::Slow && !self.is_in_snapshot() {
            self.checkpoint();
        }
        let positions = self.positions();
        let id = Joined(&positions);
        // A client that has only a part of the state receives it again.
        let id = (!self.is_in_snapshot()).then_some(&id as &dyn Display);
        out.write(|bytes| {
            self.encoder().put_close(bytes, reason, retry, id);
        });
        self.set_trailers(Trailers::closed(reason, retry));
    }

    /// gRPC: keeps the trailers for the transport.
    fn set_trailers(&mut self, trailers: Trailers<'static>) {
        if self.state.framing == Framing::Grpc {
            self.once.get_or_insert_default().trailers = Some(trailers);
        }
    }

    /// Returns the reason of an event stream that is dropped now.
    fn final_reason(&self) -> CloseReason {
        // A forced end takes precedence, also over an end whose bytes the client did not accept.
        // Without any end or request the peer is gone.
        let request = self.state.close_request();
        request
            .filter(|close| StreamState::is_forced(*close))
            .or(self.ending)
            .or(request)
            .unwrap_or(CloseReason::Client)
    }

    /// Counts and logs the end, and records it for other pods.
    fn record_end(&mut self) {
        let close = self.final_reason();
        let state = &self.state;
        let protocol = state.peer.protocol;
        let metrics = &state.route.metrics;
        metrics.closed(protocol, state.framing, self.version(), close);
        self.context.stream_ages.record(close, state.age());
        let sent = state.totals();
        let lag = state.lag();
        let positions = self.positions();
        // Only an event stream whose last byte the socket accepted has a known position, from which
        // another pod continues.
        let delivered = (close == CloseReason::Drain
            && self.stage == Stage::Delivered
            && !self.is_in_snapshot())
        .then(|| Delivered {
            last_event_id: Joined(&positions).to_string(),
            can_be_claimed: state.can_come_back,
        });
        let end = if delivered.is_some() {
            State::Reconnecting
        } else {
            State::Closed
        };
        self.registration.ended(&**state, close, delivered);
        if let Some(span) = self.once.as_mut().and_then(|once| once.span.as_mut()) {
            span.set_end(StreamEnd {
                reason: close.label(),
                is_error: close.level() <= tracing::Level::WARN,
                events: sent.events,
                bytes: sent.bytes,
                gaps: state.gaps(),
                missed_events: self.missed_events,
            });
        }
        if self.context.close_log_limiter.take(1).is_err() {
            self.context.metrics.log_lines_suppressed_total.inc();
            return;
        }
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    client = &*state.client,
                    client.addr = %state.peer.text(),
                    route = &*state.route.label,
                    source = %SourceNames(&state.route),
                    protocol = state.peer.protocol.as_str(),
                    state = end.as_str(),
                    reason = close.label(),
                    seconds = state.age().as_secs_f64(),
                    events = sent.events,
                    bytes = sent.bytes,
                    lag = lag.events,
                    gaps = state.gaps(),
                    missed = self.missed_events,
                    position = %Joined(&positions),
                    "event stream closed"
                )
            };
        }
        match close.level() {
            tracing::Level::ERROR => log!(error),
            tracing::Level::WARN => log!(warn),
            tracing::Level::DEBUG => log!(debug),
            _ => log!(info),
        }
    }
}

/// Names of the sources of a route, for a log line.
struct SourceNames<'a>(&'a Route);

impl Display for SourceNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, source) in self.0.sources.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            write!(f, "{comma}{}", source.source.name())?;
        }
        Ok(())
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.record_end();
    }
}
