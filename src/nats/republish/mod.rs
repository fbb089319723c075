//! Republish source: a JetStream stream read through the core subjects to which it republishes.
//!
//! Live messages arrive by plain subscriptions that feeds of the same subjects share, so the server
//! has no consumer for them. Each republished message carries its sequence and the previous
//! sequence of its subject; a loss is detected from these and read from the stream (decision record
//! 0008).
//!
//! ```text
//! context       state shared by the feeds of one stream, its regular check
//! mapping       subject to subscribe to for a filter
//! distribution  one subscription per subject, its messages to every feed that needs them
//! headers       sequence, previous sequence and time in the headers of a republished message
//! sequence      loss detection from these headers
//! tailer        task of one feed: open (subscribe), compare (with the stream), repair (read)
//! ```
//!
//! [`serve`] starts a tailer per subscribe request. A second loop checks every 5 s that the stream
//! republishes everything that routes read, with payloads.

mod context;
mod distribution;
mod headers;
pub(in crate::nats) mod mapping;
mod sequence;
mod tailer;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::Semaphore;

use super::client::Nats;
use super::history::JetStreamArchive;
use super::jetstream::stream_config::StreamConfig;
use crate::feed::{RepublishSource, RepublishWriter, SubscribeRequest, SubscribeRequests};
use crate::lifecycle::health::Check;
use crate::lifecycle::shutdown::Token;
use crate::nats::decode::decoder::EventDecoder;
use context::{READS_MAX, REQUESTS_MAX, StreamContext};
use distribution::Distributor;
pub use mapping::Republish;
use tailer::RepublishTailer;

/// Serves subscribe requests for a stream that republishes, until shutdown is requested.
pub(super) async fn serve(
    nats: Nats,
    config: StreamConfig,
    source: Arc<RepublishSource>,
    check: Check,
    mut requests: SubscribeRequests<RepublishWriter>,
    shutdown: Token,
) {
    let (metrics, tracer) = (&nats.0.metrics, &nats.0.tracer);
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
        EventDecoder::live(metrics, &config.name, tracer),
        overflows,
    );
    let context = Arc::new(StreamContext {
        distribution,
        archive: JetStreamArchive::new(nats.clone(), &config),
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
    let watcher = context.watch_stream(&source, &check);
    let receiver = async {
        while let Some(SubscribeRequest { filters, writer }) = requests.recv().await {
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
