//! Watch of a bucket: every value, then every change, in the order of their revisions.
//!
//! One ephemeral consumer, which detects lost messages. After a loss the caller starts another
//! watch after the last revision that it has.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;

use super::bucket::{OPERATION, is_removal};
use crate::nats::client::Nats;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer::{self, Consumer, Lost, Spec, sequence};
use crate::subject::BucketName;

/// 256 messages and 1 MiB of one pull request; two are open at a time.
const REQUEST_MAX: usize = 256;
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Header of a marker that the server writes when a value expires.
const MARKER_REASON: &str = "Nats-Marker-Reason";

/// A running watch.
#[derive(Debug)]
pub(super) struct Watch {
    consumer: Consumer,
    prefix: String,
    /// Messages that existed at the start and are not returned yet.
    initial: u64,
    /// [`Self::next`] has returned.
    has_begun: bool,
}

/// One message of the bucket.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) key: String,
    /// `None`: the key was removed.
    pub(super) value: Option<Bytes>,
    pub(super) revision: u64,
    /// Time of the message in unix nanoseconds.
    pub(super) published: i128,
}

/// Result of [`Watch::next`].
#[derive(Debug)]
pub(super) struct Updates {
    pub(super) updates: Vec<Update>,
    /// Every message that existed at the start has been returned.
    pub(super) is_current: bool,
    /// Reason why these are the last.
    pub(super) lost: Option<Lost>,
}

impl Watch {
    /// Starts a watch after a revision; 0: from the first value on.
    pub(super) async fn start(
        nats: &Nats,
        bucket: &BucketName,
        after: u64,
    ) -> Result<Self, JetStreamError> {
        let inner = &*nats.0;
        let stream = format!("KV_{}", bucket.as_str());
        let spec = Spec {
            name: consumer::name(&inner.api, &inner.identity, &stream, "w"),
            stream,
            // The bucket has no other subjects than its keys.
            filters: Vec::new(),
            from: sequence(after + 1),
            batch: REQUEST_MAX,
            bytes: REQUEST_BYTES_MAX,
            headers_only: false,
        };
        let connection = inner.connections.control.clone();
        let consumer = Consumer::create(&inner.api, connection, spec).await?;
        inner.metrics.consumers_created_total.inc();
        Ok(Self {
            initial: consumer.pending,
            has_begun: false,
            consumer,
            prefix: format!("$KV.{}.", bucket.as_str()),
        })
    }

    /// Waits for updates, at most for the interval of the server's heartbeats. Not cancel safe.
    pub(super) async fn next(&mut self) -> Updates {
        let has_begun = std::mem::replace(&mut self.has_begun, true);
        if !has_begun && self.initial == 0 {
            // The first heartbeat of an empty bucket arrives after seconds.
            return Updates {
                updates: Vec::new(),
                is_current: true,
                lost: None,
            };
        }
        let received = self.consumer.receive().await;
        self.initial = self.initial.saturating_sub(received.messages.len() as u64);
        // A server sends heartbeats only while nothing is pending.
        if received.passed.is_some()
            || received
                .messages
                .last()
                .is_some_and(|(info, _)| info.pending == 0)
        {
            self.initial = 0;
        }
        let updates = received.messages.into_iter().filter_map(|(info, message)| {
            let key = message.subject.strip_prefix(&self.prefix)?.to_owned();
            Some(Update {
                key,
                value: value(message),
                revision: info.sequence,
                published: info.published,
            })
        });
        Updates {
            updates: updates.collect(),
            is_current: self.initial == 0 && received.lost.is_none(),
            lost: received.lost,
        }
    }
}

/// Returns the value of a message; `None` for a marker.
fn value(message: Message) -> Option<Bytes> {
    let header = |headers: &HeaderMap, name| {
        let value = headers.get(name)?;
        Some(value.as_str().to_owned())
    };
    let is_marker = message.headers.as_ref().is_some_and(|headers| {
        header(headers, OPERATION).is_some_and(|operation| is_removal(&operation))
            || header(headers, MARKER_REASON).is_some()
    });
    (!is_marker).then_some(message.payload)
}
