//! Coalesced wake-ups: one notification per shard, however many of its readers have new events.
//!
//! Waking a task of another single-threaded runtime is a system call. A thousand readers on other
//! threads would be a thousand system calls per event. Instead, each shard spawns one dispatcher
//! task ([`run_dispatcher`]) before it accepts connections, and a reader's entry records its shard:
//!
//! ```text
//! writer: Feed::append -> Readers::notify -> WakeList   (under the lock of the feed)
//!         WakeList::wake_all -> ShardNotifier.pending, wake its task   (no lock held)
//! shard:  run_dispatcher -> one Pass per feed -> Dispatcher (dispatch.rs)
//! ```
//!
//! A shard is notified once per feed until its pass starts, even if more events arrive. Readers
//! that are not on a shard, as in tests and tools, are woken one by one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures_util::task::AtomicWaker;

use super::dispatch::{Dispatcher, Pass};
use super::feed::Feed;

/// Notifier of one shard.
#[derive(Debug, Default)]
pub(super) struct ShardNotifier {
    /// Feeds with new events, each once until its pass starts.
    pending: Mutex<Vec<Arc<Feed>>>,
    task: AtomicWaker,
}

impl ShardNotifier {
    fn pending(&self) -> MutexGuard<'_, Vec<Arc<Feed>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<ShardNotifier>>> = const { RefCell::new(None) };
}

/// Turns the current thread into a shard and returns its dispatcher task, to be spawned on the
/// thread's runtime before it has readers. The task writes to readers that have a sink and wakes
/// the others.
pub fn run_dispatcher() -> impl Future<Output = Infallible> + Send + 'static {
    let notifier = Arc::new(ShardNotifier::default());
    CURRENT.set(Some(notifier.clone()));
    async move {
        let (mut passes, mut dispatcher) = (VecDeque::new(), Dispatcher::default());
        loop {
            poll_fn(|task| {
                notifier.task.register(task.waker());
                passes.extend(notifier.pending().drain(..).map(Pass::new));
                if passes.is_empty() {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
            dispatcher.run(&notifier, &mut passes);
            if !passes.is_empty() {
                // Other tasks run first: readers that are visited later then receive more events in
                // one write.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Notifier of the current thread, if it is a shard.
pub(super) fn current_shard() -> Option<Arc<ShardNotifier>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Wake-ups to do after all locks are released. Reused, so it does not allocate.
#[derive(Debug, Default)]
pub(super) struct WakeList {
    /// Readers that are not on a shard.
    pub(super) wake: Vec<Waker>,
    shards: Vec<(Arc<ShardNotifier>, Vec<Arc<Feed>>)>,
}

impl WakeList {
    /// Adds a shard with readers of a feed that has new events.
    pub(super) fn notify(&mut self, notifier: &Arc<ShardNotifier>, feed: &Arc<Feed>) {
        match self
            .shards
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, notifier))
        {
            Some((_, feeds)) => feeds.push(feed.clone()),
            None => self.shards.push((notifier.clone(), vec![feed.clone()])),
        }
    }

    /// Performs all wake-ups.
    pub(super) fn wake_all(&mut self) {
        self.wake.drain(..).for_each(Waker::wake);
        for (notifier, feeds) in self
            .shards
            .iter_mut()
            .filter(|(_, feeds)| !feeds.is_empty())
        {
            notifier.pending().append(feeds);
            notifier.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::event::{Event, Position, SourceTag};
    use crate::feed::{Batch, Budget, Limits, Source as _, Start, buffer};
    use crate::subject::{Filter, FilterSet};

    #[test]
    fn readers_of_another_shard_are_notified_once_for_all_of_them() {
        let (mut writer, buffer) =
            buffer::writer::channel("S", Limits::default(), &Budget::new(1 << 20, 10), None);
        let tag = SourceTag::of_stream("S", 1);
        writer.begin(tag, 0);
        let (ready, shard) = mpsc::sync_channel(1);
        let (report, seen) = mpsc::sync_channel(10);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let dispatching = run_dispatcher();
            let notifier = current_shard().unwrap();
            runtime.block_on(async {
                tokio::spawn(dispatching);
                for _ in 0..10 {
                    let (filters, report) = (
                        FilterSet::new([Filter::parse("a").unwrap()]),
                        report.clone(),
                    );
                    let opened = buffer
                        .open(filters, &Arc::default(), Start::Live)
                        .now_or_never()
                        .unwrap();
                    let mut cursor = opened.unwrap().cursor;
                    tokio::spawn(poll_fn::<(), _>(move |task| {
                        let mut batch = Batch::default();
                        while cursor.poll_read(task, &mut batch, 1000).is_ready() {
                            report
                                .send((thread::current().id(), batch.items.len()))
                                .unwrap();
                            batch.items.clear();
                        }
                        Poll::Pending
                    }));
                }
                // The readers have been polled once and are idle.
                tokio::task::yield_now().await;
                ready.send(notifier).unwrap();
                stopped.await
            })
        });
        let (notifier, there) = (shard.recv().unwrap(), thread.thread().id());
        for seq in 1..=100 {
            let position = Position {
                tag,
                seq,
                fingerprint: None,
            };
            let (subject, data, received) = ("a".into(), "x".into(), std::time::Instant::now());
            let event = Event {
                position,
                subject,
                name: None,
                tier: None,
                message_id: None,
                data,
                received,
            };
            writer.append(vec![event]);
            assert!(
                notifier.pending().len() <= 1,
                "one notification for ten readers"
            );
            for _ in 0..10 {
                assert_eq!(
                    seen.recv_timeout(Duration::from_secs(10)),
                    Ok((there, 1)),
                    "each reader receives the event once"
                );
            }
        }
        drop(stop);
        assert!(
            thread.join().unwrap().is_err(),
            "the shard ends when it is stopped"
        );
    }
}
