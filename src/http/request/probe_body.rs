//! Event stream of a probe: numbered lines at fixed times.
//!
//! Line `n` is sent `n * every` after the first one. The last event says that all were sent, or that
//! the pod drains.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

/// Lines that a probe asks for.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Lines {
    pub(super) count: u32,
    pub(super) every: Duration,
    /// Bytes of one line.
    pub(super) bytes: u32,
}

/// Body of the response to a probe.
pub(in crate::http) struct ProbeBody {
    lines: Lines,
    sent: u32,
    started: Instant,
    wait: Pin<Box<Sleep>>,
    has_ended: bool,
    draining: Arc<AtomicBool>,
    _permit: OwnedSemaphorePermit,
}

/// 500 ms: how long a drain waits for a probe.
const TICK: Duration = Duration::from_millis(500);

impl Default for Lines {
    fn default() -> Self {
        Self {
            count: 1,
            every: Duration::ZERO,
            bytes: 0,
        }
    }
}

impl Lines {
    /// 70 s: the doctor looks for timeouts of up to a minute.
    pub(super) const TIME_MAX: Duration = Duration::from_secs(70);

    /// 128 KiB: larger than the buffers of proxies by default.
    pub(super) const BYTES_MAX: u32 = 128 << 10;

    /// 512: a line every 250 ms is more than a minute of them.
    const COUNT_MAX: u32 = 512;

    /// Returns these lines within the bounds of a probe.
    pub(super) fn bounded(self) -> Self {
        let count = self.count.clamp(1, Self::COUNT_MAX);
        Self {
            count,
            every: self.every.min(Self::TIME_MAX / count),
            bytes: self.bytes.min(Self::BYTES_MAX / count),
        }
    }

    /// Returns the time from the first line to the last.
    #[cfg(test)]
    pub(super) fn total(self) -> Duration {
        self.every * (self.count - 1)
    }
}

impl ProbeBody {
    pub(super) fn new(
        lines: Lines,
        draining: Arc<AtomicBool>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            lines,
            sent: 0,
            started: Instant::now(),
            wait: Box::pin(sleep(Duration::ZERO)),
            has_ended: false,
            draining,
            _permit: permit,
        }
    }

    /// Returns the next line, or the end.
    pub(in crate::http) fn poll_line(&mut self, task: &mut TaskContext<'_>) -> Poll<Option<Bytes>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        loop {
            if self.draining.load(Ordering::Relaxed) {
                return self.end("draining");
            }
            if self.sent == self.lines.count {
                return self.end("complete");
            }
            let due = self.started + self.lines.every * self.sent;
            let now = Instant::now();
            if due <= now {
                return Poll::Ready(Some(self.line(now)));
            }
            ready!(self.poll_wait(due, now, task));
        }
    }

    fn poll_wait(&mut self, due: Instant, now: Instant, task: &mut TaskContext<'_>) -> Poll<()> {
        if self.wait.is_elapsed() || self.wait.deadline() <= now {
            self.wait.as_mut().reset(due.min(now + TICK));
        }
        self.wait.as_mut().poll(task)
    }

    fn line(&mut self, now: Instant) -> Bytes {
        let ms = now.duration_since(self.started).as_millis();
        let mut line = format!("data: {{\"n\":{},\"ms\":{ms}}}\n", self.sent);
        let padding = (self.lines.bytes as usize).saturating_sub(line.len() + 3);
        if padding > 0 {
            line.push(':');
            line.extend(std::iter::repeat_n('.', padding));
            line.push('\n');
        }
        line.push('\n');
        self.sent += 1;
        line.into()
    }

    fn end(&mut self, reason: &'static str) -> Poll<Option<Bytes>> {
        self.has_ended = true;
        let event = format!("event: end\ndata: {{\"reason\":\"{reason}\"}}\n\n");
        Poll::Ready(Some(event.into()))
    }
}
