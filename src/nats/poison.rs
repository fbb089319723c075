//! The way past a message that the client cannot parse: it drops its connection instead, every time.

use std::time::Instant;

use super::api::{Api, Trouble};
use super::intake::{BATCH_MAX, Batch, Intake};
use super::message::{Parts, is_parsable};
use crate::sse::{Component, Tag};
use crate::subject::FilterSet;
use crate::telemetry::Metrics;

/// Who needs to get past a message, and how it takes what it reads.
pub(crate) struct Passage<'a> {
    pub(crate) api: &'a Api,
    pub(crate) stream: &'a str,
    pub(crate) filters: &'a FilterSet,
    pub(crate) tag: Tag,
    pub(crate) intake: &'a Intake,
    pub(crate) metrics: &'a Metrics,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) batch: Batch,
    /// How many messages it was made of.
    pub(crate) messages: usize,
    /// The last of them; none when nothing stands there.
    pub(crate) last: Option<Component>,
}

impl Passage<'_> {
    /// Takes what comes after this position as JSON on the control connection, where nothing that was published can
    /// break the framing, up to the first message that the client can parse.
    ///
    /// If it was the network after all, one sound message is taken here as it would have been there.
    pub(crate) async fn pass(&self, after: u64) -> Result<Passed, Trouble> {
        let filters = self.filters.disjoint();
        let mut passed = Passed::default();
        let mut next = after + 1;
        while passed.messages < BATCH_MAX {
            let stored = match self.api.next_stored(self.stream, next, &filters).await {
                Ok(Some(stored)) => stored,
                Ok(None) => break,
                Err(trouble) if passed.messages == 0 => return Err(trouble),
                // What was read is taken; the rest is asked for again.
                Err(_) => break,
            };
            let check = Some(Component::check_of(stored.published));
            let position = Component { tag: self.tag, seq: stored.sequence, check };
            let parts = Parts::of_stored(&stored.subject, &stored.headers, &stored.payload);
            self.intake.take(parts, position, Instant::now(), self.filters, &mut passed.batch);
            passed.messages += 1;
            passed.last = Some(position);
            if is_parsable(&stored.subject, &stored.headers) {
                break;
            }
            self.metrics.poison_messages_total.inc();
            tracing::warn!(
                stream = self.stream,
                sequence = stored.sequence,
                subject = stored.subject,
                "message that the nats client cannot parse, delivered without what is no text in it"
            );
            next = stored.sequence + 1;
        }
        Ok(passed)
    }
}
