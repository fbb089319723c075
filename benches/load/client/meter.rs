//! Counts and latencies of all clients together, and the wait for a goal.
//!
//! Every client calls [`Meter::update`] for every read. The measurement sets a [`Goal`] with
//! [`Meter::until`] and sleeps until the counts reach it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::Notify;

use crate::wire::events::Seen;
use crate::wire::sequence::Order;

/// Counter shared by all clients. The lock is never contended, because clients run on one thread.
pub(crate) struct Meter {
    inner: Mutex<Inner>,
    reached: Notify,
}

struct Inner {
    /// Read buffer of all clients: one buffer stays in the cache, ten thousand would not.
    scratch: Vec<u8>,
    tally: Tally,
    goal: Goal,
}

/// Condition to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Number of clients that received their first byte or failed.
    Settled(u64),
    /// Number of clients whose event stream has ended.
    Ended(u64),
    /// Number of events without duplicates, since the clients opened.
    Events(u64),
}

/// Counts since the clients opened, and histograms since the last [`Meter::begin`].
///
/// Histograms are in microseconds.
pub(crate) struct Tally {
    /// Clients that received the first byte of a body.
    pub(crate) opened: u64,
    /// Clients that were rejected, or could not connect.
    pub(crate) failed: u64,
    /// Clients whose event stream ended unexpectedly.
    pub(crate) ended: u64,
    /// TLS connections that resumed a session.
    pub(crate) resumed: u64,
    /// Error of the first client in `failed` or `ended`.
    pub(crate) problem: Option<String>,
    /// Events without duplicates.
    pub(crate) events: u64,
    /// Events received before.
    pub(crate) duplicates: u64,
    /// Jumps in a sequence, even if they are filled later.
    pub(crate) holes: u64,
    /// Events received after a later one.
    pub(crate) late: u64,
    /// Events without an `id:` field.
    pub(crate) without_id: u64,
    /// `sidestream.gap` events.
    pub(crate) gaps: u64,
    /// `sidestream.close` events.
    pub(crate) closes: u64,
    /// Comment lines.
    pub(crate) heartbeats: u64,
    /// Bytes read from sockets or DATA frames.
    pub(crate) bytes: u64,
    /// Reads that returned bytes. `events / reads` is the number of events in a write.
    pub(crate) reads: u64,
    /// Time from the start of the connect to the first byte of the body.
    pub(crate) first_byte: Histogram<u64>,
    /// Time from publication to receipt.
    pub(crate) latency: Histogram<u64>,
    /// Time from publication to receipt by the last client.
    pub(crate) last_client: Histogram<u64>,
    fanout: Fanout,
}

/// Number of clients that wait for each event, if all clients read one subject.
struct Fanout {
    first: u64,
    waiting: Vec<u32>,
}

impl Meter {
    /// Returns a meter with all counts at zero.
    pub(crate) fn new() -> Self {
        let inner = Inner {
            scratch: vec![0; SCRATCH_BYTES],
            tally: Tally::new(),
            goal: Goal::Settled(u64::MAX),
        };
        Self {
            inner: Mutex::new(inner),
            reached: Notify::new(),
        }
    }

    /// Calls `act` with the read buffer and the counts. Notifies the waiter if the goal is met.
    pub(crate) fn update<R>(&self, act: impl FnOnce(&mut [u8], &mut Tally) -> R) -> R {
        let mut inner = self.lock();
        let Inner {
            scratch,
            tally,
            goal,
        } = &mut *inner;
        let before = goal.is_met(tally);
        let result = act(scratch, tally);
        let met = !before && goal.is_met(tally);
        drop(inner);
        if met {
            self.reached.notify_one();
        }
        result
    }

    /// Reads the counts.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Tally) -> R) -> R {
        look(&self.lock().tally)
    }

    /// Begins a measurement: clears the latencies.
    ///
    /// With `clients`, the time to the last client is measured for `events` events from sequence
    /// `first` on.
    pub(crate) fn begin(&self, first: u64, events: u64, clients: Option<u64>) {
        let events = usize::try_from(events).unwrap_or(0).min(FANOUT_EVENTS_MAX);
        let clients = clients.and_then(|clients| u32::try_from(clients).ok());
        let mut inner = self.lock();
        let tally = &mut inner.tally;
        tally.latency.reset();
        tally.last_client.reset();
        tally.fanout = Fanout {
            first,
            waiting: clients
                .map(|clients| vec![clients; events])
                .unwrap_or_default(),
        };
    }

    /// Waits for the goal. Returns false if it is not met in time.
    pub(crate) async fn until(&self, goal: Goal, timeout: Duration) -> bool {
        // Set the goal before the check: a client that meets it in between stores a notification.
        self.lock().goal = goal;
        let wait = async {
            while !self.read(|tally| goal.is_met(tally)) {
                self.reached.notified().await;
            }
        };
        tokio::time::timeout(timeout, wait).await.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Goal ===

impl Goal {
    fn is_met(self, tally: &Tally) -> bool {
        match self {
            Self::Settled(clients) => tally.opened + tally.failed >= clients,
            Self::Ended(clients) => tally.ended >= clients,
            Self::Events(events) => tally.events >= events,
        }
    }
}

// === impl Tally ===

impl Tally {
    fn new() -> Self {
        Self {
            opened: 0,
            failed: 0,
            ended: 0,
            resumed: 0,
            problem: None,
            events: 0,
            duplicates: 0,
            holes: 0,
            late: 0,
            without_id: 0,
            gaps: 0,
            closes: 0,
            heartbeats: 0,
            bytes: 0,
            reads: 0,
            first_byte: histogram(),
            latency: histogram(),
            last_client: histogram(),
            fanout: Fanout {
                first: 0,
                waiting: Vec::new(),
            },
        }
    }

    /// Counts the first byte of a client's body. Both times are from [`crate::wire::stamp::now`].
    pub(crate) fn open(&mut self, started: u64, now: u64) {
        self.opened += 1;
        self.first_byte
            .saturating_record(microseconds(started, now));
    }

    /// Counts the end of a client: a failure before its first byte, else the end of its stream.
    pub(crate) fn close(&mut self, opened: bool, problem: &dyn std::fmt::Display) {
        *(if opened {
            &mut self.ended
        } else {
            &mut self.failed
        }) += 1;
        self.problem.get_or_insert_with(|| problem.to_string());
    }

    /// Counts one read of `bytes` bytes.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.reads += 1;
        self.bytes += bytes as u64;
    }

    /// Counts something that a client received at `now`.
    pub(crate) fn see(&mut self, seen: Seen, now: u64) {
        match seen {
            Seen::Event {
                order: Order::Duplicate,
                ..
            } => self.duplicates += 1,
            Seen::Event { stamp, order, id } => {
                self.events += 1;
                self.holes += u64::from(matches!(order, Order::Hole(_)));
                self.late += u64::from(order == Order::Late);
                self.without_id += u64::from(!id);
                let latency = microseconds(stamp.sent, now);
                self.latency.saturating_record(latency);
                if self.fanout.is_last(stamp.sequence) {
                    self.last_client.saturating_record(latency);
                }
            }
            Seen::Gap => self.gaps += 1,
            Seen::Close => self.closes += 1,
            Seen::Heartbeat => self.heartbeats += 1,
        }
    }
}

// === impl Fanout ===

impl Fanout {
    /// Counts a client that received the event. Returns true for the last one.
    fn is_last(&mut self, sequence: u64) -> bool {
        let index = usize::try_from(sequence.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        let Some(waiting) = self.waiting.get_mut(index) else {
            return false;
        };
        *waiting = waiting.saturating_sub(1);
        *waiting == 0
    }
}

fn microseconds(from: u64, to: u64) -> u64 {
    to.saturating_sub(from) / 1_000
}

/// Histogram from 1 microsecond to [`LATENCY_MAX_US`], with three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_MAX_US, 3).expect("the bounds of the histogram are constants")
}

/// 256 KiB: the most that a socket holds by default on Linux, and small enough for the cache.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Two minutes: longer than any phase of the tool.
const LATENCY_MAX_US: u64 = 120_000_000;
/// 4 bytes each: max memory 4 MiB.
const FANOUT_EVENTS_MAX: usize = 1 << 20;
