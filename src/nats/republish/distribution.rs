//! One subscription for each subject that feeds of one stream ask for, and its messages to all of these feeds.
//!
//! ```text
//! Distribution::subscribe -> Distributor (one task for a stream) -> Tap (one for each feed)
//! ```
//!
//! A message is received, stamped and encoded once, however many feeds take it. What waits for feeds that are busy is
//! bounded in bytes for all of them and in messages for each: the tap of a feed that is full ends, and the feed subscribes
//! again and reads what it missed from JetStream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Message;
use indexmap::IndexMap;
use prometheus::IntCounter;
use tokio::sync::{Notify, mpsc, oneshot};

use super::headers::RepublishHeaders;
use crate::feed::encoded::EncodedEvent;
use crate::feed::{Received, RepublishWriter};
use crate::nats::connection::NatsConnection;
use crate::nats::core::inlet::{self, Inlet};
use crate::nats::decode::decoder::EventDecoder;
use crate::nats::decode::message::MessageFields;
use crate::sse::{Position, SourceTag};

/// Messages that wait for one feed at most: all that the connection may hand over at once, or a burst while the feed reads
/// what it missed.
const WAITING_MAX: usize = 65_536;

/// Bytes of the messages that wait for any feed of one stream: four messages of the largest size. Above it, a feed for
/// which messages wait already is full; above the double, every feed is.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// Deliveries after which other tasks run: 65,536 take some milliseconds.
const DELIVERIES_MAX: usize = 65_536;

/// A subscription is made at once on a connection that is up; without one the feed waits for it and asks again.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(1);

/// Requests of feeds that wait to be answered: those of a reconnect storm; feeds wait in turn.
const REQUESTS_MAX: usize = 1024;

/// The subscriptions of one stream, as its feeds see them. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    requests: mpsc::Sender<Request>,
    left: Arc<Left>,
}

/// What a feed asks for.
enum Request {
    Subscribe {
        subjects: Vec<String>,
        done: oneshot::Sender<Option<Tap>>,
    },
    Flush(oneshot::Sender<()>),
}

/// Taps that were dropped; at most as many as there are.
#[derive(Debug, Default)]
struct Left {
    taps: Mutex<Vec<u64>>,
    notify: Notify,
}

/// The messages of one feed. Dropping it ends the subscriptions that no other feed needs.
pub(super) struct Tap {
    number: u64,
    messages: mpsc::Receiver<Arc<PositionedMessage>>,
    distribution: Distribution,
}

/// A message of the stream with its place in it.
#[derive(Debug)]
pub(super) struct PositionedMessage {
    message: Message,
    subject: Arc<str>,
    pub(super) sequence: u64,
    pub(super) previous: u64,
    pub(super) published: Option<i128>,
    received: Instant,
    /// What it became for the first feed that took it, under which tag.
    shown: OnceLock<(SourceTag, Option<Arc<EncodedEvent>>)>,
    _waiting: Waiting,
}

/// A part of [`WAITING_BYTES_MAX`], given back when dropped.
#[derive(Debug)]
struct Waiting {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

/// The task that has the subscriptions of one stream.
pub(super) struct Distributor {
    stream: String,
    link: NatsConnection,
    intake: EventDecoder,
    overflows: IntCounter,
    requests: mpsc::Receiver<Request>,
    distribution: Distribution,
    inlet: Inlet<u64>,
    /// By the number of the subscription.
    subscriptions: HashMap<u64, Subscription>,
    by_subject: HashMap<String, u64>,
    /// The subscriptions of each tap.
    taps: HashMap<u64, Vec<u64>>,
    /// The number of the last subscription or tap; none is used twice.
    last: u64,
    waiting: Arc<AtomicUsize>,
}

struct Subscription {
    subject: String,
    takers: IndexMap<u64, mpsc::Sender<Arc<PositionedMessage>>>,
}

// === impl Distribution ===

impl Distribution {
    /// Subscribes to these subjects; nothing if the connection is not up.
    pub(super) async fn subscribe(&self, subjects: &[String]) -> Option<Tap> {
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

    /// Returns when everything that the connection has handed over is in the taps.
    async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.requests.send(Request::Flush(done)).await.is_ok() {
            // An error means that the stream is not served any longer.
            flushed.await.ok();
        }
    }
}

// === impl Tap ===

impl Tap {
    /// Waits for a message and takes all that are there; nothing when the tap has ended. Cancellation safe.
    pub(super) async fn next(&mut self) -> Option<Vec<Arc<PositionedMessage>>> {
        let mut all = vec![self.messages.recv().await?];
        self.take(&mut all);
        Some(all)
    }

    /// All that the connection has handed over, without waiting for more.
    pub(super) async fn ready(&mut self) -> Vec<Arc<PositionedMessage>> {
        self.distribution.flush().await;
        let mut all = Vec::new();
        self.take(&mut all);
        all
    }

    fn take(&mut self, all: &mut Vec<Arc<PositionedMessage>>) {
        while let Ok(message) = self.messages.try_recv() {
            all.push(message);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.distribution
            .left
            .taps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.number);
        self.distribution.left.notify.notify_one();
    }
}

// === impl Stamped ===

impl PositionedMessage {
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// The event, encoded once for all feeds that read the stream under the same tag; nothing if it is too large.
    pub(super) fn show(
        &self,
        tag: SourceTag,
        intake: &EventDecoder,
        writer: &RepublishWriter,
    ) -> Option<Arc<EncodedEvent>> {
        let (first, shown) = self
            .shown
            .get_or_init(|| (tag, self.convert(tag, intake, writer)));
        if *first == tag {
            shown.clone()
        } else {
            self.convert(tag, intake, writer)
        }
    }

    fn convert(
        &self,
        tag: SourceTag,
        intake: &EventDecoder,
        writer: &RepublishWriter,
    ) -> Option<Arc<EncodedEvent>> {
        let parts = MessageFields {
            subject: &self.subject,
            ..MessageFields::of(&self.message)
        };
        match intake.convert(parts, self.position(tag), self.received) {
            Received::Event(event) => Some(writer.encode(event)),
            Received::TooLarge(_) => None,
        }
    }

    pub(super) fn position(&self, tag: SourceTag) -> Position {
        Position {
            tag,
            seq: self.sequence,
            fingerprint: self.published.map(Position::fingerprint_of),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

// === impl Distributor ===

impl Distributor {
    pub(super) fn new(
        stream: &str,
        link: NatsConnection,
        intake: EventDecoder,
        overflows: IntCounter,
    ) -> (Self, Distribution) {
        let (asked, requests) = mpsc::channel(REQUESTS_MAX);
        let distribution = Distribution {
            requests: asked,
            left: Arc::default(),
        };
        let distributor = Self {
            stream: stream.to_owned(),
            link,
            intake,
            overflows,
            requests,
            distribution: distribution.clone(),
            inlet: Inlet::default(),
            subscriptions: HashMap::new(),
            by_subject: HashMap::new(),
            taps: HashMap::new(),
            last: 0,
            waiting: Arc::default(),
        };
        (distributor, distribution)
    }

    /// Serves feeds for ever. Dropped at the end, and followed by [`Self::end`].
    pub(super) async fn serve(&mut self) {
        let left = Arc::clone(&self.distribution.left);
        loop {
            tokio::select! {
                biased;
                () = left.notify.notified() => {
                    let taps = std::mem::take(&mut *left.taps.lock().unwrap_or_else(PoisonError::into_inner));
                    taps.into_iter().for_each(|tap| self.leave(tap));
                }
                Some(request) = self.requests.recv() => self.answer(request).await,
                message = self.inlet.next() => match message {
                    Some((subscription, message)) => {
                        self.deliver(subscription, message);
                        self.drain();
                    }
                    // The client of the library has ended, and all its subscriptions with it.
                    None => self.end_all(),
                },
            }
            // Feeds run before more is delivered.
            tokio::task::yield_now().await;
        }
    }

    /// Ends every subscription.
    pub(super) async fn end(self) {
        self.inlet.end().await;
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::Subscribe { subjects, done } => {
                let tap = self.subscribe(&subjects).await;
                // Dropped with the answer if the feed is gone: the tap leaves by itself.
                drop(done.send(tap));
            }
            Request::Flush(done) => {
                self.drain();
                // The feed may be gone.
                done.send(()).ok();
            }
        }
    }

    async fn subscribe(&mut self, subjects: &[String]) -> Option<Tap> {
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        self.last += 1;
        let number = self.last;
        let tap = Tap {
            number,
            messages,
            distribution: self.distribution.clone(),
        };
        self.taps.insert(number, Vec::new());
        for subject in subjects {
            let Some(subscription) = self.find(subject).await else {
                self.leave(number);
                return None;
            };
            self.taps.entry(number).or_default().push(subscription);
            self.subscriptions
                .get_mut(&subscription)?
                .takers
                .insert(number, sender.clone());
        }
        Some(tap)
    }

    /// The subscription to this subject; made if there is none.
    async fn find(&mut self, subject: &str) -> Option<u64> {
        if let Some(known) = self.by_subject.get(subject) {
            return Some(*known);
        }
        let client = self.link.client();
        let made = tokio::time::timeout(SUBSCRIBE_MAX, inlet::subscribe(&client, subject))
            .await
            .ok()?
            .ok()?;
        self.last += 1;
        self.inlet.add(self.last, made);
        self.by_subject.insert(subject.to_owned(), self.last);
        self.subscriptions.insert(
            self.last,
            Subscription {
                subject: subject.to_owned(),
                takers: IndexMap::new(),
            },
        );
        Some(self.last)
    }

    fn leave(&mut self, tap: u64) {
        for number in self.taps.remove(&tap).into_iter().flatten() {
            let Some(subscription) = self.subscriptions.get_mut(&number) else {
                continue;
            };
            subscription.takers.swap_remove(&tap);
            if subscription.takers.is_empty() {
                self.inlet.remove(number);
                self.by_subject.remove(&subscription.subject);
                self.subscriptions.remove(&number);
            }
        }
    }

    /// Ends every tap: feeds subscribe again.
    fn end_all(&mut self) {
        self.inlet = Inlet::default();
        self.subscriptions.clear();
        self.by_subject.clear();
        self.taps.clear();
    }

    /// Delivers what is there already. All of it where that is not too much: a feed of several subjects sorts what it has
    /// at one moment.
    fn drain(&mut self) {
        let mut deliveries = 0;
        while deliveries < DELIVERIES_MAX {
            let Some((subscription, message)) = self.inlet.ready() else {
                break;
            };
            deliveries += self.deliver(subscription, message);
        }
    }

    /// Delivers one message; to how many feeds.
    fn deliver(&mut self, subscription: u64, message: Message) -> usize {
        self.intake.received(1);
        let Some(subscription) = self.subscriptions.get(&subscription) else {
            return 1;
        };
        let Some(stamp) = RepublishHeaders::of(&message, &self.stream) else {
            // Sent by another publisher.
            self.intake.foreign();
            return 1;
        };
        let RepublishHeaders {
            sequence,
            previous,
            published,
            subject,
        } = stamp;
        let bytes = message.length + size_of::<PositionedMessage>();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        // One message fits always: one that is larger than the bound would never come.
        let is_scarce = before > 0 && before + bytes > WAITING_BYTES_MAX;
        let is_spent = before > 0 && before + bytes > 2 * WAITING_BYTES_MAX;
        let stamped = Arc::new(PositionedMessage {
            subject: subject.into(),
            sequence,
            previous,
            published,
            message,
            received: Instant::now(),
            shown: OnceLock::new(),
            _waiting: Waiting {
                all: Arc::clone(&self.waiting),
                bytes,
            },
        });
        let takers = subscription.takers.len();
        let mut full = Vec::new();
        for (tap, sender) in &subscription.takers {
            let is_idle = sender.capacity() == sender.max_capacity();
            if is_spent || (is_scarce && !is_idle) || sender.try_send(Arc::clone(&stamped)).is_err()
            {
                full.push(*tap);
            }
        }
        if !full.is_empty() {
            self.overflows.inc();
            tracing::warn!(
                stream = self.stream,
                feeds = full.len(),
                "republished messages were dropped because they were not taken in time"
            );
        }
        for tap in full {
            self.leave(tap);
        }
        takers.max(1)
    }
}
