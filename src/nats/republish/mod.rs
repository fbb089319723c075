//! A JetStream stream that republishes, read with subscriptions on demand: whether it is fit for it, and who serves it.
//!
//! Live messages come by plain subscriptions, which feeds of the same subjects share: the server has no consumer for them.
//! What is missing there comes from JetStream.

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

/// How often a feed is compared with the last message of its filters. A lost message behind which nothing else came is
/// found by it.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// So many feeds of one stream are compared in a second at most: with more of them each is compared more rarely.
const COMPARED_PER_SECOND: u64 = 500;
/// So many feeds of one stream ask JetStream at a time.
const LOOKS_MAX: usize = 16;
/// So many feeds of one stream read what they missed at a time: each with a consumer, for as long as that takes.
const READINGS_MAX: usize = 4;

/// Subjects that all feeds of one stream remember together, 48 MiB at most. Charged to `limits.window_bytes`.
const SUBJECTS_OF_ALL_MAX: usize = 1 << 20;
/// A feed remembers as many subjects however many feeds there are.
const SUBJECTS_MIN: usize = 64;

/// What every feed of one stream needs.
#[derive(Debug)]
struct Place {
    distribution: Distribution,
    nats: Nats,
    config: StreamConfig,
    archive: JetStreamArchive,
    intake: EventDecoder,
    looks: Semaphore,
    readings: Semaphore,
    followers: AtomicU64,
    repaired: IntCounter,
    told: IntCounter,
    denied: IntCounter,
}

/// Serves demands for a stream that republishes until the drain begins.
pub(super) async fn serve(
    nats: Nats,
    config: StreamConfig,
    source: Arc<RepublishSource>,
    mut demands: SubscribeRequests<RepublishWriter>,
    drain: Token,
) {
    let metrics = &nats.0.metrics;
    let holes = |result| {
        metrics
            .holes_total
            .with_label_values(&[config.name.as_str(), result])
    };
    let (core, overflows) = (
        nats.0.links.core.clone(),
        metrics.nats_slow_consumer_total.clone(),
    );
    let (mut distributor, distribution) = Distributor::new(
        &config.name,
        core,
        EventDecoder::new(metrics, &config.name),
        overflows,
    );
    let place = Arc::new(Place {
        distribution,
        archive: JetStreamArchive::new(
            nats.clone(),
            &config.name,
            config.identity.as_deref(),
            &config.filters,
        ),
        intake: EventDecoder::new(metrics, &config.name),
        looks: Semaphore::new(LOOKS_MAX),
        readings: Semaphore::new(READINGS_MAX),
        followers: AtomicU64::new(0),
        repaired: holes("repaired"),
        told: holes("told"),
        denied: metrics
            .events_rejected_total
            .with_label_values(&[config.name.as_str(), "denied"]),
        config,
        nats,
    });
    let check = place
        .nats
        .0
        .health
        .check(format!("stream:{}", place.config.name), "not looked at yet");
    let keeper = place.keep(&source, &check);
    let receiver = async {
        while let Some(SubscribeRequest { filters, writer }) = demands.recv().await {
            tokio::spawn(RepublishTailer::run(
                Arc::clone(&place),
                filters,
                writer,
                drain.clone(),
            ));
        }
        // Nobody can demand any more; what was demanded is kept.
        std::future::pending::<()>().await;
    };
    let mut ended = drain.clone();
    tokio::select! {
        biased;
        () = ended.requested() => {}
        () = keeper => {}
        () = receiver => {}
        () = distributor.serve() => {}
    }
    distributor.end().await;
}

impl Place {
    /// Looks again and again whether the stream is fit to be read so, and says it.
    async fn keep(&self, source: &RepublishSource, check: &Check) {
        let mut attempts = 0;
        let mut control = self.nats.0.links.control.clone();
        loop {
            control.up().await;
            let wait = match self.look().await {
                Ok(tag) => {
                    attempts = 0;
                    source.set_ready(tag);
                    check.set(Status::Ok);
                    COMPARE_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64())
                }
                Err(trouble) => {
                    if trouble.is_permanent() {
                        source.reject();
                    }
                    check.set(Status::Failing(trouble.explain(&self.config.name)));
                    attempts += 1;
                    consumer::pause(attempts)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// The tag of the stream if everything that can be asked of it can be read.
    async fn look(&self) -> Result<SourceTag, JetStreamError> {
        let state = self.state(0).await?;
        self.subjects(&state, &self.config.filters)?;
        if let Some(any) = self.config.filters.filters().first() {
            // The permission that comparing needs: found out now rather than in the first comparison.
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

    /// What to subscribe to for these filters.
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

    /// The last message that any of these filters selects; 0 if there is none.
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

    /// Subjects that one feed remembers at most.
    fn subjects_max(&self) -> usize {
        let feeds = usize::try_from(self.followers.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        (SUBJECTS_OF_ALL_MAX / feeds.max(1)).clamp(SUBJECTS_MIN, SUBJECTS_MAX)
    }

    /// How long until a feed is compared again: each at its own time.
    fn pause(&self) -> Duration {
        let feeds = self.followers.load(Ordering::Relaxed);
        let every = COMPARE_EVERY.max(Duration::from_secs(feeds / COMPARED_PER_SECOND));
        every.mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}
