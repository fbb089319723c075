//! State shared by all feeds of one republished stream, and the requests that they have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::Semaphore;

use super::distribution::Distribution;
use super::sequence::SUBJECTS_MAX;
use crate::event::SourceTag;
use crate::feed::RepublishSource;
use crate::lifecycle::backoff::spread;
use crate::lifecycle::health::{Check, Status};
use crate::nats::client::Nats;
use crate::nats::decode::decoder::EventDecoder;
use crate::nats::history::JetStreamArchive;
use crate::nats::jetstream::consumer;
use crate::nats::jetstream::error::JetStreamError;
use crate::nats::jetstream::stream_config::StreamConfig;
use crate::nats::jetstream::stream_state::StreamState;
use crate::subject::FilterSet;

/// Interval at which a feed is compared with the last message of its filters. This finds a lost
/// message that no later message followed.
const COMPARE_INTERVAL: Duration = Duration::from_secs(5);
/// 500 feeds of one stream are compared per second at most: with more feeds, each is compared less
/// often.
const COMPARED_PER_SECOND: u64 = 500;
/// 16 feeds of one stream send a request to JetStream at the same time.
pub(super) const REQUESTS_MAX: usize = 16;
/// 4 feeds of one stream read lost messages at the same time, each with a consumer.
pub(super) const READS_MAX: usize = 4;

/// Subjects that all feeds of one stream remember together, at most 48 MiB. Reserved from
/// `limits.window_bytes`.
const SUBJECTS_TOTAL_MAX: usize = 1 << 20;
/// Number of subjects that a feed remembers for any number of feeds.
const SUBJECTS_MIN: usize = 64;

/// State shared by all feeds of one stream.
#[derive(Debug)]
pub(super) struct StreamContext {
    pub(super) distribution: Distribution,
    pub(super) nats: Nats,
    pub(super) config: StreamConfig,
    pub(super) archive: JetStreamArchive,
    pub(super) decoder: EventDecoder,
    pub(super) requests: Semaphore,
    pub(super) reads: Semaphore,
    pub(super) feeds_open: AtomicU64,
    pub(super) repaired: IntCounter,
    pub(super) reported: IntCounter,
    pub(super) denied: IntCounter,
}

impl StreamContext {
    /// Checks regularly whether the stream can be read this way, and updates the health check.
    pub(super) async fn watch_stream(&self, source: &RepublishSource, check: &Check) {
        let mut attempts = 0;
        let mut control = self.nats.0.connections.control.clone();
        loop {
            control.wait_up().await;
            let wait = match self.check_stream().await {
                Ok(tag) => {
                    attempts = 0;
                    source.set_ready(tag);
                    check.set(Status::Ok);
                    spread(COMPARE_INTERVAL, fastrand::f64())
                }
                Err(error) => {
                    if error.is_permanent() {
                        source.reject();
                    }
                    check.set(Status::Failing(error.explain(&self.config.name)));
                    attempts += 1;
                    consumer::retry_delay(attempts)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Returns the stream's source tag if everything that routes read can be read.
    pub(super) async fn check_stream(&self) -> Result<SourceTag, JetStreamError> {
        let state = self.state(0).await?;
        self.subjects(&state, &self.config.filters)?;
        if let Some(any) = self.config.filters.filters().first() {
            // Comparing needs this permission: a missing one is found here, not in the first
            // comparison.
            self.nats.0.api.last_stored(&self.config.name, any).await?;
        }
        self.claim(&state)
    }

    pub(super) async fn state(&self, seq: u64) -> Result<StreamState, JetStreamError> {
        self.nats
            .stream_state(&self.config.name, seq)
            .await?
            .shareable()
    }

    pub(super) fn claim(&self, state: &StreamState) -> Result<SourceTag, JetStreamError> {
        let (name, identity) = (&self.config.name, self.config.identity.as_deref());
        let tag = state.tag(name, identity);
        self.nats.0.tags.claim(name, identity, tag)?;
        Ok(tag)
    }

    /// Subjects to subscribe to for these filters.
    pub(super) fn subjects(
        &self,
        state: &StreamState,
        filters: &FilterSet,
    ) -> Result<Vec<String>, JetStreamError> {
        let republish = state
            .republish
            .as_ref()
            .ok_or(JetStreamError::NotRepublished)?;
        if republish.headers_only {
            return Err(JetStreamError::HeadersOnly);
        }
        let mut subjects = Vec::new();
        for filter in filters.filters() {
            let subject =
                republish
                    .subject_of(filter)
                    .ok_or_else(|| JetStreamError::Uncovered {
                        filter: filter.to_string(),
                        source_filter: republish.source.clone(),
                    })?;
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        Ok(subjects)
    }

    /// Sequence of the last message that any of these filters selects, or 0.
    pub(super) async fn last(&self, filters: &FilterSet) -> Result<u64, JetStreamError> {
        let mut last = 0;
        for filter in filters.filters() {
            last = last.max(
                self.nats
                    .0
                    .api
                    .last_stored(&self.config.name, filter)
                    .await?
                    .map_or(0, |stored| stored.sequence),
            );
        }
        Ok(last)
    }

    /// Maximum number of subjects that one feed remembers.
    pub(super) fn subjects_max(&self) -> usize {
        let feeds = usize::try_from(self.feeds_open.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        (SUBJECTS_TOTAL_MAX / feeds.max(1)).clamp(SUBJECTS_MIN, SUBJECTS_MAX)
    }

    /// Delay before a feed is compared again, with jitter.
    pub(super) fn compare_delay(&self) -> Duration {
        let feeds = self.feeds_open.load(Ordering::Relaxed);
        let every = COMPARE_INTERVAL.max(Duration::from_secs(feeds / COMPARED_PER_SECOND));
        spread(every, fastrand::f64())
    }
}
