//! Check that NATS delivers what a stream holds: heartbeats alone do not prove it.
//!
//! A consumer that an operator has paused, or whose replica has stopped, still sends heartbeats.
//! While nothing else arrives, the tailer reads the stream's state every [`CHECK_INTERVAL`]. If a
//! message that was in the stream at the previous check has still not arrived, the health check is
//! degraded until a message arrives.

use std::time::{Duration, Instant};

use crate::nats::jetstream::api::Api;
use crate::nats::jetstream::stream_config::StreamConfig;

/// 10 s: one request for an idle stream, and longer than any delivery that is only slow.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Result of the last check of an idle stream.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    checked: Option<Instant>,
    /// Last sequence of the stream at that check.
    last: Option<u64>,
    /// The health check is degraded.
    is_stuck: bool,
}

impl Delivery {
    /// Resets the state after a message has arrived. Returns true if the health check was degraded.
    pub(super) fn reset(&mut self) -> bool {
        self.last = None;
        std::mem::take(&mut self.is_stuck)
    }

    /// Compares an idle stream with its state at the previous check. `head` is the last
    /// delivered sequence. Returns the problem if a message is not delivered.
    pub(super) async fn check(
        &mut self,
        api: &Api,
        config: &StreamConfig,
        consumer: &str,
        head: u64,
    ) -> Option<String> {
        if self
            .checked
            .is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL)
        {
            return None;
        }
        self.checked = Some(Instant::now());
        let stream = &config.name;
        let state = api.stream_info(stream).await.ok()?;
        let last_before = self.last.replace(state.last_seq)?;
        if last_before <= head {
            return None;
        }
        // The new messages may be filtered out or deleted.
        let subjects = config.subjects();
        let filters = subjects.requested(config.filters.disjoint());
        let next = api.next_stored(stream, head + 1, &filters).await.ok()??;
        if next.sequence > last_before || !config.filters.matches(subjects.of_event(&next.subject))
        {
            return None;
        }
        self.is_stuck = true;
        Some(format!(
            "stream {stream}: NATS sends heartbeats, but has not delivered message {} for {} s or longer: the consumer {consumer} is paused (`nats consumer resume {stream} {consumer}`), or its server needs attention",
            next.sequence,
            CHECK_INTERVAL.as_secs(),
        ))
    }
}
