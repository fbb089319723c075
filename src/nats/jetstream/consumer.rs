//! One named ephemeral pull consumer: pull requests, heartbeats and detection of lost messages.
//!
//! [`Consumer::create`] creates it on the control connection and subscribes to an inbox on the
//! delivering connection. [`Consumer::receive`] keeps pull requests open and returns messages in
//! order, without acknowledgements. It detects each way in which messages can get lost and returns
//! [`Lost`]; the caller then creates a new consumer after the last sequence it has.
//!
//! ```text
//! delivery number is not the previous one + 1       -> MissingDelivery
//! heartbeat names a later delivery than received    -> MissingDelivery
//! no message and no heartbeat for 10 s              -> Silent
//! connection lost or re-established                 -> Disconnected
//! permission violation for the consumer's subjects  -> Denied
//! consumer deleted, leader changed, no responders   -> Deleted
//! pull request answered with an error status        -> Rejected
//! ```

mod notice;

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info, ReplayPolicy, pull};
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::api::{Api, JetStreamError};
use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::nats::connection::{ConnectionEnd, Identity, NatsConnection, token};
use crate::nats::decode::decoder::BATCH_MAX;
use crate::nats::decode::message::AckInfo;
use crate::subject::Filter;
use notice::Notice;

/// Interval of idle heartbeats: 5 s, so that a lost consumer is detected within 10 s.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// One missed heartbeat, and as much again for the delivery.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Expiry of a pull request. The server requires at least two heartbeats within it.
const EXPIRES: Duration = Duration::from_secs(30);
/// Time after which the server deletes a consumer that receives no pull requests.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);
/// Error code of a stream that does not allow this inactivity threshold.
const INACTIVE_THRESHOLD_EXCESS: u64 = 10153;
/// Number of times a pull request without a responder is sent again: in a cluster, a new consumer
/// is not known to every server at once.
const RESENDS_MAX: u32 = 5;
const RESEND_AFTER: Duration = Duration::from_millis(100);

/// Delay before the next attempt: 0.1 s, doubled per attempt up to 5 s, half of it random.
const RETRY: Backoff = Backoff::new(
    Duration::from_millis(100),
    Duration::from_secs(5),
    Jitter::Half,
);
/// 64 open pull requests at most, if the server or the stream limits their size
/// (`max_request_batch`). With one request at a time, a limit of one message would cost a round
/// trip per message.
const REQUESTS_MAX: usize = 64;

/// 6 permanent errors in a row, about 5 s with their delays, before clients are rejected. A
/// consumer limit that other replays have reached for a moment passes sooner.
pub(crate) const REJECTIONS_MAX: u32 = 6;

/// Settings of a consumer.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) stream: String,
    /// Consumer name that was never used before.
    pub(crate) name: String,
    /// Filters that do not overlap.
    pub(crate) filters: Vec<Filter>,
    pub(crate) from: DeliverPolicy,
    /// Maximum number of messages of one pull request.
    pub(crate) batch: usize,
    /// Maximum number of bytes of one pull request; two are open at a time.
    pub(crate) bytes: usize,
    /// Delivers the headers of messages without their payloads.
    pub(crate) headers_only: bool,
}

/// A consumer on the server and its messages. If dropped, the server deletes it after its
/// inactivity threshold.
#[derive(Debug)]
pub(crate) struct Consumer {
    spec: Spec,
    /// Sequence before the first message that it can deliver.
    pub(crate) head: u64,
    /// Number of messages that were pending when it was created.
    pub(crate) pending: u64,
    /// Maximum number of messages that the server allows in one pull request.
    batch_max: usize,
    connection: NatsConnection,
    /// Generation of the delivering connection. The pull requests are lost with it.
    generation: u64,
    inbox: String,
    /// Subject of pull requests, and subject of messages: the inbox followed by the request number.
    subjects: [String; 2],
    subscriber: Subscriber,
    requests: VecDeque<Request>,
    requests_made: u64,
    /// Number of the last delivery.
    delivery: u64,
    silent_since: Instant,
    /// Fires when no message may have arrived for too long.
    silence: Pin<Box<Sleep>>,
    resends: u32,
    /// The next message is larger than one request allows.
    is_next_large: bool,
}

#[derive(Debug)]
struct Request {
    number: u64,
    left: usize,
}

/// Batch of messages returned by one call of [`Consumer::receive`].
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) messages: Vec<(AckInfo, Message)>,
    /// Last stream sequence that the consumer has passed after the messages, from a heartbeat.
    pub(crate) passed: Option<u64>,
    /// Reason why this batch is the last.
    pub(crate) lost: Option<Lost>,
}

/// Reason why a consumer can no longer be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The connection is lost.
    Disconnected,
    /// No heartbeat arrived in time.
    Silent,
    /// A delivery number is missing.
    MissingDelivery,
    /// The server has no such consumer.
    Deleted,
    /// The server denies this subject.
    Denied(String),
    /// The server answered a pull request with this status and text.
    Rejected(usize, String),
}

impl Received {
    fn is_empty(&self) -> bool {
        self.lost.is_none() && self.passed.is_none() && self.messages.is_empty()
    }
}

impl Consumer {
    /// Creates the consumer on the control connection. Its messages arrive on `connection`.
    pub(crate) async fn create(
        api: &Api,
        mut connection: NatsConnection,
        spec: Spec,
    ) -> Result<Self, JetStreamError> {
        let info = spec.create(api).await?;
        let generation = connection.wait_up().await;
        let client = connection.client();
        let inbox = client.new_inbox();
        let inbox_subject = format!("{inbox}.*");
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", spec.stream, spec.name);
        let subscribed = client.subscribe(inbox_subject.clone()).await;
        let subscriber = subscribed.map_err(|error| JetStreamError::Failed(error.to_string()))?;
        let mut consumer = Self {
            head: info.delivered.stream_sequence,
            pending: info.num_pending,
            batch_max: usize::try_from(info.config.max_batch)
                .ok()
                .filter(|most| *most > 0)
                .unwrap_or(usize::MAX),
            spec,
            subjects: [next, inbox_subject],
            connection,
            generation,
            inbox,
            subscriber,
            requests: VecDeque::new(),
            requests_made: 0,
            delivery: info.delivered.consumer_sequence,
            silent_since: Instant::now(),
            silence: Box::pin(tokio::time::sleep(SILENCE_TIMEOUT)),
            resends: 0,
            is_next_large: false,
        };
        consumer.request().await;
        Ok(consumer)
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Waits for a message or a status, then takes what has arrived, at most [`BATCH_MAX`]
    /// messages.
    pub(crate) async fn receive(&mut self) -> Received {
        let mut received = Received::default();
        while received.is_empty() {
            self.request().await;
            tokio::select! {
                biased; // Read received messages before the end of the connection is detected.
                message = self.subscriber.next() => self.process(message, &mut received),
                ended = self.connection.wait_ended(self.generation, &self.subjects) => received.lost = Some(match ended {
                    ConnectionEnd::Gone => Lost::Disconnected,
                    ConnectionEnd::Denied(subject) => Lost::Denied(subject),
                }),
                // The timer is not reset for each message: when it fires, the time of the last
                // message is checked.
                () = &mut self.silence => self.check_silence(&mut received),
            }
            while received.lost.is_none() && received.messages.len() < BATCH_MAX {
                match self.subscriber.next().now_or_never() {
                    Some(message) => self.process(message, &mut received),
                    None => break,
                }
            }
        }
        received
    }

    fn check_silence(&mut self, received: &mut Received) {
        let until = self.silent_since + SILENCE_TIMEOUT;
        if Instant::now() >= until {
            received.lost = Some(Lost::Silent);
        }
        self.silence.as_mut().reset(until);
    }

    fn process(&mut self, message: Option<Message>, received: &mut Received) {
        let Some(message) = message else {
            received.lost = Some(Lost::Disconnected);
            return;
        };
        self.silent_since = Instant::now();
        // Checked before the status: a publisher may have put a status into the headers of a
        // message.
        if let Some(info) = message
            .reply
            .as_ref()
            .and_then(|reply| AckInfo::parse(reply))
        {
            if info.delivery != self.delivery + 1 {
                received.lost = Some(Lost::MissingDelivery);
                return;
            }
            self.delivery = info.delivery;
            self.resends = 0;
            self.count_delivery();
            received.messages.push((info, message));
            // Sequences passed before this message are covered by it.
            received.passed = None;
            return;
        }
        match Notice::of(&message) {
            Notice::Heartbeat { delivery, passed } if delivery == self.delivery => {
                self.resends = 0;
                received.passed = Some(passed);
            }
            Notice::Heartbeat { .. } => received.lost = Some(Lost::MissingDelivery),
            Notice::RequestEnded => self.end_request(&message),
            Notice::TooLarge { unused } => {
                self.is_next_large = unused == Some(self.request_size().0.min(self.batch_max));
                self.end_request(&message);
            }
            Notice::NoResponders if self.resends < RESENDS_MAX => {
                self.resends += 1;
                self.requests.clear();
            }
            Notice::NoResponders | Notice::Deleted => received.lost = Some(Lost::Deleted),
            Notice::Rejected(status, text) => received.lost = Some(Lost::Rejected(status, text)),
            Notice::Other => {}
        }
    }

    fn count_delivery(&mut self) {
        self.is_next_large = false;
        // The server serves the oldest request first.
        if let Some(oldest) = self.requests.front_mut() {
            oldest.left = oldest.left.saturating_sub(1);
            if oldest.left == 0 {
                self.requests.pop_front();
            }
        }
    }

    /// Removes the request that this status message belongs to, and all earlier ones.
    fn end_request(&mut self, message: &Message) {
        let number = message
            .subject
            .rsplit('.')
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        self.requests
            .retain(|request| number.is_some_and(|number| request.number > number));
    }

    /// Messages and bytes of the next request. Without a byte limit for a message that exceeds it.
    fn request_size(&self) -> (usize, usize) {
        if self.is_next_large {
            (1, 0)
        } else {
            (self.spec.batch, self.spec.bytes)
        }
    }

    /// Keeps at least half a batch requested.
    async fn request(&mut self) {
        let (wanted, bytes) = self.request_size();
        let mut open: usize = self.requests.iter().map(|request| request.left).sum();
        if self.resends > 0 && self.requests.is_empty() {
            tokio::time::sleep(RESEND_AFTER).await;
        }
        // One iteration, unless the server allows only small requests.
        while open <= wanted / 2 && self.requests.len() < REQUESTS_MAX {
            let batch = wanted.min(self.batch_max);
            self.send_pull(batch, bytes).await;
            open += batch;
        }
    }

    async fn send_pull(&mut self, batch: usize, bytes: usize) {
        let pull = Pull {
            batch,
            max_bytes: bytes,
            expires: nanos(EXPIRES),
            idle_heartbeat: nanos(HEARTBEAT),
        };
        let Ok(body) = serde_json::to_vec(&pull) else {
            return;
        };
        self.requests_made += 1;
        let reply = format!("{}.{}", self.inbox, self.requests_made);
        let subject = self.subjects[0].clone();
        let sent = self
            .connection
            .client()
            .publish_with_reply(subject, reply, Bytes::from(body))
            .await;
        // Counted only now: a caller that drops this future before has sent nothing, and would wait
        // for an answer until the consumer counts as silent.
        self.requests.push_back(Request {
            number: self.requests_made,
            left: batch,
        });
        if sent.is_err() {
            tracing::debug!(
                consumer = self.spec.name,
                "pull request not sent: connection closed"
            );
        }
    }
}

/// Returns a new consumer name. `role` is part of it: tailers, readers and probes differ.
pub(crate) fn name(api: &Api, identity: &Identity, stream: &str, role: &str) -> String {
    let Identity { pod, boot } = identity;
    format!(
        "sse-{pod}-{}-{boot}-{role}{}",
        token(stream, 100),
        api.next_consumer_number()
    )
}

/// Delay before the next attempt to use the stream.
pub(crate) fn retry_delay(attempts: u32) -> Duration {
    RETRY.delay(attempts, fastrand::f64())
}

/// Delivers from this sequence on.
pub(crate) fn sequence(first: u64) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence {
        start_sequence: first,
    }
}

impl Spec {
    /// Creates the consumer on the server, without reading from it.
    pub(crate) async fn create(&self, api: &Api) -> Result<Info, JetStreamError> {
        let config = self.config(INACTIVE_THRESHOLD);
        let info = match api.create(&self.stream, config).await {
            // The stream allows only a shorter threshold: without one in the request it sets its
            // maximum.
            Err(JetStreamError::Rejected {
                code: INACTIVE_THRESHOLD_EXCESS,
                ..
            }) => {
                let config = self.config(Duration::ZERO);
                api.create(&self.stream, config).await?
            }
            created => created?,
        };
        self.check_filters(&info.config.filter_subject, &info.config.filter_subjects);
        Ok(info)
    }

    fn config(&self, inactive_threshold: Duration) -> pull::Config {
        let mut config = pull::Config {
            name: Some(self.name.clone()),
            description: Some("sidestream".to_owned()),
            deliver_policy: self.from,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold,
            num_replicas: 1,
            memory_storage: true,
            headers_only: self.headers_only,
            ..pull::Config::default()
        };
        match self.filters.as_slice() {
            [one] => config.filter_subject = one.to_string(),
            several => config.filter_subjects = several.iter().map(Filter::to_string).collect(),
        }
        config
    }

    /// Compares the filters of the created consumer with the requested ones. A server ignores a
    /// setting it does not know without an error (NATS 2.9 and `filter_subjects`).
    fn check_filters(&self, one: &str, several: &[String]) {
        let mut requested: Vec<&str> = self.filters.iter().map(Filter::as_str).collect();
        let mut delivered: Vec<&str> = several
            .iter()
            .map(String::as_str)
            .chain((!one.is_empty()).then_some(one))
            .collect();
        requested.sort_unstable();
        delivered.sort_unstable();
        if requested != delivered {
            tracing::warn!(
                stream = self.stream,
                ?requested,
                ?delivered,
                "NATS server ignored the consumer's filters; unwanted messages are dropped here"
            );
        }
    }
}

/// Body of a pull request.
#[derive(Serialize)]
struct Pull {
    batch: usize,
    #[serde(skip_serializing_if = "is_zero")]
    max_bytes: usize,
    expires: u64,
    idle_heartbeat: u64,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
