//! The upstream side: connections to NATS, and messages that become events.
//!
//! ```text
//! tailer (JetStream: one consumer per stream and pod)  -> message -> intake -> LogWriter
//! archive (JetStream: one consumer per reading)        -> message -> intake -> Page
//! republish (JetStream: one subscription per set of filters, to what the stream republishes) -> PositionedWriter
//! subscription (core subjects: one per filter) -> message -> intake -> CoreWriter
//! ```

pub mod config;
mod connection;
mod core;
mod decode;
mod history;
mod jetstream;
mod kv;
mod republish;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::feed::{
    Archive, CoreWriter, RepublishSource, RepublishWriter, StreamWriter, SubscribeRequests,
};
use crate::lifecycle::health::Health;
use crate::lifecycle::shutdown::Token;
use crate::presence::{Bucket, PresenceStore};
use crate::sse::{Position, SourceTag};
use crate::subject::FilterSet;
use crate::telemetry::Metrics;
use connection::flush::ServerFlush;
use connection::{NatsConnections, Supervisor};
use core::subscriptions::Core;
use history::JetStreamArchive;
use jetstream::api::Api;
use jetstream::tags::SourceTags;
use jetstream::tailer::StreamTailer;
use kv::KvPresenceStore;

pub use config::Config;
pub use connection::{Identity, InvalidServer};
pub use jetstream::api::StreamState;
pub use jetstream::error::JetStreamError;
pub use jetstream::tailer::StreamConfig;
pub use republish::Republish;

/// How long the state of a JetStream stream is believed: a thousand clients that come back at once ask once.
const BELIEVED: Duration = Duration::from_secs(1);

/// NATS as the rest of the process uses it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Nats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    links: NatsConnections,
    api: Api,
    barrier: ServerFlush,
    health: Health,
    metrics: Arc<Metrics>,
    states: Mutex<HashMap<String, Arc<Cached>>>,
    tags: Arc<SourceTags>,
    /// Ends with the last clone, and lets go of the connections.
    _monitor: Supervisor,
}

/// The state of one stream and when it was read; locked while it is read, so that it is read once.
type Cached = tokio::sync::Mutex<Option<(Instant, StreamState)>>;

/// Begins to connect and returns at once: a NATS that is not there yet is waited for, in readiness and here.
///
/// # Errors
/// [`InvalidServer`] when the address of a server is none.
pub async fn connect(
    config: &Config,
    identity: Identity,
    health: &Health,
    metrics: &Arc<Metrics>,
) -> Result<Nats, InvalidServer> {
    let (links, monitor) = connection::connect(config, &identity, health, metrics).await?;
    Ok(Nats(Arc::new(Inner {
        api: Api::new(links.control.clone()),
        barrier: ServerFlush::new(links.core.clone()),
        identity,
        links,
        health: health.clone(),
        metrics: Arc::clone(metrics),
        states: Mutex::default(),
        tags: Arc::default(),
        _monitor: monitor,
    })))
}

impl Nats {
    /// Whether every connection is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let NatsConnections {
            data,
            replay,
            core,
            control,
        } = &self.0.links;
        [data, replay, core, control]
            .iter()
            .all(|link| link.now().up)
    }

    /// Keeps the registry over all pods in a bucket until the drain begins; the watch is released when the last of it is
    /// written. `max_bytes`: size of the bucket, if it is made here.
    #[must_use]
    pub fn registry(
        &self,
        bucket: &Bucket,
        max_bytes: u64,
        drain: Token,
    ) -> Arc<dyn PresenceStore> {
        KvPresenceStore::start(self, bucket, max_bytes, drain)
    }

    /// Follows a JetStream stream into a log until the drain begins; the watch is released when the consumer is gone.
    pub fn tail(&self, config: StreamConfig, writer: StreamWriter, drain: Token) {
        let Inner {
            identity,
            links,
            api,
            tags,
            health,
            metrics,
            ..
        } = &*self.0;
        let server = (api.clone(), links.data.clone(), Arc::clone(tags));
        let tailer = StreamTailer::new(config, identity.clone(), server, writer, health, metrics);
        tokio::spawn(tailer.run(drain));
    }

    /// Subscribes to core subjects that feeds want until the drain begins; the watch is released when all subscriptions
    /// are gone.
    pub fn serve(&self, writer: CoreWriter, drain: Token) {
        let Inner {
            identity,
            links,
            barrier,
            metrics,
            ..
        } = &*self.0;
        let core = Core::new(
            links.core.clone(),
            barrier.clone(),
            identity.tag(),
            writer,
            metrics,
        );
        tokio::spawn(core.serve(drain));
    }

    /// Serves demands for a JetStream stream that republishes until the drain begins; the watch is released when all
    /// subscriptions are gone.
    pub fn serve_republished(
        &self,
        config: StreamConfig,
        source: Arc<RepublishSource>,
        demands: SubscribeRequests<RepublishWriter>,
        drain: Token,
    ) {
        tokio::spawn(republish::serve(
            self.clone(),
            config,
            source,
            demands,
            drain,
        ));
    }

    /// What JetStream still has of a stream. `identity` replaces the stream's creation time in ids; `filters` is
    /// everything that can be asked of it.
    #[must_use]
    pub fn archive(
        &self,
        name: &str,
        identity: Option<&str>,
        filters: &FilterSet,
    ) -> Arc<dyn Archive> {
        Arc::new(JetStreamArchive::new(self.clone(), name, identity, filters))
    }

    /// The state of a JetStream stream, at most a second old. Whoever asks meanwhile waits for the same answer. `seq` has
    /// been seen by somebody, perhaps on another pod: a state that ends before it is believed only if it is newer than
    /// the question.
    ///
    /// # Errors
    /// [`JetStreamError`] when JetStream does not tell it.
    pub async fn stream_state(
        &self,
        stream: &str,
        seq: u64,
    ) -> Result<StreamState, JetStreamError> {
        let asked = Instant::now();
        let cached = {
            let mut states = self.0.states.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(states.entry(stream.to_owned()).or_default())
        };
        let mut cached = cached.lock().await;
        if let Some((read, state)) = &*cached
            && read.elapsed() < BELIEVED
            && (seq <= state.last_seq || *read >= asked)
        {
            return Ok(state.clone());
        }
        // The moment of the question: the answer may be as old.
        let read = Instant::now();
        let state = self.0.api.describe(stream).await?;
        *cached = Some((read, state.clone()));
        Ok(state)
    }

    /// The check of the message at this position; none when no message stands there.
    ///
    /// # Errors
    /// [`JetStreamError`] when JetStream does not tell it.
    pub async fn message_check(
        &self,
        stream: &str,
        seq: u64,
    ) -> Result<Option<u16>, JetStreamError> {
        let stored = self.0.api.stored(stream, seq, None).await?;
        Ok(stored.map(|stored| Position::fingerprint_of(stored.published)))
    }

    /// The last thing to do, when tails and services have released their watches: returns when NATS has done what
    /// they asked for last, at most 2 s later. The connections close with the last clone.
    pub async fn close(self) {
        if self.0.links.core.now().up {
            self.0.barrier.pass().await;
        }
    }
}

impl StreamState {
    /// The tag of its ids.
    #[must_use]
    pub fn tag(&self, name: &str, identity: Option<&str>) -> SourceTag {
        identity.map_or_else(
            || SourceTag::of_stream(name, self.created),
            SourceTag::of_identity,
        )
    }
}

impl Identity {
    /// The tag of the core subjects' ids.
    #[must_use]
    pub fn tag(&self) -> SourceTag {
        SourceTag::of_process(&self.boot)
    }
}
