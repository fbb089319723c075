//! The NATS handle of the process: connections, JetStream API, and cached stream states.
//!
//! Sources, history and the presence store share this handle. It has its own file, so that they do
//! not import the module that starts them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::config::Config;
use super::connection::flush::ServerFlush;
use super::connection::{self, Identity, InvalidServer, NatsConnections, Supervisor};
use super::jetstream::api::Api;
use super::jetstream::error::JetStreamError;
use super::jetstream::stream_state::StreamState;
use super::jetstream::tags::SourceTags;
use crate::event::{Fingerprint, SourceTag};
use crate::lifecycle::health::Health;
use crate::telemetry::{Metrics, Tracer};

/// Maximum age of a cached stream state: a thousand clients that reconnect at once cause one
/// request.
const STATE_MAX_AGE: Duration = Duration::from_secs(1);

/// Handle to NATS for the rest of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Nats(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) identity: Identity,
    pub(super) connections: NatsConnections,
    pub(super) api: Api,
    pub(super) server_flush: ServerFlush,
    pub(super) health: Health,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracer: Tracer,
    states: Mutex<HashMap<String, Arc<Cached>>>,
    pub(super) tags: Arc<SourceTags>,
    /// Stops with the last clone and closes the connections.
    _supervisor: Supervisor,
}

/// State of one stream and when it was read. Locked during the request, so that concurrent callers
/// share one request.
type Cached = tokio::sync::Mutex<Option<(Instant, StreamState)>>;

/// Starts connecting and returns at once. A server that is not reachable yet is retried; until then
/// the health check `nats` fails.
///
/// # Errors
/// [`InvalidServer`] if the address of a server cannot be parsed.
pub async fn connect(
    config: &Config,
    identity: Identity,
    health: &Health,
    metrics: &Arc<Metrics>,
    tracer: &Tracer,
) -> Result<Nats, InvalidServer> {
    let (connections, supervisor) = connection::connect(config, &identity, health, metrics).await?;
    Ok(Nats(Arc::new(Inner {
        api: Api::new(connections.control.clone()),
        server_flush: ServerFlush::new(connections.core.clone()),
        identity,
        connections,
        health: health.clone(),
        metrics: Arc::clone(metrics),
        tracer: tracer.clone(),
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

    /// State of a JetStream stream, at most a second old. Concurrent callers share one request.
    /// `seq` is a sequence that a client knows, perhaps from another pod: a cached state that ends
    /// before `seq` is not returned unless it is newer than the call.
    ///
    /// # Errors
    /// [`JetStreamError`] if the request fails.
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
    /// # Errors
    /// [`JetStreamError`] if the request fails.
    pub async fn message_fingerprint(
        &self,
        stream: &str,
        seq: u64,
    ) -> Result<Option<Fingerprint>, JetStreamError> {
        let stored = self.0.api.stored(stream, seq, None).await?;
        Ok(stored.map(|stored| Fingerprint::of_publish_time(stored.published)))
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
