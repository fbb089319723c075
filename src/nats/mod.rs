//! Connections to NATS, and the sources that turn NATS messages into events.
//!
//! [`connect`] opens four connections and returns a [`Nats`] handle. The application uses that
//! handle to start one task per configured source; each task runs until its shutdown token is
//! requested and writes into the feed core through a writer type:
//!
//! ```text
//! client       the handle: connections, JetStream API, cached stream states
//! connection/  four connections, a supervisor, TLS, credentials, flush, probe
//! jetstream/   StreamTailer: one pull consumer per stream and pod  -> decode -> StreamWriter
//! core/        CoreSubscriptions: one subscription per filter      -> decode -> CoreWriter
//! republish/   RepublishTailer: one task per feed, subscriptions to
//!              what the stream republishes                         -> decode -> RepublishWriter
//! history/     HistoryReader: one pull consumer per replay         -> decode -> Page
//! kv/          KV buckets: presence, revocations, tickets
//! decode/      a NATS message becomes an event
//! ```
//!
//! Messages, requests and replays use different connections (decision record 0006). Nothing in this
//! folder panics on bytes from the network. A lost message becomes a gap in the event stream. An
//! error that only an operator can resolve is a failing health check that names the remedy.

mod client;
pub mod config;
mod connection;
mod core;
mod decode;
mod history;
mod jetstream;
mod kv;
mod republish;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::auth::revocations::Entry;
use crate::auth::{Revocations, TicketStore};
use crate::feed::{
    Archive, CoreWriter, RepublishSource, RepublishWriter, StreamWriter, SubscribeRequests,
};
use crate::lifecycle::shutdown::Token;
use crate::payload::schema::FoundDocuments;
use crate::presence::{PresenceStore, StreamTable};
use crate::subject::BucketName;
use client::Inner;
use core::subscriptions::CoreSubscriptions;
use history::JetStreamArchive;
use jetstream::stream_config::check_name;
use jetstream::tailer::{Server, StreamTailer};
use kv::presence::KvPresenceStore;
use kv::revocations::Watcher;
use kv::tickets::KvTicketStore;

pub use client::{Nats, connect};
pub use config::Config;
pub use connection::{Identity, InvalidServer};
pub use jetstream::error::JetStreamError;
pub use jetstream::stream_config::StreamConfig;
pub use jetstream::stream_state::StreamState;
pub use republish::Republish;

impl Nats {
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

    /// Starts the store of tickets in a KV bucket. `ttl` is the life of a ticket. Dropping the store
    /// ends its task. Needs a runtime.
    #[must_use]
    pub fn tickets(&self, bucket: &BucketName, ttl: Duration) -> Arc<dyn TicketStore> {
        KvTicketStore::start(self, bucket, ttl)
    }

    /// Follows the JSON Schemas of a KV bucket. Pending forever.
    pub async fn follow_schemas(
        &self,
        bucket: &BucketName,
        found: &watch::Sender<FoundDocuments>,
    ) -> Infallible {
        kv::schemas::follow(self, bucket, found).await
    }

    /// Keeps revocations up to date with a KV bucket, and ends the event streams that they concern,
    /// until shutdown is requested.
    pub fn watch_revocations(
        &self,
        bucket: &BucketName,
        revocations: Arc<Revocations>,
        streams: StreamTable,
        shutdown: Token,
    ) {
        let watcher = Watcher::new(self.clone(), bucket, revocations, streams);
        tokio::spawn(watcher.run(shutdown));
    }

    /// Writes an entry into a bucket of revocations, which is created if it is missing.
    ///
    /// # Errors
    /// A sentence that says why the entry is not written.
    pub async fn write_revocation(&self, bucket: &BucketName, entry: &Entry) -> Result<(), String> {
        kv::revocations::write(self, bucket, entry).await
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
            tracer,
            ..
        } = &*self.0;
        let server = Server {
            api: api.clone(),
            data: connections.data.clone(),
            tags: Arc::clone(tags),
        };
        let tailer = StreamTailer::new(
            config,
            identity.clone(),
            server,
            writer,
            health,
            (metrics, tracer),
        );
        tokio::spawn(tailer.run(shutdown));
    }

    /// Subscribes to the core subjects that feeds need until shutdown is requested. The token is
    /// dropped after the last subscription has ended.
    pub fn serve_core(&self, writer: CoreWriter, shutdown: Token) {
        let Inner {
            identity,
            connections,
            server_flush,
            metrics,
            tracer,
            ..
        } = &*self.0;
        let core = CoreSubscriptions::new(
            connections.core.clone(),
            server_flush.clone(),
            identity.tag(),
            writer,
            (metrics, tracer),
        );
        tokio::spawn(core.run(shutdown));
    }

    /// Serves subscribe requests for a JetStream stream that republishes, until shutdown is
    /// requested. The token is dropped after the last subscription has ended.
    pub fn serve_republished(
        &self,
        config: StreamConfig,
        source: Arc<RepublishSource>,
        requests: SubscribeRequests<RepublishWriter>,
        shutdown: Token,
    ) {
        let check = self
            .0
            .health
            .check(check_name(&config.name), "not checked yet");
        tokio::spawn(republish::serve(
            self.clone(),
            config,
            source,
            check,
            requests,
            shutdown,
        ));
    }

    /// Keeps the check of a stream from failing: no route names the stream.
    pub fn retire_check(&self, stream: &str) {
        self.0.health.retire(&check_name(stream));
    }

    /// History of a stream: the messages that JetStream retains.
    #[must_use]
    pub fn archive(&self, config: &StreamConfig) -> Arc<dyn Archive> {
        Arc::new(JetStreamArchive::new(self.clone(), config))
    }
}
