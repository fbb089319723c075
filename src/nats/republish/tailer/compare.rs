//! A feed is compared with its stream: after everything that may have cost it messages, and every few seconds.

use std::sync::Arc;

use tokio::time::Instant;

use super::{ReadError, RepublishTailer, SequenceTracker, open};
use crate::feed::{Gap, GapReason};
use crate::nats::connection::ConnectionState;
use crate::nats::jetstream::api::{JetStreamError, StreamState};
use crate::nats::jetstream::tailer::start::{self, Known, Start};
use crate::sse::SourceTag;

impl RepublishTailer {
    /// Puts the feed in doubt when messages may be missing: another connection, messages dropped, or a refused subject.
    pub(super) fn compare_link(&mut self, now: &ConnectionState) {
        if !now.up {
            return; // Looked at once it is back.
        }
        let is_refused = |state: &ConnectionState| {
            self.subjects
                .iter()
                .any(|subject| state.denials(subject) > 0)
        };
        if !Arc::ptr_eq(&now.denied, &self.seen.denied)
            && is_refused(now)
            && !is_refused(&self.seen)
        {
            self.place.denied.inc();
            tracing::error!(stream = self.place.config.name, subjects = ?self.subjects, "nats refuses the subjects that a stream republishes to: its events come late, by comparison");
        }
        self.is_doubtful |=
            now.generation != self.seen.generation || now.overflows != self.seen.overflows;
        self.seen = now.clone();
    }

    /// Compares a feed that may lack something; when it is over nothing is missing up to what the stream has.
    pub(super) async fn settle(&mut self) -> Result<(), ReadError> {
        if self.tap.is_none() {
            let (republish, subjects) = (self.republish.clone(), self.subjects.clone());
            self.place.nats.0.links.core.clone().up().await;
            if !self.subscribe_to(republish, subjects).await {
                return Err(ReadError::Unread("not subscribed".to_owned()));
            }
        }
        self.seen = ConnectionState {
            denied: Arc::clone(&self.seen.denied),
            ..open::stand(&self.place).await
        };
        self.is_doubtful = false;
        let settled = async {
            let state = self.look(u64::MAX).await?;
            // Subscribed in another way just now: that does not stand yet.
            if self.is_doubtful {
                Ok(())
            } else {
                self.adjoin(&state, true).await
            }
        };
        let settled = settled.await;
        self.is_doubtful |= settled.is_err();
        settled
    }

    /// Compares a feed that should lack nothing: finds what was lost behind everything that came.
    pub(super) async fn compare_in_passing(&mut self) {
        self.due = Instant::now() + self.place.pause();
        if !self.place.nats.0.links.core.now().up {
            return; // Compared when it is back.
        }
        let compared = async {
            let state = self.look(self.chain.head()).await?;
            self.adjoin(&state, false).await
        };
        match compared.await {
            Ok(()) => {}
            Err(ReadError::JetStreamError(trouble)) => {
                tracing::debug!(
                    why = trouble.explain(&self.place.config.name),
                    "feed not compared this time"
                );
            }
            Err(ReadError::Unread(why) | ReadError::Rejected(why)) => {
                tracing::warn!(why, "what a feed lost cannot be read yet");
                self.is_doubtful = true;
            }
        }
    }

    /// The stream as it is, and the subscription as it republishes now.
    async fn look(&mut self, seq: u64) -> Result<StreamState, JetStreamError> {
        let place = Arc::clone(&self.place);
        let state = {
            let _turn = place.looks.acquire().await;
            place.state(seq).await?
        };
        let subjects = place.subjects(&state, &self.filters)?;
        if let Some(republish) = state.republish.clone()
            && republish != self.republish
        {
            tracing::info!(
                stream = place.config.name,
                ?subjects,
                "stream republishes in another way now"
            );
            self.subscribe_to(republish, subjects).await;
            self.is_doubtful = true;
        }
        Ok(state)
    }

    /// Makes what was handed on adjoin what the stream has.
    async fn adjoin(&mut self, state: &StreamState, is_doubtful: bool) -> Result<(), ReadError> {
        let place = Arc::clone(&self.place);
        let tag = place.claim(state)?;
        let known = Known {
            created: self.created,
            has_identity: place.config.identity.is_some(),
            head: self.chain.head(),
            is_content_known: !is_doubtful || self.is_content_known(state).await?,
        };
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
        match start::onward(state, known, place.config.window, now) {
            Start::Onward { .. } => {}
            // The subscription stood all the time: what is gone by now did not concern the feed.
            Start::Behind { first, .. } if !is_doubtful => self.pass(first - 1),
            Start::Behind { first, .. } => self.renew(tag, first - 1, GapReason::Expired),
            // A stream that was created anew is read from its beginning, if that is no older than a window.
            Start::Recent { first, since: None } => {
                self.renew(tag, first - 1, GapReason::Recreated)
            }
            Start::Recent { .. } => self.renew(tag, state.last_seq, GapReason::Recreated),
            Start::Anew { head, reason } => self.renew(tag, head, reason),
        }
        (self.created, self.tag) = (state.created, tag);
        self.catch_up(state.last_seq, is_doubtful).await
    }

    /// Whether JetStream still holds the event that was handed on last.
    async fn is_content_known(&self, state: &StreamState) -> Result<bool, JetStreamError> {
        let Some(last) = self.last.filter(|last| last.fingerprint.is_some()) else {
            return Ok(true);
        };
        if !(state.first_seq..=state.last_seq).contains(&last.seq) {
            return Ok(true);
        }
        self.place
            .nats
            .0
            .api
            .still_holds(&self.place.config.name, last)
            .await
    }

    /// Compares with the last message that the feed should have.
    async fn catch_up(&mut self, stream_last: u64, is_doubtful: bool) -> Result<(), ReadError> {
        if stream_last <= self.chain.head() {
            return Ok(());
        }
        let place = Arc::clone(&self.place);
        let last = {
            let _turn = place.looks.acquire().await;
            place.last(&self.filters).await?
        };
        if last <= self.chain.head() {
            self.pass(stream_last);
            return Ok(());
        }
        if !is_doubtful {
            // It may be on its way: whatever was sent is here after a round trip.
            open::stand(&place).await;
            if let Some(tap) = &mut self.tap {
                let messages = tap.ready().await;
                self.receive(messages);
            }
            self.hand_on().await?;
            if self.is_doubtful || last <= self.chain.head() {
                return Ok(());
            }
        }
        self.read_through(last).await
    }

    /// Nothing up to here concerns the feed.
    fn pass(&mut self, seq: u64) {
        self.chain.advance(seq);
        self.writer.advance(seq);
    }

    /// Tells that what was handed on and what follows do not adjoin.
    fn renew(&mut self, tag: SourceTag, head: u64, reason: GapReason) {
        tracing::warn!(stream = self.place.config.name, filters = %self.filters, ?reason, after = head, "gap in a feed of the stream");
        self.writer.start_epoch(
            tag,
            head,
            Gap {
                reason,
                missed: None,
            },
        );
        (self.tag, self.chain, self.last, self.newest) =
            (tag, SequenceTracker::new(head), None, None);
    }
}
