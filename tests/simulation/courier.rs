//! What is given to readers past their reading: by rounds of the courier, to outlets that take it by chance.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use fastrand::Rng;
use sidestream::feed::{DirectSink, EncodedRun, SendOutcome, run_dispatcher};
use sidestream::sse::{EventId, Position, SourceTag};

/// Answers the bell of the simulation's thread, a turn at a time.
pub(crate) struct Dispatcher(Pin<Box<dyn Future<Output = std::convert::Infallible>>>);

/// The outlet of one reader.
#[derive(Debug, Default)]
pub(crate) struct ChanceOutlet {
    is_open: AtomicBool,
    /// Events as they were handed, not looked at yet.
    handed: Mutex<Vec<String>>,
}

/// More turns than any step leaves to do.
const ALL: usize = 64;

impl Dispatcher {
    pub(crate) fn new() -> Self {
        Self(Box::pin(run_dispatcher()))
    }

    /// Some turns, by chance all that there are to do. True then.
    pub(crate) fn turn(&mut self, rng: &mut Rng) -> bool {
        let turns = if rng.u8(..4) == 0 {
            rng.usize(..3)
        } else {
            ALL
        };
        self.turns(turns);
        turns == ALL
    }

    /// Everything there is to do.
    pub(crate) fn finish(&mut self) {
        self.turns(ALL);
    }

    fn turns(&mut self, turns: usize) {
        let mut answering = pin!(&mut self.0);
        for _ in 0..turns {
            assert!(
                answering
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
        }
    }
}

impl ChanceOutlet {
    /// The reader waits, and by chance can be given something past its reading.
    pub(crate) fn open(self: &Arc<Self>) {
        self.is_open.store(fastrand::bool(), Ordering::Relaxed);
    }

    pub(crate) fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// What was handed since, in the numbers of this tag.
    pub(crate) fn take(&self, tag: SourceTag) -> Vec<(String, Position)> {
        let position = |text: &str| {
            let id = text.rsplit("id: ").next().unwrap().trim_end();
            EventId::parse(id.as_bytes())
                .unwrap()
                .find(tag)
                .expect("a reader is handed what is in its numbers")
        };
        let handed = std::mem::take(&mut *self.handed.lock().unwrap());
        handed
            .into_iter()
            .map(|text| (position(&text), text))
            .map(|(position, text)| (text, position))
            .collect()
    }
}

impl DirectSink for ChanceOutlet {
    fn prefetch(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    fn try_send(self: Arc<Self>, piece: &EncodedRun) -> SendOutcome {
        let handed = match fastrand::u8(..5) {
            _ if !self.prefetch() => SendOutcome::Rejected,
            0 => SendOutcome::Rejected,
            1 => SendOutcome::Partial,
            2 => SendOutcome::Queued,
            _ => SendOutcome::Sent,
        };
        if handed != SendOutcome::Rejected {
            let text = std::str::from_utf8(piece.chunk.content()).unwrap();
            let events: Vec<String> = text.split_inclusive("\n\n").map(str::to_owned).collect();
            assert_eq!(events.len() as u64, piece.events);
            self.handed.lock().unwrap().extend(events);
        }
        if matches!(handed, SendOutcome::Rejected | SendOutcome::Partial) {
            self.close();
        }
        handed
    }
}
