//! The bounded queue in front of standard error, and the thread that writes it, so that logging never blocks.
//!
//! A log collector that hangs leaves a full pipe behind standard error, and a write to it blocks for as long as the
//! collector hangs. Threads that log only append to a buffer; one thread writes the buffer. A line that finds the buffer
//! full is dropped and counted, and one line with the number of dropped lines follows when writing works again.
//!
//! ```text
//! tracing -> Queue::push (a lock, a copy) -> pending -> the writer's thread -> write(2)
//! ```
//!
//! The writer takes all pending lines at once and then waits [`GATHER`] before it looks again: a storm of lines costs one
//! system call for many of them, and no wake-up of the thread for each.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// 1 MiB: some thousands of lines. A collector that restarts misses nothing, and one that hangs costs no more memory.
const PENDING_BYTES_MAX: usize = 1 << 20;

/// 64 KiB: the capacity that the two buffers keep after a burst.
const PENDING_BYTES_KEPT: usize = 64 * 1024;

/// 5 ms: for how long lines are gathered after a write. The first line after a silence is written at once.
const GATHER: Duration = Duration::from_millis(5);

/// 1 s: the pause after a failed write. A full disk or a closed pipe does not recover sooner, and each try is a system call.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// 20 ms: the pause after a write to a full pipe that was made non-blocking by another process.
const PAUSE_WHEN_FULL: Duration = Duration::from_millis(20);

/// Lines that wait to be written. Clones share the queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to write.
    filled: Condvar,
    /// Notified after each write.
    written: Condvar,
    /// Dropped lines that are in no metric yet.
    uncounted: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Dropped lines that no line reports yet.
    dropped: u64,
    /// The writer waits for the first line: it must be notified.
    is_idle: bool,
    /// The writer holds lines that it has taken and not written yet.
    is_writing: bool,
    /// The process ends: pauses are over.
    is_ending: bool,
}

impl Queue {
    /// Appends a line, or drops and counts it. Never waits for the writer.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.pending.len() + line.len() > PENDING_BYTES_MAX {
            state.dropped += 1;
            drop(state);
            self.0.uncounted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.pending.extend_from_slice(line);
        if std::mem::take(&mut state.is_idle) {
            drop(state);
            self.0.filled.notify_one();
        }
    }

    /// Returns the number of lines dropped since the last call, for the metric.
    pub(super) fn take_uncounted(&self) -> u64 {
        self.0.uncounted.swap(0, Ordering::Relaxed)
    }

    /// Waits until every line is written, for as long as this at most. Lines logged later may be written or not.
    pub(super) fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        state.is_ending = true;
        self.0.filled.notify_one();
        while !state.pending.is_empty() || state.is_writing {
            let Some(left) = end
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                return;
            };
            state = self
                .0
                .written
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Writes lines to `out` until the process ends: the writer's thread. `report` logs the number of dropped lines.
    pub(super) fn write_to(&self, mut out: impl Write, report: impl Fn(u64)) {
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            let pause = match self.write_batch(&mut out, &batch) {
                Ok(()) => {
                    let dropped = std::mem::take(&mut self.lock().dropped);
                    if dropped > 0 {
                        report(dropped);
                    }
                    GATHER
                }
                Err(unwritten) => {
                    self.lock().dropped += unwritten;
                    self.0.uncounted.fetch_add(unwritten, Ordering::Relaxed);
                    PAUSE_AFTER_FAILURE
                }
            };
            batch.clear();
            batch.shrink_to(PENDING_BYTES_KEPT);
            let mut state = self.lock();
            state.is_writing = false;
            self.0.written.notify_all();
            self.pause(state, pause);
        }
    }

    /// Waits for lines and swaps them into the empty `batch`.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut state = self.lock();
        while state.pending.is_empty() {
            state.is_idle = true;
            state = self
                .0
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.is_idle = false;
        state.is_writing = true;
        std::mem::swap(&mut state.pending, batch);
    }

    /// Writes all of it; the error is the number of lines that were not written completely.
    fn write_batch(&self, out: &mut impl Write, mut bytes: &[u8]) -> Result<(), u64> {
        while !bytes.is_empty() {
            match out.write(bytes) {
                Ok(written) if written > 0 => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let state = self.lock();
                    drop(self.0.filled.wait_timeout(state, PAUSE_WHEN_FULL));
                }
                Ok(_) | Err(_) => {
                    return Err(bytes.iter().filter(|byte| **byte == b'\n').count() as u64);
                }
            }
        }
        Ok(())
    }

    /// Waits, unless the process ends.
    fn pause(&self, state: MutexGuard<'_, State>, pause: Duration) {
        drop(
            self.0
                .filled
                .wait_timeout_while(state, pause, |state| !state.is_ending),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fmt layer writes each event with one call.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A writer's thread on one end of a socket; the other end, and the numbers of dropped lines that were reported.
    fn writer(queue: &Queue) -> (UnixStream, mpsc::Receiver<u64>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (report, reports) = mpsc::sync_channel(16);
        let queue = queue.clone();
        std::thread::spawn(move || queue.write_to(theirs, |dropped| report.send(dropped).unwrap()));
        (ours, reports)
    }

    #[test]
    fn lines_are_written_in_their_order() {
        let queue = Queue::default();
        let (mut read, _reports) = writer(&queue);
        let mut expected = String::new();
        for number in 0..1_000 {
            let line = format!("line {number}\n");
            queue.push(line.as_bytes());
            expected.push_str(&line);
        }
        queue.flush(PATIENCE);
        let mut found = vec![0; expected.len()];
        io::Read::read_exact(&mut read, &mut found).unwrap();
        assert_eq!(String::from_utf8(found).unwrap(), expected);
        assert_eq!(queue.take_uncounted(), 0);
    }

    #[test]
    fn a_reader_that_stops_costs_bounded_memory_and_every_dropped_line_is_counted_and_reported_once()
     {
        let queue = Queue::default();
        let (mut read, reports) = writer(&queue);
        let line = [b"x".repeat(1_023), b"\n".to_vec()].concat();
        // More than the socket's buffers and the queue hold.
        let pushed = 8_192;
        (0..pushed).for_each(|_| queue.push(&line));
        assert!(queue.lock().pending.len() <= PENDING_BYTES_MAX);
        let dropped = queue.take_uncounted();
        assert!(dropped > 4_096, "{dropped}");
        let begun = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(
            begun.elapsed() < PATIENCE,
            "a flush to a reader that has stopped ends at its deadline"
        );

        let mut rest = vec![0; (pushed - usize::try_from(dropped).unwrap()) * line.len()];
        io::Read::read_exact(&mut read, &mut rest).unwrap();
        assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), dropped);
        queue.push(&line);
        io::Read::read_exact(&mut read, &mut rest[..line.len()]).unwrap();
        assert!(reports.try_recv().is_err(), "reported once");
        assert_eq!(queue.take_uncounted(), 0);
    }

    #[test]
    fn a_failing_output_drops_lines_and_neither_panics_nor_delays_the_end() {
        let queue = Queue::default();
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let writer = queue.clone();
        std::thread::spawn(move || writer.write_to(full, |_| panic!("nothing was written")));
        for _ in 0..3 {
            queue.push(b"a line\n");
        }
        let begun = Instant::now();
        queue.flush(PATIENCE);
        assert!(begun.elapsed() < PATIENCE);
        assert_eq!(queue.take_uncounted(), 3);
    }
}
