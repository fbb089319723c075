//! The way past a message that the client cannot parse: it drops its connection instead, every time.

use std::time::Instant;

use super::Tailer;
use crate::nats::api::{Stored, Trouble};
use crate::nats::intake::{BATCH_MAX, Batch};
use crate::nats::message::{Parts, is_parsable};
use crate::sse::Component;

impl Tailer {
    /// Takes what comes next as JSON on the control connection, where nothing that was published can break the
    /// framing, up to the first message that the client can parse.
    ///
    /// If it was the network after all, one sound message is taken here as it would have been there.
    pub(super) async fn pass_poison(&mut self) {
        let (Some(mut followed), Some((_, head))) = (self.followed, self.writer.head()) else { return };
        let mut next = head + 1;
        for _ in 0..BATCH_MAX {
            let stored = match self.next_stored(next).await {
                Ok(Some(stored)) => stored,
                Ok(None) => break,
                Err(trouble) => return self.report(&trouble),
            };
            let check = Some(Component::check_of(stored.published));
            let position = Component { tag: followed.tag, seq: stored.sequence, check };
            let is_sound = is_parsable(&stored.subject, &stored.headers);
            if !is_sound {
                self.metrics.poison_messages_total.inc();
                tracing::warn!(
                    stream = self.config.name,
                    sequence = stored.sequence,
                    subject = stored.subject,
                    "message that the nats client cannot parse, delivered without what is no text in it"
                );
            }
            let mut batch = Batch::default();
            let parts = Parts::of_stored(&stored.subject, &stored.headers, &stored.payload);
            self.intake.received(1);
            self.intake.take(parts, position, Instant::now(), &self.config.filters, &mut batch);
            batch.write_to_log(&mut self.writer);
            self.writer.advance(stored.sequence);
            followed.last = Some(position);
            self.followed = Some(followed);
            if is_sound {
                break;
            }
            next = stored.sequence + 1;
        }
        self.stalls = 0;
        self.attempts = 0;
    }

    /// The first message from this position on that any filter selects.
    async fn next_stored(&self, from: u64) -> Result<Option<Stored>, Trouble> {
        let mut next: Option<Stored> = None;
        for filter in self.config.filters.disjoint() {
            let found = self.api.stored(&self.config.name, from, Some(&filter)).await?;
            next = next.into_iter().chain(found).min_by_key(|stored| stored.sequence);
        }
        Ok(next)
    }
}
