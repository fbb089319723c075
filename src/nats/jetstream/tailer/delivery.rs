//! Whether NATS delivers what a stream holds: heartbeats alone do not say so.
//!
//! A consumer that an operator has paused, or whose replica has stopped, goes on sending heartbeats. While nothing else
//! comes, the tailer looks at the stream every [`LOOK_EVERY`]. A message that was there at the last look and has not come
//! degrades the check until something comes.

use std::time::{Duration, Instant};

use super::StreamTailer;
use crate::lifecycle::health::Status;

/// 10 s: one request for a stream that is silent, and longer than any delivery takes that is only slow.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The result of the last look at a silent stream.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    looked: Option<Instant>,
    /// The last sequence of the stream at that time.
    last: Option<u64>,
    /// The check is degraded.
    is_stuck: bool,
}

impl Delivery {
    /// Something has come. True if the check was degraded until now.
    pub(super) fn end(&mut self) -> bool {
        self.last = None;
        std::mem::take(&mut self.is_stuck)
    }
}

impl StreamTailer {
    /// Compares a stream that is silent with what it held at the last look.
    pub(super) async fn look_at_delivery(&mut self) {
        if self
            .delivery
            .looked
            .is_some_and(|looked| looked.elapsed() < LOOK_EVERY)
        {
            return;
        }
        self.delivery.looked = Some(Instant::now());
        let (Some((_, head)), Ok(state)) = (
            self.writer.head(),
            self.api.describe(&self.config.name).await,
        ) else {
            return;
        };
        let before = self.delivery.last.replace(state.last_seq);
        if before.is_none_or(|before| before <= head) {
            return;
        }
        // Not everything up to there is wanted, or still there.
        let filters = self.config.filters.disjoint();
        let Ok(Some(next)) = self
            .api
            .next_stored(&self.config.name, head + 1, &filters)
            .await
        else {
            return;
        };
        if before.is_some_and(|before| next.sequence <= before)
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
                "stream {stream}: NATS sends heartbeats, but has not delivered message {} for {} s or longer: the consumer {consumer} is paused (`nats consumer resume {stream} {consumer}`), or its server has to be looked at",
                next.sequence,
                LOOK_EVERY.as_secs(),
            );
            self.check.set(if self.caught_up {
                Status::Warning(text)
            } else {
                Status::Failing(text)
            });
        }
    }
}
