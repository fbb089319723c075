//! Republish source: a JetStream stream read through the core subjects to which it republishes.
//!
//! Live messages arrive by plain subscriptions that feeds of the same subjects share, so the server
//! has no consumer for them. Each republished message carries its sequence and the previous
//! sequence of its subject; a loss is detected from these and read from the stream (decision record
//! 0008).
//!
//! ```text
//! mapping       subject to subscribe to for a filter
//! distribution  one subscription per subject, its messages to every feed that needs them
//! headers       sequence, previous sequence and time in the headers of a republished message
//! sequence      loss detection from these headers
//! tailer        task of one feed: open (subscribe), compare (with the stream), repair (read)
//! ```
//!
//! [`serve`] starts a tailer per subscribe request. A second loop checks every 5 s that the stream
//! still fits: it republishes with payloads, and everything that routes read.

mod distribution;
mod headers;
mod mapping;
mod sequence;
mod tailer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::Semaphore;

use super::history::JetStreamArchive;
use super::jetstream::consumer;
use super::{Nats, StreamConfig};
use crate::feed::{RepublishSource, RepublishWriter, SubscribeRequest, SubscribeRequests};
use crate::lifecycle::health::{Check, Status};
use crate::lifecycle::shutdown::Token;
use crate::nats::decode::decoder::EventDecoder;
use crate::nats::jetstream::api::{JetStreamError, StreamState};
use crate::sse::SourceTag;
use crate::subject::FilterSet;
use distribution::{Distribution, Distributor};
pub use mapping::Republish;
use sequence::SUBJECTS_MAX;
use tailer::RepublishTailer;

/// Interval at which a feed is compared with the last message of its filters. This finds a lost
/// message that no later message followed.
const COMPARE_INTERVAL: Duration = Duration::from_secs(5);
/// 500 feeds of one stream are compared per second at most: with more feeds, each is compared less
/// often.
const COMPARED_PER_SECOND: u64 = 500;
/// 16 feeds of one stream send a request to JetStream at the same time.
const REQUESTS_MAX: usize = 16;
/// 4 feeds of one stream read lost messages at the same time, each with a consumer.
const READS_MAX: usize = 4;

/// Subjects that all feeds of one stream remember together, at most 48 MiB. Reserved from
/// `limits.window_bytes`.
const SUBJECTS_TOTAL_MAX: usize = 1 << 20;
/// Number of subjects that a feed remembers for any number of feeds.
const SUBJECTS_MIN: usize = 64;

/// State shared by all feeds of one stream.
#[derive(Debug)]
struct StreamContext {
    distribution: Distribution,
    nats: Nats,
    config: StreamConfig,
    archive: JetStreamArchive,
    decoder: EventDecoder,
    requests: Semaphore,
    reads: Semaphore,
    feeds_open: AtomicU64,
    repaired: IntCounter,
    reported: IntCounter,
    denied: IntCounter,
}

/// Serves subscribe requests for a stream that republishes, until shutdown is requested.
pub(super) async fn serve(
    nats: Nats,
    config: StreamConfig,
    source: Arc<RepublishSource>,
    mut demands: SubscribeRequests<RepublishWriter>,
    shutdown: Token,
) {
    let metrics = &nats.0.metrics;
    let losses = |result| {
        metrics
            .republish_losses_total
            .with_label_values(&[config.name.as_str(), result])
    };
    let (core, overflows) = (
        nats.0.connections.core.clone(),
        metrics.nats_slow_consumer_total.clone(),
    );
    let (mut distributor, distribution) = Distributor::new(
        &config.name,
        core,
        EventDecoder::new(metrics, &config.name),
        overflows,
    );
    let context = Arc::new(StreamContext {
        distribution,
        archive: JetStreamArchive::new(
            nats.clone(),
            &config.name,
            config.identity.as_deref(),
            &config.filters,
        ),
        decoder: EventDecoder::new(metrics, &config.name),
        requests: Semaphore::new(REQUESTS_MAX),
        reads: Semaphore::new(READS_MAX),
        feeds_open: AtomicU64::new(0),
        repaired: losses("repaired"),
        reported: losses("reported"),
        denied: metrics
            .events_rejected_total
            .with_label_values(&[config.name.as_str(), "denied"]),
        config,
        nats,
    });
    let check = context
        .nats
        .0
        .health
        .check(format!("stream:{}", context.config.name), "not checked yet");
    let watcher = context.watch_stream(&source, &check);
    let receiver = async {
        while let Some(SubscribeRequest { filters, writer }) = demands.recv().await {
            tokio::spawn(RepublishTailer::run(
                Arc::clone(&context),
                filters,
                writer,
                shutdown.clone(),
            ));
        }
        // No further request can arrive; existing feeds continue.
        std::future::pending::<()>().await;
    };
    let mut ended = shutdown.clone();
    tokio::select! {
        biased;
        () = ended.requested() => {}
        () = watcher => {}
        () = receiver => {}
        () = distributor.serve() => {}
    }
    distributor.end().await;
}

impl StreamContext {
    /// Checks regularly whether the stream can be read this way, and updates the health check.
    async fn watch_stream(&self, source: &RepublishSource, check: &Check) {
        let mut attempts = 0;
        let mut control = self.nats.0.connections.control.clone();
        loop {
            control.wait_up().await;
            let wait = match self.check_stream().await {
                Ok(tag) => {
                    attempts = 0;
                    source.set_ready(tag);
                    check.set(Status::Ok);
                    COMPARE_INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())
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
    async fn check_stream(&self) -> Result<SourceTag, JetStreamError> {
        let state = self.state(0).await?;
        self.subjects(&state, &self.config.filters)?;
        if let Some(any) = self.config.filters.filters().first() {
            // Comparing needs this permission: a missing one is found here, not in the first
            // comparison.
            self.nats.0.api.last_stored(&self.config.name, any).await?;
        }
        self.claim(&state)
    }

    async fn state(&self, seq: u64) -> Result<StreamState, JetStreamError> {
        self.nats
            .stream_state(&self.config.name, seq)
            .await?
            .shareable()
    }

    fn claim(&self, state: &StreamState) -> Result<SourceTag, JetStreamError> {
        let (name, identity) = (&self.config.name, self.config.identity.as_deref());
        let tag = state.tag(name, identity);
        self.nats.0.tags.claim(name, identity, tag)?;
        Ok(tag)
    }

    /// Subjects to subscribe to for these filters.
    fn subjects(
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
                        source: republish.source.clone(),
                    })?;
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        Ok(subjects)
    }

    /// Sequence of the last message that any of these filters selects, or 0.
    async fn last(&self, filters: &FilterSet) -> Result<u64, JetStreamError> {
        let mut last = 0;
        for filter in filters.filters() {
            last = last.max(
                self.nats
                    .0
                    .api
                    .last_stored(&self.config.name, filter)
                    .await?
                    .unwrap_or(0),
            );
        }
        Ok(last)
    }

    /// Maximum number of subjects that one feed remembers.
    fn subjects_max(&self) -> usize {
        let feeds = usize::try_from(self.feeds_open.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        (SUBJECTS_TOTAL_MAX / feeds.max(1)).clamp(SUBJECTS_MIN, SUBJECTS_MAX)
    }

    /// Delay before a feed is compared again, with jitter.
    fn compare_delay(&self) -> Duration {
        let feeds = self.feeds_open.load(Ordering::Relaxed);
        let every = COMPARE_INTERVAL.max(Duration::from_secs(feeds / COMPARED_PER_SECOND));
        every.mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}
