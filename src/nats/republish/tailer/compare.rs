//! Comparison of a feed with its stream, periodically and after anything that may lose messages.
//!
//! A resync flushes the connection, reads the stream's state and continues like a tailer
//! ([`start::resume`]): messages that are missing up to the stream's last one are read from it. The
//! periodic comparison finds lost messages that no later message followed.

use std::sync::Arc;

use tokio::time::Instant;

use super::{ReadError, RepublishTailer, open};
use crate::event::SourceTag;
use crate::feed::{Gap, GapReason};
use crate::nats::connection::ConnectionState;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::stream_state::StreamState;
use crate::nats::jetstream::tailer::start::{self, Progress, Start};
use crate::nats::republish::mapping::Republish;
use crate::nats::republish::sequence::SequenceTracker;

impl RepublishTailer {
    /// Requests a resync if messages may be missing: after a reconnect, dropped messages or a
    /// denied subject.
    pub(super) fn check_connection(&mut self, now: &ConnectionState) {
        if !now.up {
            return; // Checked after the reconnect.
        }
        let is_denied = |state: &ConnectionState| {
            self.subjects
                .iter()
                .any(|subject| state.denials(subject) > 0)
        };
        if !Arc::ptr_eq(&now.denied, &self.seen.denied) && is_denied(now) && !is_denied(&self.seen)
        {
            self.context.denied.inc();
            tracing::error!(stream = self.context.config.name, subjects = ?self.subjects, "NATS denies the subjects that the stream republishes to; events arrive late, by periodic comparison");
        }
        self.needs_resync |=
            now.generation != self.seen.generation || now.overflows != self.seen.overflows;
        self.seen = now.clone();
    }

    /// Compares a feed that may have lost messages. On success nothing is missing up to the
    /// stream's last message.
    pub(super) async fn resync(&mut self) -> Result<(), ReadError> {
        if self.receiver.is_none() {
            let (republish, subjects) = (self.republish.clone(), self.subjects.clone());
            self.context.nats.0.connections.core.clone().wait_up().await;
            if !self.subscribe_to(republish, subjects).await {
                return Err(ReadError::Unread("not subscribed".to_owned()));
            }
        }
        self.seen = ConnectionState {
            denied: Arc::clone(&self.seen.denied),
            ..open::wait_subscribed(&self.context).await
        };
        self.needs_resync = false;
        let result = async {
            let state = self.current_stream(u64::MAX).await?;
            // Subscribed again just now: that subscription is not confirmed yet.
            if self.needs_resync {
                Ok(())
            } else {
                self.reconcile(&state, true).await
            }
        };
        let result = result.await;
        self.needs_resync |= result.is_err();
        result
    }

    /// Compares a feed that should be complete: finds messages lost after everything received.
    pub(super) async fn compare_periodically(&mut self) {
        self.compare_at = Instant::now() + self.context.compare_delay();
        if !self.context.nats.0.connections.core.state().up {
            return; // Compared after the reconnect.
        }
        let compared = async {
            let state = self.current_stream(self.tracker.head()).await?;
            self.reconcile(&state, false).await
        };
        match compared.await {
            Ok(()) => {}
            Err(ReadError::JetStreamError(error)) => {
                tracing::debug!(
                    error = error.explain(&self.context.config.name),
                    "comparing feed with stream failed; skipped"
                );
            }
            Err(ReadError::Unread(why) | ReadError::Rejected(why)) => {
                tracing::warn!(error = why, "reading lost messages failed; retrying");
                self.needs_resync = true;
            }
        }
    }

    /// Returns the stream's state, and subscribes again if its republish configuration changed.
    async fn current_stream(&mut self, seq: u64) -> Result<StreamState, JetStreamError> {
        let context = Arc::clone(&self.context);
        let state = {
            let _permit = context.requests.acquire().await;
            context.state(seq).await?
        };
        let subjects = context.subjects(&state, &self.filters)?;
        if let Some(republish) = state.republish.clone()
            && republish != self.republish
        {
            tracing::info!(
                stream = context.config.name,
                ?subjects,
                "republish configuration of stream changed; subscribing again"
            );
            self.subscribe_to(republish, subjects).await;
            self.needs_resync = true;
        }
        Ok(state)
    }

    /// Continues after the delivered messages, as the stream's state allows.
    async fn reconcile(
        &mut self,
        state: &StreamState,
        needs_resync: bool,
    ) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        let tag = context.claim(state)?;
        let progress = Progress {
            created: self.created,
            has_identity: context.config.identity.is_some(),
            head: self.tracker.head(),
            is_last_unchanged: !needs_resync || self.is_last_unchanged(state).await?,
        };
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
        match start::resume(state, progress, context.config.window, now) {
            Start::Continue { .. } => {}
            // The subscription was active all the time: expired messages did not concern the feed.
            Start::Expired { first, .. } if !needs_resync => self.skip_to(first - 1),
            Start::Expired { first, .. } => self.start_epoch(tag, first - 1, GapReason::Expired),
            // A recreated stream is read from its first message, if that is not older than a
            // window.
            Start::Window { first, since: None } => {
                self.start_epoch(tag, first - 1, GapReason::Recreated)
            }
            Start::Window { .. } => self.start_epoch(tag, state.last_seq, GapReason::Recreated),
            Start::NewEpoch { head, reason } => self.start_epoch(tag, head, reason),
        }
        (self.created, self.tag) = (state.created, tag);
        self.catch_up(state.last_seq, needs_resync).await
    }

    /// Returns true if JetStream still holds the event that was delivered last.
    async fn is_last_unchanged(&self, state: &StreamState) -> Result<bool, JetStreamError> {
        let Some(last) = self.last.filter(|last| last.fingerprint.is_some()) else {
            return Ok(true);
        };
        if !(state.first_seq..=state.last_seq).contains(&last.seq) {
            return Ok(true);
        }
        self.context
            .nats
            .0
            .api
            .holds_same_message(&self.context.config.name, last)
            .await
    }

    /// Compares with the last message that the feed should have.
    async fn catch_up(&mut self, stream_last: u64, needs_resync: bool) -> Result<(), ReadError> {
        if stream_last <= self.tracker.head() {
            return Ok(());
        }
        let context = Arc::clone(&self.context);
        let last = {
            let _permit = context.requests.acquire().await;
            context.last(&self.filters).await?
        };
        if last <= self.tracker.head() {
            self.skip_to(stream_last);
            return Ok(());
        }
        if !needs_resync {
            // It may still be on its way: everything sent before arrives within a flush.
            open::wait_subscribed(&context).await;
            if let Some(receiver) = &mut self.receiver {
                let messages = receiver.ready().await;
                self.receive(messages);
            }
            self.deliver_pending().await?;
            if self.needs_resync || last <= self.tracker.head() {
                return Ok(());
            }
        }
        self.read_through(last).await
    }

    /// No message up to here concerns the feed.
    fn skip_to(&mut self, seq: u64) {
        self.tracker.advance(seq);
        self.writer.advance(seq);
    }

    /// Reports that the next events do not follow the delivered ones.
    fn start_epoch(&mut self, tag: SourceTag, head: u64, reason: GapReason) {
        tracing::warn!(stream = self.context.config.name, filters = %self.filters, ?reason, after = head, "gap in feed");
        self.writer.start_epoch(
            tag,
            head,
            Gap {
                reason,
                missed: None,
            },
        );
        (self.tag, self.tracker, self.last, self.newest) =
            (tag, SequenceTracker::new(head), None, None);
    }

    /// Subscribes to these subjects instead of the previous ones. Returns true on success.
    pub(super) async fn subscribe_to(
        &mut self,
        republish: Republish,
        subjects: Vec<String>,
    ) -> bool {
        self.receiver = None;
        let Some(receiver) = self.context.distribution.subscribe(&subjects).await else {
            return false;
        };
        (self.receiver, self.republish, self.subjects) = (Some(receiver), republish, subjects);
        true
    }
}
