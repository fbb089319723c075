//! Distribution of a stream's messages to its feeds: one subscription per subject.
//!
//! ```text
//! Distribution::subscribe -> Distributor (one task per stream) -> FeedReceiver (one per feed)
//! ```
//!
//! A message is received, parsed and encoded once for any number of feeds. Queued messages are
//! limited in bytes for all feeds of the stream and in number for each feed. If a feed's queue is
//! full its receiver ends (slow feed); the feed then subscribes again and reads what it missed from
//! JetStream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Message;
use indexmap::IndexMap;
use prometheus::IntCounter;
use tokio::sync::{Notify, mpsc, oneshot};

use super::headers::RepublishHeaders;
use crate::event::{Fingerprint, Position, SourceTag};
use crate::feed::encoded::EncodedEvent;
use crate::feed::{Received, RepublishWriter};
use crate::nats::connection::NatsConnection;
use crate::nats::core::subscription_set::{Key, SubscriptionSet};
use crate::nats::decode::decoder::EventDecoder;
use crate::nats::decode::message::MessageFields;

/// 65,536 queued messages per feed: as many as the connection may hand out at once, or a burst
/// while the feed reads what it missed.
const QUEUE_MAX: usize = 65_536;

/// 32 MiB of queued messages over all feeds of one stream: four messages of the largest size. Above
/// it, a feed that already has queued messages is full; above twice that, every feed is.
const QUEUED_BYTES_MAX: usize = 32 << 20;

/// Number of deliveries before other tasks run: 65,536 take some milliseconds.
const DELIVERIES_MAX: usize = 65_536;

/// 1 s to subscribe: immediate on a connection that is up. Otherwise the feed waits for the
/// connection and asks again.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(1);

/// 1024 waiting requests of feeds, as in a reconnect storm; further feeds wait in `send`.
const REQUESTS_MAX: usize = 1024;

/// Handle of feeds to the subscriptions of one stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    requests: mpsc::Sender<Request>,
    dropped: Arc<DroppedReceivers>,
}

/// Request of a feed.
enum Request {
    Subscribe {
        subjects: Vec<String>,
        done: oneshot::Sender<Option<FeedReceiver>>,
    },
    Flush(oneshot::Sender<()>),
}

/// Receivers that were dropped; never more than exist.
#[derive(Debug, Default)]
struct DroppedReceivers {
    receivers: Mutex<Vec<u64>>,
    notify: Notify,
}

/// Messages of one feed. Dropping it ends the subscriptions that no other feed needs.
pub(super) struct FeedReceiver {
    number: u64,
    messages: mpsc::Receiver<Arc<PositionedMessage>>,
    distribution: Distribution,
}

/// Message of the stream with its position.
#[derive(Debug)]
pub(super) struct PositionedMessage {
    message: Message,
    subject: Arc<str>,
    pub(super) sequence: u64,
    pub(super) previous: u64,
    pub(super) published: Option<i128>,
    received: Instant,
    /// Source tag and event of the first feed that encoded it.
    encoded: OnceLock<(SourceTag, Option<Arc<EncodedEvent>>)>,
    _queued: QueuedBytes,
}

/// Part of [`QUEUED_BYTES_MAX`], released when dropped.
#[derive(Debug)]
struct QueuedBytes {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

/// Task that owns the subscriptions of one stream.
pub(super) struct Distributor {
    stream: String,
    connection: NatsConnection,
    decoder: EventDecoder,
    overflows: IntCounter,
    requests: mpsc::Receiver<Request>,
    distribution: Distribution,
    subscription_set: SubscriptionSet<Number>,
    /// By subscription number.
    subscriptions: HashMap<u64, Subscription>,
    by_subject: HashMap<String, u64>,
    /// Subscriptions of each receiver.
    receivers: HashMap<u64, Vec<u64>>,
    /// Number of the last subscription or receiver; never reused.
    last: u64,
    queued: Arc<AtomicUsize>,
}

/// Number of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Number(u64);

impl Key for Number {
    fn tag(self) -> u128 {
        self.0.into()
    }

    #[allow(clippy::cast_possible_truncation)] // Made from a `u64`.
    fn of_tag(tag: u128) -> Self {
        Self(tag as u64)
    }
}

struct Subscription {
    subject: String,
    subscribers: IndexMap<u64, mpsc::Sender<Arc<PositionedMessage>>>,
}

// === impl Distribution ===

impl Distribution {
    /// Subscribes to these subjects. `None` if the connection is not up.
    pub(super) async fn subscribe(&self, subjects: &[String]) -> Option<FeedReceiver> {
        let (done, subscribed) = oneshot::channel();
        self.requests
            .send(Request::Subscribe {
                subjects: subjects.to_vec(),
                done,
            })
            .await
            .ok()?;
        subscribed.await.ok()?
    }

    /// Returns when everything that the connection has read is in the queues of the feeds.
    async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.requests.send(Request::Flush(done)).await.is_ok() {
            // An error means that the stream is no longer served.
            flushed.await.ok();
        }
    }
}

// === impl FeedReceiver ===

impl FeedReceiver {
    /// Waits for a message and returns all that are queued. `None` if the receiver has ended.
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Vec<Arc<PositionedMessage>>> {
        let mut all = vec![self.messages.recv().await?];
        self.take_queued(&mut all);
        Some(all)
    }

    /// Returns everything that the connection has read, without waiting for more.
    pub(super) async fn ready(&mut self) -> Vec<Arc<PositionedMessage>> {
        self.distribution.flush().await;
        let mut all = Vec::new();
        self.take_queued(&mut all);
        all
    }

    fn take_queued(&mut self, all: &mut Vec<Arc<PositionedMessage>>) {
        while let Ok(message) = self.messages.try_recv() {
            all.push(message);
        }
    }
}

impl Drop for FeedReceiver {
    fn drop(&mut self) {
        self.distribution
            .dropped
            .receivers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.number);
        self.distribution.dropped.notify.notify_one();
    }
}

// === impl PositionedMessage ===

impl PositionedMessage {
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns the event, encoded once for all feeds that read the stream under the same tag.
    /// `None` if it is too large.
    pub(super) fn encode(
        &self,
        tag: SourceTag,
        decoder: &EventDecoder,
        writer: &RepublishWriter,
    ) -> Option<Arc<EncodedEvent>> {
        let (first, encoded) = self
            .encoded
            .get_or_init(|| (tag, self.encode_new(tag, decoder, writer)));
        if *first == tag {
            encoded.clone()
        } else {
            self.encode_new(tag, decoder, writer)
        }
    }

    fn encode_new(
        &self,
        tag: SourceTag,
        decoder: &EventDecoder,
        writer: &RepublishWriter,
    ) -> Option<Arc<EncodedEvent>> {
        let fields = MessageFields {
            subject: &self.subject,
            published: self.published,
            ..MessageFields::of(&self.message)
        };
        match decoder.decode(fields, self.position(tag), self.received) {
            Received::Event(event) => Some(writer.encode(event)),
            Received::TooLarge(_) => None,
        }
    }

    pub(super) fn position(&self, tag: SourceTag) -> Position {
        Position {
            tag,
            seq: self.sequence,
            fingerprint: self.published.map(Fingerprint::of_publish_time),
        }
    }
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

// === impl Distributor ===

impl Distributor {
    pub(super) fn new(
        stream: &str,
        connection: NatsConnection,
        decoder: EventDecoder,
        overflows: IntCounter,
    ) -> (Self, Distribution) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let distribution = Distribution {
            requests: sender,
            dropped: Arc::default(),
        };
        let subscription_set = SubscriptionSet::new(&connection.client());
        let distributor = Self {
            stream: stream.to_owned(),
            connection,
            decoder,
            overflows,
            requests,
            distribution: distribution.clone(),
            subscription_set,
            subscriptions: HashMap::new(),
            by_subject: HashMap::new(),
            receivers: HashMap::new(),
            last: 0,
            queued: Arc::default(),
        };
        (distributor, distribution)
    }

    /// Serves feeds. Never returns; dropped at shutdown, before [`Self::end`].
    pub(super) async fn serve(&mut self) {
        let dropped = Arc::clone(&self.distribution.dropped);
        loop {
            tokio::select! {
                biased;
                () = dropped.notify.notified() => {
                    let receivers = std::mem::take(&mut *dropped.receivers.lock().unwrap_or_else(PoisonError::into_inner));
                    receivers.into_iter().for_each(|receiver| self.remove_receiver(receiver));
                }
                () = self.connection.changed() => if self.subscription_set.has_ended() {
                    self.close_all();
                },
                Some(request) = self.requests.recv() => self.handle(request).await,
                (Number(subscription), message) = self.subscription_set.next() => {
                    self.deliver(subscription, message);
                    self.deliver_ready();
                }
            }
            // Lets feeds run before more is delivered.
            tokio::task::yield_now().await;
        }
    }

    /// Ends every subscription.
    pub(super) async fn end(self) {
        self.subscription_set.end().await;
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Subscribe { subjects, done } => {
                let receiver = self.subscribe(&subjects).await;
                // If the feed is gone, the receiver is dropped with the response and removes
                // itself.
                drop(done.send(receiver));
            }
            Request::Flush(done) => {
                self.deliver_ready();
                // The feed may be gone.
                done.send(()).ok();
            }
        }
    }

    async fn subscribe(&mut self, subjects: &[String]) -> Option<FeedReceiver> {
        let (sender, messages) = mpsc::channel(QUEUE_MAX);
        self.last += 1;
        let number = self.last;
        let receiver = FeedReceiver {
            number,
            messages,
            distribution: self.distribution.clone(),
        };
        self.receivers.insert(number, Vec::new());
        for subject in subjects {
            let Some(subscription) = self.subscription_for(subject).await else {
                self.remove_receiver(number);
                return None;
            };
            self.receivers.entry(number).or_default().push(subscription);
            self.subscriptions
                .get_mut(&subscription)?
                .subscribers
                .insert(number, sender.clone());
        }
        Some(receiver)
    }

    /// Returns the subscription to this subject, creating it if necessary.
    async fn subscription_for(&mut self, subject: &str) -> Option<u64> {
        if let Some(known) = self.by_subject.get(subject) {
            return Some(*known);
        }
        self.last += 1;
        let number = Number(self.last);
        let subscribe = self.subscription_set.subscriber();
        let subscribed = subscribe.subscribe(number, subject);
        let subscribed = tokio::time::timeout(SUBSCRIBE_MAX, subscribed).await;
        self.subscription_set.add(number, subscribed.ok()?.ok()?);
        self.by_subject.insert(subject.to_owned(), self.last);
        self.subscriptions.insert(
            self.last,
            Subscription {
                subject: subject.to_owned(),
                subscribers: IndexMap::new(),
            },
        );
        Some(self.last)
    }

    fn remove_receiver(&mut self, receiver: u64) {
        for number in self.receivers.remove(&receiver).into_iter().flatten() {
            let Some(subscription) = self.subscriptions.get_mut(&number) else {
                continue;
            };
            subscription.subscribers.swap_remove(&receiver);
            if subscription.subscribers.is_empty() {
                self.subscription_set.remove(Number(number));
                self.by_subject.remove(&subscription.subject);
                self.subscriptions.remove(&number);
            }
        }
    }

    /// Ends every receiver: feeds subscribe again.
    fn close_all(&mut self) {
        self.subscription_set = SubscriptionSet::new(&self.connection.client());
        self.subscriptions.clear();
        self.by_subject.clear();
        self.receivers.clear();
    }

    /// Delivers messages that have arrived, all of them up to a limit: a feed of several subjects
    /// sorts what it has received together.
    fn deliver_ready(&mut self) {
        let mut deliveries = 0;
        while deliveries < DELIVERIES_MAX {
            let Some((Number(subscription), message)) = self.subscription_set.ready() else {
                break;
            };
            deliveries += self.deliver(subscription, message);
        }
    }

    /// Delivers one message and returns the number of feeds that receive it.
    fn deliver(&mut self, subscription: u64, message: Message) -> usize {
        self.decoder.count_received(1);
        let Some(subscription) = self.subscriptions.get(&subscription) else {
            return 1;
        };
        let Some(headers) = RepublishHeaders::of(&message, &self.stream) else {
            // Sent by another publisher.
            self.decoder.count_not_from_stream();
            return 1;
        };
        let RepublishHeaders {
            sequence,
            previous,
            published,
            subject,
        } = headers;
        let bytes = message.length + size_of::<PositionedMessage>();
        let before = self.queued.fetch_add(bytes, Ordering::Relaxed);
        // One message always fits: one larger than the limit would otherwise never be delivered.
        let is_over_limit = before > 0 && before + bytes > QUEUED_BYTES_MAX;
        let is_over_double_limit = before > 0 && before + bytes > 2 * QUEUED_BYTES_MAX;
        let positioned = Arc::new(PositionedMessage {
            subject: subject.into(),
            sequence,
            previous,
            published,
            message,
            received: Instant::now(),
            encoded: OnceLock::new(),
            _queued: QueuedBytes {
                all: Arc::clone(&self.queued),
                bytes,
            },
        });
        let subscribers = subscription.subscribers.len();
        let mut full = Vec::new();
        for (receiver, sender) in &subscription.subscribers {
            let is_idle = sender.capacity() == sender.max_capacity();
            if is_over_double_limit
                || (is_over_limit && !is_idle)
                || sender.try_send(Arc::clone(&positioned)).is_err()
            {
                full.push(*receiver);
            }
        }
        if !full.is_empty() {
            self.overflows.inc();
            tracing::warn!(
                stream = self.stream,
                feeds = full.len(),
                "slow feed: queue full, republished messages dropped"
            );
        }
        for receiver in full {
            self.remove_receiver(receiver);
        }
        subscribers.max(1)
    }
}
