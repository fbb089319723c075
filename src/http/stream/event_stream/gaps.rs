//! Reports gaps: to the client in-band, to the operator in metrics and in the log.
//!
//! A client that misses events receives `sidestream.gap` before the next event. At the same moment
//! [`EventStream::report_gap`] counts the gap by route and reason, and logs one line with the
//! client, the source, the number of missed events and the event id that the client receives. The
//! context limits these lines for the whole process and counts the others in
//! `sidestream_log_lines_suppressed_total`. The line at the end of the event stream has the totals.
//!
//! All of this runs on the task of the event stream, and only if there is a gap.

use std::fmt::Display;

use bytes::BytesMut;

use super::EventStream;
use crate::encoding::GapNotice;
use crate::event::id::Joined;
use crate::event::{Position, Tier};
use crate::feed::Gap;

impl EventStream {
    /// Counts and logs a gap. `source` is the index of its source; `None` if it concerns all.
    /// `id` is the event id that the client receives.
    pub(super) fn report_gap(&mut self, gap: Gap, source: Option<usize>, id: &[Position]) {
        self.state.count_gap();
        self.state.route.metrics.gap(gap);
        let missed = u32::try_from(gap.missed.unwrap_or(0)).unwrap_or(u32::MAX);
        self.missed_events = self.missed_events.saturating_add(missed);
        if self.context.gap_log_limiter.take(1).is_err() {
            self.context.metrics.log_lines_suppressed_total.inc();
            return;
        }
        let state = &self.state;
        let source = source.map(|index| state.route.sources[index].source.name());
        tracing::info!(
            client = &*state.client,
            client.addr = %state.peer.text(),
            route = &*state.route.label,
            source,
            reason = gap.reason.as_str(),
            missed = gap.missed,
            position = %Joined(id),
            "event stream gap"
        );
    }

    /// Counts events that were skipped; the gaps that follow report them.
    pub(super) fn count_skipped(&self, skipped: impl Iterator<Item = (Tier, u64)>) {
        for (tier, events) in skipped {
            self.state.route.metrics.shed(tier, events);
        }
    }

    /// Appends the report of a gap. With an id the client can resume right after it.
    pub(super) fn put_gap(&self, out: &mut BytesMut, gap: Gap, id: Option<&[Position]>) {
        let id = id.map(Joined);
        let id = id.as_ref().map(|id| id as &dyn Display);
        self.encoder().put_gap(out, notice(gap), id);
    }
}

/// Returns a gap as clients are notified of it.
pub(super) fn notice(gap: Gap) -> GapNotice {
    GapNotice {
        reason: gap.reason.as_str(),
        missed: gap.missed,
        resume: gap.reason.resume(),
    }
}
