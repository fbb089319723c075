//! One answer of a long poll: the events until now, or the first ones within the wait.
//!
//! ```text
//! open -> nothing to read: wait -> events, all that can be read at once -> {"events":[...],"id":"..."}
//!                                  or the end of the wait                  with no events
//! ```
//!
//! Each poll is an event stream of its own, with the limits, the drain and the metrics of all others.
//! It is collected in memory until it is complete, within [`BYTES_MAX`] and [`EVENTS_MAX`]; the task
//! of its request writes it. The answer ends with the position after its last event, from which the
//! next poll continues, here or on another pod.
//!
//! A gap, a renewal and a close are objects of the array, as in newline-delimited JSON.
//!
//! A client that begins with the latest state receives all of it in one answer, whatever its size: it
//! has no position before the state is complete. All clients of a snapshot share these bytes
//! ([`state_document`]).

use std::fmt::Display;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::time::{Instant, Sleep};

use super::gaps::notice;
use super::{EventStream, Step};
use crate::encoding::Framing;
use crate::event::Position;
use crate::event::id::Joined;
use crate::feed::snapshot::Document;
use crate::feed::{SnapshotReader, StateItem};
use crate::http::stream::compact_time;
use crate::http::stream::write_batch::{BATCH_BYTES, WriteBatch, WriteStats, Written};
use crate::presence::CloseReason;

/// 30 s: the wait of a poll that names none.
const WAIT: Duration = Duration::from_secs(30);

/// 55 s: below the 60 s after which many proxies give up on a response.
const WAIT_MAX: Duration = Duration::from_secs(55);

/// 5 s more for a client that continues in the history: a poll without a wait gets its events, too.
const HISTORY_MAX: Duration = Duration::from_secs(5);

/// 256 KiB: an answer is complete when it has as much. It can exceed this by the events of one turn.
const BYTES_MAX: usize = 256 * 1024;

/// 1000 events: as [`BYTES_MAX`].
const EVENTS_MAX: u64 = 1000;

const HEAD: &[u8] = b"{\"events\":[";

/// Answer that is collected.
struct Answer {
    bytes: BytesMut,
    stats: WriteStats,
}

/// End of the wait for the first event.
struct Wait {
    /// It is over for a client that has caught up.
    end: Instant,
    /// It is over for every client.
    last: Instant,
}

/// Returns the wait that a request asks for. `wait`: its query parameter. A client without a
/// position gets one at once, from which it cannot miss events.
///
/// # Errors
/// The parameter is not a duration.
pub(in crate::http) fn wait_of(wait: Option<&str>, has_position: bool) -> Result<Duration, ()> {
    let Some(text) = wait else {
        return Ok(if has_position { WAIT } else { Duration::ZERO });
    };
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1000),
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(());
    }
    let millis = number.parse::<u64>().unwrap_or(u64::MAX);
    Ok(Duration::from_millis(millis.saturating_mul(unit)).min(WAIT_MAX))
}

impl EventStream {
    /// Waits for events, and returns the answer. The event stream ends with it.
    pub(in crate::http) async fn answer_poll(mut self, wait: Duration) -> Bytes {
        debug_assert_eq!(self.state.framing, Framing::LongPoll);
        if let Some(answer) = self.answer_state().await {
            return answer;
        }
        let now = Instant::now();
        let wait = Wait {
            end: now + wait,
            last: now + wait.max(HISTORY_MAX),
        };
        let mut answer = Answer::new();
        let mut timer = pin!(tokio::time::sleep_until(wait.end));
        let close = poll_fn(|task| self.poll_collect(task, &mut answer, &wait, timer.as_mut()));
        let close = close.await;
        self.end(close);
        let written = if self.is_in_snapshot() {
            // It ends before the state: the client has no position, and asks for the state again.
            answer.finish(&"")
        } else {
            self.checkpoint();
            answer.finish(&Joined(&self.positions()))
        };
        let written = written.freeze();
        self.record_written(Written {
            stats: answer.stats,
            bytes: written.len(),
        });
        written
    }

    /// Returns the answer with the state of a client that begins with it, unless the event stream
    /// ends.
    async fn answer_state(&mut self) -> Option<Bytes> {
        let reader = self.once.as_mut()?.snapshot.take()?;
        let document = state_document(&reader, &self.positions()).await;
        let is_over = self.state.close_request().is_some()
            || self.state.clock.at(compact_time::now()) >= self.principal_due;
        let Some(document) = document.filter(|_| !is_over) else {
            self.once.as_mut()?.snapshot = Some(reader);
            return None;
        };
        let positions = self.positions();
        for gap in &*document.gaps {
            self.report_gap(*gap, Some(0), &positions);
        }
        self.end(CloseReason::Answered);
        self.record_written(Written {
            stats: WriteStats {
                events: document.events,
                oldest: document.received,
                batched_at: None,
                sample: None,
            },
            bytes: document.bytes.len(),
        });
        Some(document.bytes)
    }

    /// Collects events. Ready when the answer is complete, with the reason.
    fn poll_collect(
        &mut self,
        task: &mut TaskContext<'_>,
        answer: &mut Answer,
        wait: &Wait,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<CloseReason> {
        loop {
            // In every turn: a wake-up consumes the waker.
            self.state.poll_close_request(task.waker());
            let step = WriteBatch::with(|out| {
                let step = ready!(self.poll_next(task, out));
                answer.push(out);
                Poll::Ready(step)
            });
            match step {
                Poll::Ready(Step::Close(close)) => return Poll::Ready(close),
                Poll::Ready(Step::More | Step::Wait) if answer.is_full() => {
                    return Poll::Ready(CloseReason::Answered);
                }
                Poll::Ready(Step::More | Step::Wait) => {}
                Poll::Pending if !answer.is_empty() => return Poll::Ready(CloseReason::Answered),
                Poll::Pending => {
                    ready!(timer.as_mut().poll(task));
                    if !self.state.is_resuming() || timer.deadline() >= wait.last {
                        return Poll::Ready(CloseReason::Answered);
                    }
                    timer.as_mut().reset(wait.last);
                }
            }
        }
    }
}

/// Returns the answer with a whole state, for all clients with this position. `None`: it is larger
/// than the memory that is left.
pub(super) async fn state_document(
    reader: &SnapshotReader,
    positions: &[Position],
) -> Option<Document> {
    let write = async |events: SnapshotReader, bytes_max: usize| {
        let encoder = Framing::LongPoll.encoder();
        let mut answer = Answer::new();
        answer.put(|out| encoder.put_snapshot(out));
        let mut pause = BATCH_BYTES;
        for item in events {
            answer.put(|out| match item {
                StateItem::Event { encoding, .. } => encoder.put_state(out, &encoding.shared()),
                StateItem::Gap(gap) => encoder.put_gap(out, notice(gap), None),
            });
            if answer.bytes.len() > bytes_max {
                return None;
            }
            if answer.bytes.len() > pause {
                pause = answer.bytes.len() + BATCH_BYTES;
                // Event streams of this thread wait.
                tokio::task::yield_now().await;
            }
        }
        let id = Joined(positions);
        answer.put(|out| encoder.put_synced(out, &id));
        Some(answer.finish(&id))
    };
    reader.document(write).await
}

impl Answer {
    fn new() -> Self {
        Self {
            bytes: BytesMut::from(HEAD),
            stats: WriteStats::default(),
        }
    }

    /// Appends the line that a closure writes as an element of the array.
    fn put(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if !self.is_empty() {
            self.bytes.put_u8(b',');
        }
        write(&mut self.bytes);
    }

    /// Appends the lines of one turn as elements of the array.
    fn push(&mut self, out: &WriteBatch) {
        // The id and the rest of an event can be segments of their own.
        let mut is_begin = true;
        for segment in &out.segments {
            for line in segment.as_slice().split_inclusive(|byte| *byte == b'\n') {
                if std::mem::take(&mut is_begin) && self.bytes.len() > HEAD.len() {
                    self.bytes.put_u8(b',');
                }
                self.bytes.put_slice(line);
                is_begin = line.ends_with(b"\n");
            }
        }
        let WriteStats { events, oldest, .. } = out.written().stats;
        self.stats.events += events;
        self.stats.oldest = self.stats.oldest.into_iter().chain(oldest).min();
        self.stats.sample = self.stats.sample.or(out.stats.sample);
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == HEAD.len()
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= BYTES_MAX || self.stats.events >= EVENTS_MAX
    }

    /// Completes the answer with the position of the client.
    fn finish(&mut self, id: &dyn Display) -> BytesMut {
        let tail = format!("],\"id\":\"{id}\"}}\n");
        self.bytes.put_slice(tail.as_bytes());
        self.bytes.split()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_has_seconds_and_an_upper_bound() {
        let wait = |text| wait_of(Some(text), true).map(|wait| wait.as_millis());
        for (text, expected) in [
            ("0", Ok(0)),
            ("5", Ok(5000)),
            ("30s", Ok(30_000)),
            ("250ms", Ok(250)),
            ("55s", Ok(55_000)),
            ("56s", Ok(55_000)),
            ("99999999999999999999999s", Ok(55_000)),
            ("", Err(())),
            ("s", Err(())),
            ("-1s", Err(())),
            ("1.5s", Err(())),
            ("1h", Err(())),
        ] {
            assert_eq!(wait(text), expected, "{text}");
        }
        assert_eq!(wait_of(None, true), Ok(WAIT));
        assert_eq!(wait_of(None, false), Ok(Duration::ZERO));
    }

    #[test]
    fn lines_become_elements_of_one_array() {
        let mut answer = Answer::new();
        for turn in [
            &[&b"{\"a\":1}\n{\"a\":2}\n"[..]][..],
            &[b"{\"id\":\"x\"", b",\"a\":3}\n"],
        ] {
            let mut out = WriteBatch::default();
            turn.iter()
                .for_each(|part| out.push(Bytes::from_static(part)));
            answer.push(&out);
        }
        let bytes = answer.finish(&Joined(&[]));
        let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let numbers = serde_json::json!([{"a": 1}, {"a": 2}, {"id": "x", "a": 3}]);
        assert_eq!(document["events"], numbers);
    }
}
