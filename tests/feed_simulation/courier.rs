//! What is given to readers past their reading: by rounds of the courier, to outlets that take it by chance.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use fastrand::Rng;
use sidestream::feed::{Handed, Outlet, Piece, answer};
use sidestream::sse::{Component, EventId, Tag};

/// Answers the bell of the simulation's thread, a turn at a time.
pub(crate) struct Courier(Pin<Box<dyn Future<Output = std::convert::Infallible>>>);

/// The outlet of one reader.
#[derive(Debug, Default)]
pub(crate) struct ChanceOutlet {
    is_open: AtomicBool,
    /// Events as they were handed, not looked at yet.
    handed: Mutex<Vec<String>>,
}

/// More turns than any step leaves to do.
const ALL: usize = 64;

impl Courier {
    pub(crate) fn new() -> Self {
        Self(Box::pin(answer()))
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
    pub(crate) fn take(&self, tag: Tag) -> Vec<(String, Component)> {
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

impl Outlet for ChanceOutlet {
    fn look(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    fn hand(self: Arc<Self>, piece: &Piece) -> Handed {
        let handed = match fastrand::u8(..5) {
            _ if !self.look() => Handed::Refused,
            0 => Handed::Refused,
            1 => Handed::Kept,
            2 => Handed::Queued,
            _ => Handed::Sent,
        };
        if handed != Handed::Refused {
            let text = std::str::from_utf8(piece.chunk.content()).unwrap();
            let events: Vec<String> = text.split_inclusive("\n\n").map(str::to_owned).collect();
            assert_eq!(events.len() as u64, piece.events);
            self.handed.lock().unwrap().extend(events);
        }
        if matches!(handed, Handed::Refused | Handed::Kept) {
            self.close();
        }
        handed
    }
}
