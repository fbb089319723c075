//! State of a stream: the last message of each subject, up to its last sequence.
//!
//! The leader is asked for the last sequence S first. A consumer that is created afterwards delivers
//! the last message of each subject as of its creation, in the order of the stream. Those above S are
//! left out: they follow as ordinary events after S. A message that a newer one replaces while the
//! consumer delivers is missing in the state, and the newer one follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::DeliverPolicy;

use super::read_health::StreamContext;
use crate::event::{Fingerprint, Position};
use crate::feed::archive::Latest;
use crate::nats::decode::decoder::{Batch, BatchItem};
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer::{self, Consumer, Spec};
use crate::subject::FilterSet;

/// 60 s for the whole state: a million small messages take a few seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

impl StreamContext {
    /// Reads the last message of each subject that some filters select.
    pub(super) async fn latest(
        self: &Arc<Self>,
        filters: &FilterSet,
        bytes_max: usize,
    ) -> Result<Latest, JetStreamError> {
        // Above every last sequence: a state that is newer than the call.
        let state = self.nats.stream_state(&self.stream, u64::MAX).await?;
        let state = self.subjects.shareable(state)?;
        let tag = state.tag(&self.stream, self.identity.as_deref());
        let inner = &self.nats.0;
        let spec = Spec {
            stream: self.stream.clone(),
            name: consumer::name(&inner.api, &inner.identity, &self.stream, "s"),
            filters: self.subjects.server_filters(&inner.api, filters),
            from: DeliverPolicy::LastPerSubject,
            batch: 256,
            bytes: 1 << 20,
            headers_only: false,
        };
        let name = spec.name.clone();
        let read = tokio::time::timeout(TIMEOUT, async {
            let mut consumer =
                Consumer::create(&inner.api, inner.connections.replay.clone(), spec).await?;
            inner.metrics.consumers_created_total.inc();
            let (mut batch, mut bytes) = (Batch::default(), 0);
            let mut is_complete = consumer.pending == 0;
            while !is_complete {
                let received = consumer.receive().await;
                for (info, message) in &received.messages {
                    bytes += message.payload.len();
                    if bytes > bytes_max {
                        return Ok(None);
                    }
                    is_complete |= info.pending == 0;
                    if info.sequence > state.last_seq {
                        is_complete = true;
                        break;
                    }
                    let position = Position {
                        tag,
                        seq: info.sequence,
                        fingerprint: Some(Fingerprint::of_publish_time(info.published)),
                    };
                    let fields = self.subjects.fields(message);
                    // A removed key is not part of the state.
                    if fields.removed.is_none() {
                        self.decoder.decode_into(
                            fields,
                            position,
                            Instant::now(),
                            filters,
                            &mut batch,
                        );
                    }
                }
                is_complete |= received
                    .passed
                    .is_some_and(|passed| passed >= state.last_seq);
                if let (false, Some(lost)) = (is_complete, received.lost) {
                    return Err(JetStreamError::Failed(format!("consumer lost: {lost:?}")));
                }
            }
            Ok(Some(batch))
        })
        .await;
        inner.api.delete_later(&self.stream, &name).await;
        let batch = read.map_err(|_| JetStreamError::Timeout)??;
        let events_of = |item| match item {
            BatchItem::Events(events) => events,
            // Too large for an event, and counted.
            BatchItem::Lost(_) => Vec::new(),
        };
        let events =
            batch.map(|batch| batch.into_items().into_iter().flat_map(events_of).collect());
        Ok(Latest {
            position: state.position_after(state.last_seq, tag),
            events,
        })
    }
}
