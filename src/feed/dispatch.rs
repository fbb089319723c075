//! Dispatcher: writes new events to the idle subscribers of a shard, or wakes them.
//!
//! An event for a thousand clients would otherwise be a thousand task polls, each with cache misses
//! on a task, an event stream and a cursor, to write the same bytes. The dispatcher needs only the
//! subscriber's record and its sink.
//!
//! A pass visits all subscribers of this shard in one feed that wait for events, in groups:
//!
//! ```text
//! loop:  lock feed -> commit the previous group -> collect the next group -> unlock
//!        wake the subscribers that have to read themselves
//!        send the same EncodedRun to every sink of the group that admits it
//! ```
//!
//! Subscribers in a group have the same offset and so receive the same bytes, which are encoded
//! once ([`EncodedRun`]). A run that cannot be sent directly (a gap, the end of the feed, more than
//! 32 KiB) wakes the subscriber instead. The dispatcher is one task per shard; a step is bounded by
//! [`SENDS_MAX`]. Sinks belong to the same thread, so a client's task never runs at the same time.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::encoding::RunBuilder;
use crate::telemetry::trace::samples;

use super::feed::{Feed, State};
use super::notify::ShardNotifier;
use super::sink::{DirectSink, EncodedRun, SendOutcome};
use super::subscribers::Subscribers;
use super::window::Window;

thread_local! {
    static CURRENT: RefCell<Option<Arc<ShardNotifier<Feed>>>> = const { RefCell::new(None) };
}

/// Turns the current thread into a shard and returns its dispatcher task, to be spawned on the
/// thread's runtime before it has subscribers. The task writes to subscribers that are idle and
/// wakes the others.
pub fn run_dispatcher() -> impl Future<Output = Infallible> + Send + 'static {
    let notifier = Arc::new(ShardNotifier::default());
    CURRENT.set(Some(notifier.clone()));
    async move {
        let (mut passes, mut dispatcher) = (VecDeque::new(), Dispatcher::default());
        loop {
            poll_fn(|task| {
                notifier.take_pending(task, &mut passes, Pass::new);
                if passes.is_empty() {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
            dispatcher.run(&notifier, &mut passes);
            if !passes.is_empty() {
                // Other tasks run first: subscribers that are visited later then receive more
                // events in one write.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Notifier of the current thread, if it is a shard.
pub(super) fn current_shard() -> Option<Arc<ShardNotifier<Feed>>> {
    CURRENT.with_borrow(Clone::clone)
}

/// One pass over the subscribers of one feed.
#[derive(Debug)]
struct Pass {
    feed: Arc<Feed>,
    /// Key of the next subscriber; `None` before the pass has started.
    next: Option<usize>,
}

/// Buffers that passes reuse, so that they allocate nothing.
#[derive(Debug, Default)]
struct Dispatcher {
    /// Subscribers that are sent the same run, and the outcomes.
    group: Vec<Recipient>,
    collected: Option<CollectedRun>,
    wakers: Vec<Waker>,
    copy: RunBuilder,
}

/// One subscriber of the group.
#[derive(Debug)]
struct Recipient {
    key: usize,
    /// Taken when the run is sent.
    sink: Option<Arc<dyn DirectSink>>,
    outcome: SendOutcome,
}

/// Events between two indexes of a window.
#[derive(Debug)]
struct CollectedRun {
    from: u64,
    to: u64,
    /// `None` if subscribers have to read it themselves.
    run: Option<EncodedRun>,
}

/// Writes per step; then the runtime polls for I/O, as it does after the same number of tasks.
const SENDS_MAX: usize = 64;

/// A queued send costs a fraction of a write: the connection writes all of them together after the
/// step, the more the better.
const QUEUED_PER_SEND: usize = 16;

/// Subscribers per group, sent to between two locks of the feed.
const GROUP_MAX: usize = 32;

impl Pass {
    fn new(feed: Arc<Feed>) -> Self {
        Self { feed, next: None }
    }
}

impl Dispatcher {
    /// Continues the passes as far as one step allows, and removes the finished ones.
    fn run(&mut self, notifier: &Arc<ShardNotifier<Feed>>, passes: &mut VecDeque<Pass>) {
        let mut left = SENDS_MAX * QUEUED_PER_SEND;
        while let Some(pass) = passes.front_mut() {
            if !self.step(notifier, pass, &mut left) {
                return;
            }
            passes.pop_front();
        }
    }

    /// Continues a pass. True if every subscriber was visited.
    fn step(
        &mut self,
        notifier: &Arc<ShardNotifier<Feed>>,
        pass: &mut Pass,
        left: &mut usize,
    ) -> bool {
        let before = *left;
        let is_over = loop {
            let mut state = pass.feed.lock();
            self.commit(&mut state.subscribers);
            let is_over = self.collect(
                notifier,
                &mut pass.next,
                &mut state,
                GROUP_MAX.min(left.div_ceil(QUEUED_PER_SEND)),
            );
            drop(state);
            // With no lock held: a woken reader locks the feed at once.
            self.wakers.drain(..).for_each(Waker::wake);
            if self.group.is_empty() {
                break is_over;
            }
            self.send();
            *left = left.saturating_sub(
                self.group
                    .iter()
                    .map(|recipient| recipient.outcome.cost())
                    .sum(),
            );
        };
        // An event must not stay in memory because this shard becomes idle.
        self.collected = None;
        if *left < before {
            pass.feed.touch();
        }
        is_over
    }

    /// Collects up to `most` subscribers of the same run, and the wakers of those that have to read
    /// themselves. True if all subscribers were visited.
    fn collect(
        &mut self,
        notifier: &Arc<ShardNotifier<Feed>>,
        next: &mut Option<usize>,
        state: &mut State,
        most: usize,
    ) -> bool {
        let State {
            window,
            subscribers,
            ended,
            ..
        } = state;
        let Some(shard) = subscribers.shard_of(notifier) else {
            return true;
        };
        subscribers.prefetch_sinks(next.unwrap_or_default(), most);
        let mut from = next.unwrap_or_else(|| {
            subscribers.clear_notified(shard);
            0
        });
        while let Some((key, subscriber)) = subscribers.next_waiting(shard, from) {
            if subscriber.offset.index == window.end() && !*ended {
                from = key + 1;
                continue;
            }
            let sink = subscriber.direct_sink().filter(|_| !*ended);
            let is_collected = self.collected.as_ref().is_some_and(|collected| {
                (collected.from, collected.to) == (subscriber.offset.index, window.end())
            });
            if sink.is_some()
                && (self.group.len() == most || !is_collected && !self.group.is_empty())
            {
                *next = Some(key);
                return false;
            }
            if sink.is_some() && !is_collected {
                self.collect_run(window, subscriber.offset.index);
            }
            let run = self
                .collected
                .as_ref()
                .and_then(|collected| collected.run.as_ref());
            let fits = run.is_some_and(|run| run.starts_at(subscriber.offset, subscriber.position));
            match sink.filter(|_| fits) {
                Some(sink) => self.group.push(Recipient {
                    key,
                    sink: Some(sink.clone()),
                    outcome: SendOutcome::Rejected,
                }),
                None => self.wakers.extend(subscriber.wake()),
            }
            from = key + 1;
        }
        *next = Some(from);
        true
    }

    fn collect_run(&mut self, window: &Window, from: u64) {
        let run = EncodedRun::from_window(window, from, &mut self.copy);
        self.collected = Some(CollectedRun {
            from,
            to: window.end(),
            run,
        });
    }

    /// Sends the run to the group, with no lock held.
    fn send(&mut self) {
        let collected = self.collected.as_mut();
        let Some(run) = collected.and_then(|collected| collected.run.as_mut()) else {
            return;
        };
        run.complete(&mut self.copy);
        let run = &*run;
        // First every sink is asked, then the run is sent: the cache misses of the first loop
        // overlap, and those of the system calls in the second do not.
        for Recipient { sink, .. } in &mut self.group {
            sink.take_if(|sink| !sink.admits(run));
        }
        for Recipient { sink, outcome, .. } in &mut self.group {
            if let Some(sink) = sink.take() {
                *outcome = sink.send(run);
            }
        }
    }

    /// Counts the deliveries of the run for the events that traces record.
    #[cold]
    fn count_samples(&self, run: &EncodedRun) {
        let is_delivered = |one: &&Recipient| one.outcome != SendOutcome::Rejected;
        let count = self.group.iter().filter(is_delivered).count() as u32;
        for number in &run.samples {
            samples::deliver(*number, count, run.received.elapsed());
        }
    }

    /// Advances the subscribers that accepted the run, and takes the wakers of those that did not,
    /// or only in part.
    fn commit(&mut self, subscribers: &mut Subscribers<Feed>) {
        let Some(run) = self
            .collected
            .as_ref()
            .and_then(|collected| collected.run.as_ref())
        else {
            return;
        };
        if !run.samples.is_empty() {
            self.count_samples(run);
        }
        for Recipient { key, outcome, .. } in self.group.drain(..) {
            if outcome != SendOutcome::Rejected {
                subscribers.advance(key, run.end, run.last);
            }
            if matches!(outcome, SendOutcome::Partial | SendOutcome::Rejected) {
                self.wakers.extend(subscribers.wake(key));
            }
        }
    }
}

impl SendOutcome {
    /// Cost of the outcome, in units of a step.
    fn cost(self) -> usize {
        if self == Self::Queued {
            1
        } else {
            QUEUED_PER_SEND
        }
    }
}
