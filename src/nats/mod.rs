//! Connections to NATS, and the sources that turn NATS messages into events.
//!
//! [`connect`] opens four connections and returns a [`Nats`] handle. The application uses that
//! handle to start one task per configured source; each task runs until its shutdown token is
//! requested and writes into the feed core through a writer type:
//!
//! ```text
//! connection/  four connections, a supervisor, TLS, credentials, flush, probe
//! jetstream/   StreamTailer: one pull consumer per stream and pod  -> decode -> StreamWriter
//! core/        CoreSubscriptions: one subscription per filter      -> decode -> CoreWriter
//! republish/   RepublishTailer: one task per feed, subscriptions to
//!              what the stream republishes                         -> decode -> RepublishWriter
//! history/     HistoryReader: one pull consumer per replay         -> decode -> Page
//! kv/          presence bucket: which clients are connected to which pod
//! decode/      a NATS message becomes an event
//! ```
//!
//! Messages, requests and replays use different connections (decision record 0006). Nothing in this
//! folder panics on bytes from the network. A lost message becomes a gap in the event stream. An
//! error that only an operator can resolve is a failing health check that names the remedy.

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
use crate::presence::{BucketName, PresenceStore};
use crate::sse::{Position, SourceTag};
use crate::subject::FilterSet;
use crate::telemetry::Metrics;
use connection::flush::ServerFlush;
use connection::{NatsConnections, Supervisor};
use core::subscriptions::CoreSubscriptions;
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

/// Maximum age of a cached stream state: a thousand clients that reconnect at once cause one
/// request.
const STATE_MAX_AGE: Duration = Duration::from_secs(1);

/// Handle to NATS for the rest of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Nats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    connections: NatsConnections,
    api: Api,
    server_flush: ServerFlush,
    health: Health,
    metrics: Arc<Metrics>,
    states: Mutex<HashMap<String, Arc<Cached>>>,
    tags: Arc<SourceTags>,
    /// Stops with the last clone and closes the connections.
    _supervisor: Supervisor,
}

/// State of one stream and when it was read. Locked during the request, so that concurrent callers
/// share one request.
type Cached = tokio::sync::Mutex<Option<(Instant, StreamState)>>;

/// Starts connecting and returns at once. A server that is not reachable yet is retried; until then
/// the health check `nats` fails.
///
/// # Errors [`InvalidServer`] if the address of a server cannot be parsed.
pub async fn connect(
    config: &Config,
    identity: Identity,
    health: &Health,
    metrics: &Arc<Metrics>,
) -> Result<Nats, InvalidServer> {
    let (connections, supervisor) = connection::connect(config, &identity, health, metrics).await?;
    Ok(Nats(Arc::new(Inner {
        api: Api::new(connections.control.clone()),
        server_flush: ServerFlush::new(connections.core.clone()),
        identity,
        connections,
        health: health.clone(),
        metrics: Arc::clone(metrics),
        states: Mutex::default(),
        tags: Arc::default(),
        _supervisor: supervisor,
    })))
}

impl Nats {
    /// Returns true if every connection is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let NatsConnections {
            data,
            replay,
            core,
            control,
        } = &self.0.connections;
        [data, replay, core, control]
            .iter()
            .all(|connection| connection.state().up)
    }

    /// Starts the presence store in a KV bucket. It runs until shutdown is requested, and drops its
    /// token after the last write. `max_bytes` is the size of the bucket if it is created here.
    #[must_use]
    pub fn presence(
        &self,
        bucket: &BucketName,
        max_bytes: u64,
        shutdown: Token,
    ) -> Arc<dyn PresenceStore> {
        KvPresenceStore::start(self, bucket, max_bytes, shutdown)
    }

    /// Follows a JetStream stream into a stream buffer until shutdown is requested. The token is
    /// dropped after the consumer is deleted.
    pub fn tail(&self, config: StreamConfig, writer: StreamWriter, shutdown: Token) {
        let Inner {
            identity,
            connections,
            api,
            tags,
            health,
            metrics,
            ..
        } = &*self.0;
        let server = (api.clone(), connections.data.clone(), Arc::clone(tags));
        let tailer = StreamTailer::new(config, identity.clone(), server, writer, health, metrics);
        tokio::spawn(tailer.run(shutdown));
    }

    /// Subscribes to the core subjects that feeds need until shutdown is requested. The token is
    /// dropped after the last subscription has ended.
    pub fn serve(&self, writer: CoreWriter, shutdown: Token) {
        let Inner {
            identity,
            connections,
            server_flush,
            metrics,
            ..
        } = &*self.0;
        let core = CoreSubscriptions::new(
            connections.core.clone(),
            server_flush.clone(),
            identity.tag(),
            writer,
            metrics,
        );
        tokio::spawn(core.run(shutdown));
    }

    /// Serves subscribe requests for a JetStream stream that republishes, until shutdown is
    /// requested. The token is dropped after the last subscription has ended.
    pub fn serve_republished(
        &self,
        config: StreamConfig,
        source: Arc<RepublishSource>,
        demands: SubscribeRequests<RepublishWriter>,
        shutdown: Token,
    ) {
        tokio::spawn(republish::serve(
            self.clone(),
            config,
            source,
            demands,
            shutdown,
        ));
    }

    /// History of a stream: the messages that JetStream retains. `identity` replaces the stream's
    /// creation time in event ids. `filters` is the union of all filters that can be read.
    #[must_use]
    pub fn archive(
        &self,
        name: &str,
        identity: Option<&str>,
        filters: &FilterSet,
    ) -> Arc<dyn Archive> {
        Arc::new(JetStreamArchive::new(self.clone(), name, identity, filters))
    }

    /// State of a JetStream stream, at most a second old. Concurrent callers share one request.
    /// `seq` is a sequence that a client knows, perhaps from another pod: a cached state that ends
    /// before `seq` is not returned unless it is newer than the call.
    ///
    /// # Errors [`JetStreamError`] if the request fails.
    pub async fn stream_state(
        &self,
        stream: &str,
        seq: u64,
    ) -> Result<StreamState, JetStreamError> {
        let called_at = Instant::now();
        let cached = {
            let mut states = self.0.states.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(states.entry(stream.to_owned()).or_default())
        };
        let mut cached = cached.lock().await;
        if let Some((read, state)) = &*cached
            && read.elapsed() < STATE_MAX_AGE
            && (seq <= state.last_seq || *read >= called_at)
        {
            return Ok(state.clone());
        }
        // Time of the request: the response may be as old as that.
        let read = Instant::now();
        let state = self.0.api.stream_info(stream).await?;
        *cached = Some((read, state.clone()));
        Ok(state)
    }

    /// Fingerprint of the message at this sequence, or `None` if there is no such message.
    ///
    /// # Errors [`JetStreamError`] if the request fails.
    pub async fn message_fingerprint(
        &self,
        stream: &str,
        seq: u64,
    ) -> Result<Option<u16>, JetStreamError> {
        let stored = self.0.api.stored(stream, seq, None).await?;
        Ok(stored.map(|stored| Position::fingerprint_of(stored.published)))
    }

    /// Waits until NATS has processed the last requests, at most 2 s. Called after tailers and
    /// subscriptions have dropped their tokens. The connections close with the last clone.
    pub async fn close(self) {
        if self.0.connections.core.state().up {
            self.0.server_flush.flush().await;
        }
    }
}

impl StreamState {
    /// Source tag of the stream's event ids.
    #[must_use]
    pub fn tag(&self, name: &str, identity: Option<&str>) -> SourceTag {
        identity.map_or_else(
            || SourceTag::of_stream(name, self.created),
            SourceTag::of_identity,
        )
    }
}

impl Identity {
    /// Source tag of the event ids of core subjects.
    #[must_use]
    pub fn tag(&self) -> SourceTag {
        SourceTag::of_process(&self.boot)
    }
}
