//! Check that NATS delivers what a stream holds: heartbeats alone do not prove it.
//!
//! A consumer that an operator has paused, or whose replica has stopped, still sends heartbeats.
//! While nothing else arrives, the tailer reads the stream's state every [`CHECK_INTERVAL`]. If a
//! message that was in the stream at the previous check has still not arrived, the health check is
//! degraded until a message arrives.

use std::time::{Duration, Instant};

use super::StreamTailer;
use crate::lifecycle::health::Status;

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
    pub(super) fn end(&mut self) -> bool {
        self.last = None;
        std::mem::take(&mut self.is_stuck)
    }
}

impl StreamTailer {
    /// Compares an idle stream with its state at the previous check.
    pub(super) async fn check_delivery(&mut self) {
        if self
            .delivery
            .checked
            .is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL)
        {
            return;
        }
        self.delivery.checked = Some(Instant::now());
        let (Some((_, head)), Ok(state)) = (
            self.writer.head(),
            self.api.stream_info(&self.config.name).await,
        ) else {
            return;
        };
        let last_before = self.delivery.last.replace(state.last_seq);
        if last_before.is_none_or(|last_before| last_before <= head) {
            return;
        }
        // The new messages may be filtered out or deleted.
        let filters = self.config.filters.disjoint();
        let Ok(Some(next)) = self
            .api
            .next_stored(&self.config.name, head + 1, &filters)
            .await
        else {
            return;
        };
        if last_before.is_some_and(|last_before| next.sequence <= last_before)
            && self.config.filters.matches(&next.subject)
        {
            self.delivery.is_stuck = true;
            let (stream, consumer) = (
                &self.config.name,
                self.consumer
                    .as_ref()
                    .map_or("-", |consumer| consumer.name()),
            );
            let text = format!(
                "stream {stream}: NATS sends heartbeats, but has not delivered message {} for {} s or longer: the consumer {consumer} is paused (`nats consumer resume {stream} {consumer}`), or its server needs attention",
                next.sequence,
                CHECK_INTERVAL.as_secs(),
            );
            self.check.set(if self.caught_up {
                Status::Degraded(text)
            } else {
                Status::Failing(text)
            });
        }
    }
}
