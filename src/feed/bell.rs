//! Wakes readers on their own threads: one word to a thread, however many of its readers have something to read.
//!
//! A runtime on one thread is told from outside of each task that is to run with a system call of its own. A thousand
//! readers on other threads would be a thousand of those for every event, one after the other.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures_util::task::AtomicWaker;

/// A thread that has readers.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// Its readers that are to be woken, each once at the most.
    rung: Mutex<Vec<Waker>>,
    task: AtomicWaker,
}

impl Bell {
    fn rung(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    static HERE: RefCell<Option<Arc<Bell>>> = const { RefCell::new(None) };
}

/// Makes this thread one whose readers other threads wake together. To be spawned on its runtime, before there are any.
pub fn answer() -> impl Future<Output = Infallible> + Send + 'static {
    let bell = Arc::new(Bell::default());
    HERE.set(Some(bell.clone()));
    let mut woken = Vec::new();
    poll_fn(move |task| {
        bell.task.register(task.waker());
        std::mem::swap(&mut *bell.rung(), &mut woken);
        woken.drain(..).for_each(Waker::wake);
        Poll::Pending
    })
}

/// The bell of this thread, if it answers one.
pub(super) fn here() -> Option<Arc<Bell>> {
    HERE.with_borrow(Clone::clone)
}

/// Readers that are to be woken when no lock is held, by their threads. Kept and used again: it allocates nothing then.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    unheard: Vec<Waker>,
    heard: Vec<(Arc<Bell>, Vec<Waker>)>,
}

impl Wakers {
    /// Adds a reader of the thread with this bell.
    pub(super) fn add(&mut self, bell: Option<&Arc<Bell>>, waker: Waker) {
        let Some(bell) = bell else { return self.unheard.push(waker) };
        match self.heard.iter_mut().find(|(known, _)| Arc::ptr_eq(known, bell)) {
            Some((_, wakers)) => wakers.push(waker),
            None => self.heard.push((bell.clone(), vec![waker])),
        }
    }

    /// Wakes all of them.
    pub(super) fn wake(&mut self) {
        self.unheard.drain(..).for_each(Waker::wake);
        let here = here();
        for (bell, wakers) in self.heard.iter_mut().filter(|(_, wakers)| !wakers.is_empty()) {
            if here.as_ref().is_some_and(|here| Arc::ptr_eq(here, bell)) {
                wakers.drain(..).for_each(Waker::wake);
            } else {
                bell.rung().append(wakers);
                bell.task.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Notes on which thread it is woken.
    struct Reader(mpsc::SyncSender<thread::ThreadId>, Arc<AtomicUsize>);

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.send(thread::current().id()).unwrap();
        }
    }

    #[test]
    fn readers_are_woken_on_their_own_thread_and_those_of_no_bell_at_once() {
        let (bells, bell) = mpsc::sync_channel(1);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shard = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let answering = answer();
            bells.send(here().unwrap()).unwrap();
            runtime.block_on(async {
                tokio::spawn(answering);
                stopped.await
            })
        });
        let (bell, there) = (bell.recv().unwrap(), shard.thread().id());
        let ((told, woken), count) = (mpsc::sync_channel(11), Arc::new(AtomicUsize::new(0)));
        let reader = || Waker::from(Arc::new(Reader(told.clone(), count.clone())));
        let mut wakers = Wakers::default();
        for round in 1..=100 {
            (0..10).for_each(|_| wakers.add(Some(&bell), reader()));
            wakers.add(None, reader());
            wakers.wake();
            let by: Vec<_> = (0..11).map(|_| woken.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
            assert_eq!(by.iter().filter(|thread| **thread == there).count(), 10);
            assert_eq!(by.iter().filter(|thread| **thread == thread::current().id()).count(), 1);
            assert_eq!(count.load(Ordering::Relaxed), round * 11, "each is woken once");
        }
        drop(stop);
        assert!(shard.join().unwrap().is_err(), "it has ended because it was told to");
    }

    #[tokio::test]
    async fn a_thread_wakes_its_own_readers_without_ringing() {
        let _answering = answer();
        let ((told, woken), count) = (mpsc::sync_channel(11), Arc::new(AtomicUsize::new(0)));
        let mut wakers = Wakers::default();
        wakers.add(here().as_ref(), Waker::from(Arc::new(Reader(told, count))));
        wakers.wake();
        assert_eq!(woken.try_recv(), Ok(thread::current().id()));
    }
}
