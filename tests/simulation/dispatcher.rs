//! Direct sends in the simulation: the dispatcher in steps, and sinks with random outcomes.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use fastrand::Rng;
use sidestream::event::{Position, SourceTag};
use sidestream::feed::{DirectSink, EncodedRun, SendOutcome, run_dispatcher};

use super::items;

/// Dispatcher of the simulation's thread, run a step at a time.
pub(crate) struct Dispatcher(Pin<Box<dyn Future<Output = std::convert::Infallible>>>);

/// Sink of one reader that accepts runs at random. It also queues them, which the sink of HTTP/2
/// does; `stream_world` has the real sinks of HTTP/1.
#[derive(Debug, Default)]
pub(crate) struct RandomSink {
    /// Events sent since the last `take`.
    sent: Mutex<Vec<String>>,
}

/// More steps than any step of a world leaves to do.
const ALL: usize = 64;

impl Dispatcher {
    pub(crate) fn new() -> Self {
        Self(Box::pin(run_dispatcher()))
    }

    /// Runs some steps, at random all that are left; returns true in that case.
    pub(crate) fn run_some(&mut self, rng: &mut Rng) -> bool {
        let steps = if rng.u8(..4) == 0 {
            rng.usize(..3)
        } else {
            ALL
        };
        self.run_steps(steps);
        steps == ALL
    }

    /// Runs all steps that are left.
    pub(crate) fn finish(&mut self) {
        self.run_steps(ALL);
    }

    fn run_steps(&mut self, steps: usize) {
        let mut dispatching = pin!(&mut self.0);
        for _ in 0..steps {
            assert!(
                dispatching
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
        }
    }
}

impl RandomSink {
    /// Takes the events sent since the last call, with their positions under this tag.
    pub(crate) fn take(&self, tag: SourceTag) -> Vec<(String, Position)> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter()
            .map(|text| (items::position(&text, tag), text))
            .map(|(position, text)| (text, position))
            .collect()
    }
}

impl DirectSink for RandomSink {
    fn admits(&self, _run: &EncodedRun) -> bool {
        fastrand::u8(..5) > 0
    }

    fn send(self: Arc<Self>, run: &EncodedRun) -> SendOutcome {
        let outcome = match fastrand::u8(..5) {
            0 => SendOutcome::Rejected,
            1 => SendOutcome::Partial,
            2 => SendOutcome::Queued,
            _ => SendOutcome::Sent,
        };
        if outcome != SendOutcome::Rejected {
            let content = run.bytes.content();
            let text = match run.size {
                Some(size) => items::decode_sent(content, size),
                None => String::from_utf8(content.to_vec()).unwrap(),
            };
            let events = items::split(&text).into_iter().map(str::to_owned);
            let events: Vec<String> = events.collect();
            assert_eq!(events.len() as u64, run.events);
            self.sent.lock().unwrap().extend(events);
        }
        outcome
    }
}
