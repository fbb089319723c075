//! Bounded queue before standard error, and the thread that writes it: logging never blocks.
//!
//! If a log collector hangs, the pipe of standard error is full, and a write blocks until the
//! collector recovers. Threads that log only append to a buffer; one thread writes the buffer. If
//! the buffer is full, the line is dropped and counted, and a line with the number follows when
//! writing works again.
//!
//! ```text
//! tracing -> Queue::push (a lock, a copy) -> pending -> the writer's thread -> write(2)
//! ```
//!
//! The writer takes all pending lines at once and then waits [`GATHER`]: a storm of lines needs one
//! system call for many lines and no wake-up of the thread per line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// 1 MiB: thousands of lines. A collector that restarts loses no line, and one that hangs uses
/// bounded memory.
const PENDING_BYTES_MAX: usize = 1 << 20;

/// 64 KiB: capacity that the two buffers keep after a burst.
const PENDING_BYTES_KEPT: usize = 64 * 1024;

/// 5 ms: lines are collected for this long after a write. The first line after a pause is written
/// at once.
const GATHER: Duration = Duration::from_millis(5);

/// 1 s: pause after a failed write. A full disk or a closed pipe does not recover sooner.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// 20 ms: pause after a write to a full pipe that another process has made non-blocking.
const PAUSE_WHEN_FULL: Duration = Duration::from_millis(20);

/// Queue of pending lines. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a line is pending.
    filled: Condvar,
    /// Notified after each write.
    written: Condvar,
    /// Dropped lines that the metric does not include yet.
    uncounted: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Dropped lines that are not logged yet.
    dropped: u64,
    /// The writer waits for a line and must be notified.
    is_idle: bool,
    /// The writer has taken lines and not written them yet.
    is_writing: bool,
    /// The process ends: the writer does not pause.
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

    /// Waits until every line is written, at most `timeout`. Lines logged later may be written or
    /// not.
    pub(super) fn flush(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
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

    /// Runs the writer thread: writes lines to `out` until the process ends. `report` logs the
    /// number of dropped lines.
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

    /// Writes all bytes. The error is the number of lines that were not written completely.
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

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Starts a writer thread on one end of a socket. Returns the other end and the reported
    /// numbers.
    fn writer(queue: &Queue) -> (UnixStream, mpsc::Receiver<u64>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (report, reports) = mpsc::sync_channel(16);
        let queue = queue.clone();
        std::thread::spawn(move || queue.write_to(theirs, |dropped| report.send(dropped).unwrap()));
        (ours, reports)
    }

    #[test]
    fn lines_are_written_in_order() {
        let queue = Queue::default();
        let (mut read, _reports) = writer(&queue);
        let mut expected = String::new();
        for number in 0..1_000 {
            let line = format!("line {number}\n");
            queue.push(line.as_bytes());
            expected.push_str(&line);
        }
        queue.flush(DEADLINE);
        let mut found = vec![0; expected.len()];
        io::Read::read_exact(&mut read, &mut found).unwrap();
        assert_eq!(String::from_utf8(found).unwrap(), expected);
        assert_eq!(queue.take_uncounted(), 0);
    }

    #[test]
    fn stopped_reader_uses_bounded_memory_and_dropped_lines_are_counted_and_reported_once() {
        let queue = Queue::default();
        let (mut read, reports) = writer(&queue);
        let line = [b"x".repeat(1_023), b"\n".to_vec()].concat();
        // More than the buffers of the socket and the queue.
        let pushed = 8_192;
        (0..pushed).for_each(|_| queue.push(&line));
        assert!(queue.lock().pending.len() <= PENDING_BYTES_MAX);
        let dropped = queue.take_uncounted();
        assert!(dropped > 4_096, "{dropped}");
        let begun = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(begun.elapsed() < DEADLINE, "flush ends at its timeout");

        let mut rest = vec![0; (pushed - usize::try_from(dropped).unwrap()) * line.len()];
        io::Read::read_exact(&mut read, &mut rest).unwrap();
        assert_eq!(reports.recv_timeout(DEADLINE).unwrap(), dropped);
        queue.push(&line);
        io::Read::read_exact(&mut read, &mut rest[..line.len()]).unwrap();
        assert!(reports.try_recv().is_err(), "reported once");
        assert_eq!(queue.take_uncounted(), 0);
    }

    #[test]
    fn failing_output_drops_lines_without_panic_or_delay() {
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
        queue.flush(DEADLINE);
        assert!(begun.elapsed() < DEADLINE);
        assert_eq!(queue.take_uncounted(), 3);
    }
}
