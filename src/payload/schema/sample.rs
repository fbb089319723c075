//! Thread that validates copies of payloads, for `validate: count`.
//!
//! Nothing waits for it. While its queue is full, payloads are skipped, and counted as that. It
//! works for at most a tenth of the time, so that validation never takes more than a tenth of a
//! core.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::compiled::CompiledSchema;
use super::live::LiveSchema;

/// 1,024 payloads, and 8 MiB of them or a larger one alone.
const QUEUE_MAX: usize = 1024;
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Pause after work, in times of the work: it takes a tenth of the time.
const PAUSE_FACTOR: u32 = 9;

/// 10 ms: shorter pauses are added up.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Queue of the thread. Dropping it ends the thread after what it has.
#[derive(Debug)]
pub(super) struct Sampler {
    queue: Option<SyncSender<Sample>>,
    bytes: Arc<AtomicUsize>,
}

/// Payload to validate.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) schema: Arc<LiveSchema>,
    pub(super) compiled: Arc<CompiledSchema>,
    pub(super) subject: Arc<str>,
    pub(super) sequence: u64,
    pub(super) payload: Box<[u8]>,
}

impl Sampler {
    /// Starts the thread. Without one, every payload is skipped.
    pub(super) fn start() -> Self {
        let (queue, samples) = mpsc::sync_channel(QUEUE_MAX);
        let bytes = Arc::<AtomicUsize>::default();
        let queued = bytes.clone();
        let thread = thread::Builder::new().name("schemas".to_owned());
        let started = thread.spawn(move || run(&samples, &queued));
        if let Err(error) = &started {
            tracing::error!(%error, "no thread for the validation of payloads");
        }
        Self {
            queue: started.is_ok().then_some(queue),
            bytes,
        }
    }

    /// Adds a payload of this length; false if the queue is full. `sample` copies it.
    pub(super) fn send(&self, len: usize, sample: impl FnOnce() -> Sample) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        let before = self.bytes.fetch_add(len, Ordering::Relaxed);
        let fits = before == 0 || before + len <= QUEUE_BYTES_MAX;
        let is_sent = fits && queue.try_send(sample()).is_ok();
        if !is_sent {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
        }
        is_sent
    }
}

fn run(samples: &Receiver<Sample>, bytes: &AtomicUsize) {
    let mut pause = Duration::ZERO;
    while let Ok(sample) = samples.recv() {
        let began = Instant::now();
        let Sample {
            schema,
            compiled,
            subject,
            sequence,
            payload,
        } = sample;
        schema.validate(&compiled, &subject, sequence, &payload);
        bytes.fetch_sub(payload.len(), Ordering::Relaxed);
        pause += began.elapsed() * PAUSE_FACTOR;
        if pause >= PAUSE_MIN {
            #[expect(clippy::disallowed_methods, reason = "no runtime runs on this thread")]
            thread::sleep(pause);
            pause = Duration::ZERO;
        }
    }
}
