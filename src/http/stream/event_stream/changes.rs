//! Changes of the subjects of an open event stream, as the client of a WebSocket asks for them.
//!
//! ```text
//! message -> wait -> new cursors are opened at the position of the old ones -> swap -> answer
//!                    the old ones are not read meanwhile
//! ```
//!
//! A change is a reconnect in the same connection: the new cursors begin after the last event that
//! the client has, so that no event is missing and none comes twice, and events of an added subject
//! begin at the position in the answer. If a cursor cannot be opened, the old ones continue and the
//! client receives the reason.
//!
//! On a route with `begin: latest` an added subject needs its state: the client receives the whole
//! state again.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use super::EventStream;
use crate::encoding::Framing;
use crate::encoding::websocket::put_subjects;
use crate::event::id::Joined;
use crate::feed::{Begin, Cursor, FeedOptions, Gap, OpenError, Opened, Outcome, Start};
use crate::http::config::RouteBegin;
use crate::http::route::Route;
use crate::http::stream::subscriptions::{
    Change, ChosenSubjects, CurrentChange, NotApplied, Subscriptions,
};
use crate::http::stream::write_batch::WriteBatch;
use crate::limit::clients::{Limit, Throttled};
use crate::subject::FilterSet;

/// Cursor to be opened in place of another one.
struct Replacement {
    source: usize,
    filters: FilterSet,
    start: Start,
}

impl EventStream {
    /// Takes a message of the client of a WebSocket. It is applied in the next turns.
    ///
    /// # Errors
    /// The answer, if it is not applied.
    pub(in crate::http) fn receive_message(&mut self, text: &str) -> Result<(), NotApplied> {
        debug_assert_eq!(self.state.framing, Framing::WebSocket);
        let received = match self.subscriptions() {
            Some(subscriptions) => subscriptions.receive(text),
            None => Err(NotApplied::unsupported()),
        };
        match received {
            // The task writes the answer.
            Ok(()) => self.end_direct_writes(),
            Err(_) => self.count_change("rejected"),
        }
        received
    }

    fn subscriptions(&mut self) -> Option<&mut Subscriptions> {
        self.once.as_mut()?.subscriptions.as_deref_mut()
    }

    /// Returns true if a message of the client waits or is being applied.
    pub(super) fn is_changing(&self) -> bool {
        let subscriptions = self
            .once
            .as_ref()
            .and_then(|once| once.subscriptions.as_ref());
        subscriptions.is_some_and(|subscriptions| subscriptions.is_changing())
    }

    /// Applies the messages that wait. Returns true while the cursors must not be read.
    pub(super) fn poll_changes(
        &mut self,
        task: &mut TaskContext<'_>,
        out: &mut WriteBatch,
    ) -> bool {
        let is_ending = self.ending.is_some();
        while let Some(subscriptions) = self.subscriptions() {
            if is_ending {
                subscriptions.discard();
            }
            let change = match &mut subscriptions.current {
                None => match subscriptions.next() {
                    Some(change) => self.begin_change(change),
                    None => return false,
                },
                Some(current) => match current.opening.as_mut().poll(task) {
                    Poll::Pending => return true,
                    Poll::Ready(opened) => {
                        let current = subscriptions.current.take();
                        current.map_or(Ok(()), |current| self.swap(current, opened, out))
                    }
                },
            };
            if let Err(not_applied) = change {
                self.count_change("rejected");
                out.write(|bytes| not_applied.put(bytes));
                self.note_write(out);
            }
            if self.is_in_snapshot() {
                return true;
            }
        }
        false
    }

    /// Checks a change, and begins to open its cursors.
    fn begin_change(&mut self, change: Change) -> Result<(), NotApplied> {
        // Added subjects begin now, not where the last event was.
        self.checkpoint();
        let begins_with_state = self.state.route.config.begin == RouteBegin::Latest
            && matches!(change, Change::Subscribe(_));
        let route = Arc::clone(&self.state.route);
        let starts: Vec<_> = self
            .cursors
            .iter()
            .map(|cursor| match begins_with_state {
                true => Start::Begin(Begin::Latest),
                false => Start::After(cursor.position()),
            })
            .collect();
        let Some(subscriptions) = self.subscriptions() else {
            return Ok(());
        };
        let sources = subscriptions.after(&change, &route)?;
        let replaced = sources.iter().zip(&subscriptions.sources);
        let replaced = replaced
            .map(|(after, before)| (after.filters(), before.filters(), after.source))
            .filter(|(after, before, _)| after != before)
            .map(|(filters, _, source)| Replacement {
                source,
                filters,
                start: starts[source],
            })
            .collect();
        let options = Arc::clone(&subscriptions.options.options);
        subscriptions.current = Some(CurrentChange {
            change,
            sources,
            opening: Box::pin(open(route, options, replaced)),
        });
        Ok(())
    }

    /// Continues with the new cursors, and writes the answer.
    fn swap(
        &mut self,
        current: CurrentChange,
        opened: Result<Vec<(usize, Opened)>, OpenError>,
        out: &mut WriteBatch,
    ) -> Result<(), NotApplied> {
        let opened = opened?;
        self.count_filter_sets(&current.sources)?;
        let mut gaps: Vec<(usize, Gap)> = Vec::new();
        let mut snapshot = None;
        for (source, opened) in opened {
            opened.cursor.take_sink(&self.cursors[source]);
            self.cursors[source] = opened.cursor;
            snapshot = snapshot.or(opened.snapshot);
            if let Outcome::Gap(gap) = opened.outcome {
                gaps.push((source, gap));
            }
        }
        let probes = self.cursors.iter().map(Cursor::probe).collect();
        self.state.set_probes(probes);
        let positions = self.positions();
        for (source, gap) in gaps {
            self.report_gap(gap, Some(source), &positions);
            out.write(|bytes| self.put_gap(bytes, gap, Some(&positions)));
        }
        let outcome = current.change.outcome();
        self.count_change(outcome);
        let encoder = self.encoder();
        let has_state = snapshot.is_some();
        let Some(once) = &mut self.once else {
            return Ok(());
        };
        once.snapshot = snapshot;
        let Some(subscriptions) = &mut once.subscriptions else {
            return Ok(());
        };
        subscriptions.sources = current.sources;
        let subjects = subscriptions.chosen();
        out.write(|bytes| {
            // Before a state there is no position.
            match has_state {
                true => put_subjects(bytes, outcome, &subjects, &""),
                false => put_subjects(bytes, outcome, &subjects, &Joined(&positions)),
            }
            if has_state {
                encoder.put_snapshot(bytes);
            }
        });
        self.note_write(out);
        Ok(())
    }

    /// Counts the new filter sets against the limits of the client.
    fn count_filter_sets(&mut self, sources: &[ChosenSubjects]) -> Result<(), NotApplied> {
        let route = Arc::clone(&self.state.route);
        let Some(limits) = &mut self.limits else {
            return Ok(());
        };
        let subscriptions = self
            .once
            .as_ref()
            .and_then(|once| once.subscriptions.as_ref());
        let Some(subscriptions) = subscriptions else {
            return Ok(());
        };
        let filters: Vec<FilterSet> = sources.iter().map(ChosenSubjects::filters).collect();
        let hashes = route.feed_hashes(&subscriptions.options, &filters);
        limits.change_filter_sets(hashes).map_err(|throttled| {
            let throttled_total = &self.context.metrics.throttled_total;
            throttled_total
                .with_label_values(&[throttled.limit.as_str()])
                .inc();
            throttled.into()
        })
    }

    fn count_change(&self, outcome: &str) {
        let changes = &self.context.metrics.subject_changes_total;
        changes.with_label_values(&[outcome]).inc();
    }
}

/// Opens a cursor in place of each of these.
async fn open(
    route: Arc<Route>,
    options: Arc<FeedOptions>,
    replaced: Vec<Replacement>,
) -> Result<Vec<(usize, Opened)>, OpenError> {
    let mut all = Vec::with_capacity(replaced.len());
    for Replacement {
        source,
        filters,
        start,
    } in replaced
    {
        let origin = &route.sources[source].source;
        let mut opened = origin.open(filters.clone(), &options, start).await?;
        let is_resuming = matches!(start, Start::After(_));
        if route.config.begin == RouteBegin::Latest
            && is_resuming
            && opened.outcome != Outcome::Window
        {
            // As a client that returns.
            drop(opened);
            let start = Start::Begin(Begin::Latest);
            opened = origin.open(filters, &options, start).await?;
        }
        all.push((source, opened));
    }
    Ok(all)
}

impl From<Throttled> for NotApplied {
    fn from(throttled: Throttled) -> Self {
        let (reason, message) = match throttled.limit {
            Limit::FilterSets => (
                "too_many_filter_sets_of_client",
                "the client reads too many different sets of subjects",
            ),
            Limit::Connects | Limit::Connections | Limit::Events => (
                "too_many_connects",
                "the client changes its subjects too often",
            ),
        };
        Self {
            retry: throttled.wait,
            ..Self::new(reason, message.to_owned())
        }
    }
}
