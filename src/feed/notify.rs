//! Tells threads that feeds have something new for readers of theirs: one word to a thread, however many they are.
//!
//! A runtime on one thread is told from outside of each task that is to run with a system call of its own. A thousand
//! readers on other threads would be a thousand of those for every event, one after the other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures_util::task::AtomicWaker;

use super::dispatch::{Dispatcher, Pass};
use super::feed::Feed;

/// A thread that has readers.
#[derive(Debug, Default)]
pub(super) struct ShardNotifier {
    /// Feeds with something new, each once until it is looked at.
    rung: Mutex<Vec<Arc<Feed>>>,
    task: AtomicWaker,
}

impl ShardNotifier {
    fn rung(&self) -> MutexGuard<'_, Vec<Arc<Feed>>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    static HERE: RefCell<Option<Arc<ShardNotifier>>> = const { RefCell::new(None) };
}

/// Makes this thread one whose readers are told together, and given what they wait for where they have an outlet. To be
/// spawned on its runtime, before there are any.
pub fn answer() -> impl Future<Output = Infallible> + Send + 'static {
    let bell = Arc::new(ShardNotifier::default());
    HERE.set(Some(bell.clone()));
    async move {
        let (mut rounds, mut courier) = (VecDeque::new(), Dispatcher::default());
        loop {
            poll_fn(|task| {
                bell.task.register(task.waker());
                rounds.extend(bell.rung().drain(..).map(Pass::new));
                if rounds.is_empty() {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
            courier.turn(&bell, &mut rounds);
            if !rounds.is_empty() {
                // What has come meanwhile is taken first: whoever is late then has more in one write.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The bell of this thread, if it answers one.
pub(super) fn here() -> Option<Arc<ShardNotifier>> {
    HERE.with_borrow(Clone::clone)
}

/// What is to be told when no lock is held. Kept and used again: it allocates nothing then.
#[derive(Debug, Default)]
pub(super) struct WakeList {
    /// Readers of threads that answer no bell.
    pub(super) wake: Vec<Waker>,
    rings: Vec<(Arc<ShardNotifier>, Vec<Arc<Feed>>)>,
}

impl WakeList {
    /// This feed has something new for readers of the thread with this bell.
    pub(super) fn ring(&mut self, bell: &Arc<ShardNotifier>, feed: &Arc<Feed>) {
        match self
            .rings
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, bell))
        {
            Some((_, feeds)) => feeds.push(feed.clone()),
            None => self.rings.push((bell.clone(), vec![feed.clone()])),
        }
    }

    /// Tells everyone.
    pub(super) fn tell(&mut self) {
        self.wake.drain(..).for_each(Waker::wake);
        for (bell, feeds) in self.rings.iter_mut().filter(|(_, feeds)| !feeds.is_empty()) {
            bell.rung().append(feeds);
            bell.task.wake();
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
    use crate::feed::{Batch, Budget, Limits, Start, buffer};
    use crate::sse::{Event, Position, SourceTag};
    use crate::subject::{Filter, FilterSet};

    #[test]
    fn readers_of_another_thread_are_told_there_once_for_all_of_them() {
        let (mut writer, log) =
            buffer::channel("S", Limits::default(), &Budget::new(1 << 20, 10), None);
        let tag = SourceTag::of_stream("S", 1);
        writer.begin(tag, 0);
        let (ready, shard) = mpsc::sync_channel(1);
        let (told, seen) = mpsc::sync_channel(10);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let answering = answer();
            let bell = here().unwrap();
            runtime.block_on(async {
                tokio::spawn(answering);
                for _ in 0..10 {
                    let (filters, told) =
                        (FilterSet::new([Filter::parse("a").unwrap()]), told.clone());
                    let opened = log
                        .open(filters, &Arc::default(), Start::Live)
                        .now_or_never()
                        .unwrap();
                    let mut cursor = opened.unwrap().cursor;
                    tokio::spawn(poll_fn::<(), _>(move |task| {
                        let mut batch = Batch::default();
                        while cursor.poll_read(task, &mut batch, 1000).is_ready() {
                            told.send((thread::current().id(), batch.items.len()))
                                .unwrap();
                            batch.items.clear();
                        }
                        Poll::Pending
                    }));
                }
                // The readers have had their turn, and wait.
                tokio::task::yield_now().await;
                ready.send(bell).unwrap();
                stopped.await
            })
        });
        let (bell, there) = (shard.recv().unwrap(), thread.thread().id());
        for seq in 1..=100 {
            let position = Position {
                tag,
                seq,
                check: None,
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
            assert!(bell.rung().len() <= 1, "one word for ten readers");
            for _ in 0..10 {
                assert_eq!(
                    seen.recv_timeout(Duration::from_secs(10)),
                    Ok((there, 1)),
                    "each has the event once"
                );
            }
        }
        drop(stop);
        assert!(
            thread.join().unwrap().is_err(),
            "it has ended because it was told to"
        );
    }
}
