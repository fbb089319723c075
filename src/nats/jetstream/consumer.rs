//! One named ephemeral pull consumer: requests, heartbeats, and every way of noticing that something was lost.

mod notice;

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull};
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::api::{Api, JetStreamError};
use crate::nats::connection::{Ended, Identity, NatsConnection, token};
use crate::nats::decode::decoder::BATCH_MAX;
use crate::nats::decode::message::AckInfo;
use crate::subject::{Filter, FilterSet};
use notice::Notice;

/// What NATS says while it has nothing for us: every 5 s, so that a lost consumer is noticed in ten.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// One heartbeat that did not come, with as much again for the way.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long one pull request stands. The server wants heartbeats at least twice in it.
const EXPIRES: Duration = Duration::from_secs(30);
/// When the server removes a consumer that nobody pulls from.
const INACTIVE: Duration = Duration::from_secs(30);
/// The error code of a stream that admits no such inactivity threshold.
const INACTIVE_THRESHOLD_EXCESS: u64 = 10153;
/// How often a pull request that nobody received is sent again: in a cluster a new consumer is not known everywhere at once.
const RESENDS_MAX: u32 = 5;
const RESEND_AFTER: Duration = Duration::from_millis(100);

/// 64: the most open pull requests where the server or the stream admits only small ones (`max_request_batch`).
/// A request for one message at a time would bring one message a round trip.
const REQUESTS_MAX: usize = 64;

/// So many permanent errors in a row, about 5 s of waiting, are believed: a limit of consumers that other replays have
/// reached for a moment passes sooner.
pub(crate) const REJECTIONS_MAX: u32 = 6;

/// What a consumer delivers.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) stream: String,
    /// A name that was never used before.
    pub(crate) name: String,
    /// No two share a subject.
    pub(crate) filters: Vec<Filter>,
    pub(crate) from: DeliverPolicy,
    /// The most messages of one pull request.
    pub(crate) batch: usize,
    /// The most bytes of one pull request; two stand at a time.
    pub(crate) bytes: usize,
}

/// A consumer at the server and the messages that come from it. Dropping it leaves it to its inactivity threshold.
#[derive(Debug)]
pub(crate) struct Consumer {
    spec: Spec,
    /// The sequence before the first message that it may deliver.
    pub(crate) head: u64,
    /// How many messages waited for it when it was created.
    pub(crate) pending: u64,
    /// The most messages that the server admits in one pull request.
    batch_max: usize,
    link: NatsConnection,
    /// The connection that the messages come on: with another one, the requests are gone.
    generation: u64,
    inbox: String,
    /// Where pull requests go, and where messages come: below the inbox, the number of the request.
    subjects: [String; 2],
    subscriber: Subscriber,
    requests: VecDeque<Request>,
    requests_made: u64,
    /// The delivery that came last.
    delivery: u64,
    silent_since: Instant,
    /// Wakes when silence may have lasted too long.
    silence: Pin<Box<Sleep>>,
    resends: u32,
    /// The next message is larger than one request takes.
    large: bool,
}

#[derive(Debug)]
struct Request {
    number: u64,
    left: usize,
}

/// What came in one go.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) messages: Vec<(AckInfo, Message)>,
    /// The server says that it has nothing for us up to this sequence, behind the messages.
    pub(crate) passed: Option<u64>,
    /// After the messages nothing more comes from this consumer.
    pub(crate) lost: Option<Lost>,
}

/// Why a consumer is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The connection is gone.
    Disconnected,
    /// No heartbeat came.
    Silent,
    /// A delivery is missing.
    Hole,
    /// The server has no such consumer any more.
    Deleted,
    /// This subject is not permitted to us.
    Denied(String),
    /// The server answers a pull request with this status and text.
    Rejected(usize, String),
}

impl Received {
    fn is_empty(&self) -> bool {
        self.lost.is_none() && self.passed.is_none() && self.messages.is_empty()
    }
}

impl Consumer {
    /// Creates it at the server, on the control connection; its messages come on `link`.
    pub(crate) async fn create(
        api: &Api,
        mut link: NatsConnection,
        spec: Spec,
    ) -> Result<Self, JetStreamError> {
        let info = match api.create(&spec.stream, spec.config(INACTIVE)).await {
            // The stream admits only less: without one of ours it gives the longest that it does.
            Err(JetStreamError::Rejected {
                code: INACTIVE_THRESHOLD_EXCESS,
                ..
            }) => {
                api.create(&spec.stream, spec.config(Duration::ZERO))
                    .await?
            }
            created => created?,
        };
        spec.compare(&info.config.filter_subject, &info.config.filter_subjects);
        let generation = link.up().await;
        let client = link.client();
        let inbox = client.new_inbox();
        let inbox_subject = format!("{inbox}.*");
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", spec.stream, spec.name);
        let subscribed = client.subscribe(inbox_subject.clone()).await;
        let subscriber = subscribed.map_err(|error| JetStreamError::Refused(error.to_string()))?;
        let mut consumer = Self {
            head: info.delivered.stream_sequence,
            pending: info.num_pending,
            batch_max: usize::try_from(info.config.max_batch)
                .ok()
                .filter(|most| *most > 0)
                .unwrap_or(usize::MAX),
            spec,
            subjects: [next, inbox_subject],
            link,
            generation,
            inbox,
            subscriber,
            requests: VecDeque::new(),
            requests_made: 0,
            delivery: info.delivered.consumer_sequence,
            silent_since: Instant::now(),
            silence: Box::pin(tokio::time::sleep(SILENCE_MAX)),
            resends: 0,
            large: false,
        };
        consumer.request().await;
        Ok(consumer)
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Waits for something and takes what is there, at most [`BATCH_MAX`] messages.
    pub(crate) async fn receive(&mut self) -> Received {
        let mut received = Received::default();
        while received.is_empty() {
            self.request().await;
            tokio::select! {
                biased; // What has come is taken before the connection's end is noticed.
                message = self.subscriber.next() => self.take(message, &mut received),
                ended = self.link.ended(self.generation, &self.subjects) => received.lost = Some(match ended {
                    Ended::Gone => Lost::Disconnected,
                    Ended::Denied(subject) => Lost::Denied(subject),
                }),
                // Not set anew for each message, only when it comes: then it is seen whether there were any.
                () = &mut self.silence => self.look_at_silence(&mut received),
            }
            while received.lost.is_none() && received.messages.len() < BATCH_MAX {
                match self.subscriber.next().now_or_never() {
                    Some(message) => self.take(message, &mut received),
                    None => break,
                }
            }
        }
        received
    }

    fn look_at_silence(&mut self, received: &mut Received) {
        let until = self.silent_since + SILENCE_MAX;
        if Instant::now() >= until {
            received.lost = Some(Lost::Silent);
        }
        self.silence.as_mut().reset(until);
    }

    fn take(&mut self, message: Option<Message>, received: &mut Received) {
        let Some(message) = message else {
            received.lost = Some(Lost::Disconnected);
            return;
        };
        self.silent_since = Instant::now();
        // A stored message first: a publisher may have put a status into its headers.
        if let Some(place) = message
            .reply
            .as_ref()
            .and_then(|reply| AckInfo::parse(reply))
        {
            if place.delivery != self.delivery + 1 {
                received.lost = Some(Lost::Hole);
                return;
            }
            self.delivery = place.delivery;
            self.resends = 0;
            self.count_delivery();
            received.messages.push((place, message));
            // What the server had passed before stands before this message.
            received.passed = None;
            return;
        }
        match Notice::of(&message) {
            Notice::Heartbeat { delivery, passed } if delivery == self.delivery => {
                self.resends = 0;
                received.passed = Some(passed);
            }
            Notice::Heartbeat { .. } => received.lost = Some(Lost::Hole),
            Notice::RequestOver => self.end_request(&message),
            Notice::TooLarge { unused } => {
                self.large = unused == Some(self.request_size().0.min(self.batch_max));
                self.end_request(&message);
            }
            Notice::NobodyThere if self.resends < RESENDS_MAX => {
                self.resends += 1;
                self.requests.clear();
            }
            Notice::NobodyThere | Notice::Deleted => received.lost = Some(Lost::Deleted),
            Notice::Rejected(status, text) => received.lost = Some(Lost::Rejected(status, text)),
            Notice::Other => {}
        }
    }

    fn count_delivery(&mut self) {
        self.large = false;
        // The server serves the oldest request first.
        if let Some(oldest) = self.requests.front_mut() {
            oldest.left = oldest.left.saturating_sub(1);
            if oldest.left == 0 {
                self.requests.pop_front();
            }
        }
    }

    /// Forgets the request that this message speaks of, and those before it.
    fn end_request(&mut self, message: &Message) {
        let number = message
            .subject
            .rsplit('.')
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        self.requests
            .retain(|request| number.is_some_and(|number| request.number > number));
    }

    /// Messages and bytes of the next request; no limit of bytes for a message that is larger than it.
    fn request_size(&self) -> (usize, usize) {
        if self.large {
            (1, 0)
        } else {
            (self.spec.batch, self.spec.bytes)
        }
    }

    /// Keeps requests open for half a batch at least.
    async fn request(&mut self) {
        let (wanted, bytes) = self.request_size();
        let mut open: usize = self.requests.iter().map(|request| request.left).sum();
        if self.resends > 0 && self.requests.is_empty() {
            tokio::time::sleep(RESEND_AFTER).await;
        }
        // Once, unless the server admits only small requests.
        while open <= wanted / 2 && self.requests.len() < REQUESTS_MAX {
            let batch = wanted.min(self.batch_max);
            self.ask(batch, bytes).await;
            open += batch;
        }
    }

    async fn ask(&mut self, batch: usize, bytes: usize) {
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
        self.requests.push_back(Request {
            number: self.requests_made,
            left: batch,
        });
        if self
            .link
            .client()
            .publish_with_reply(subject, reply, Bytes::from(body))
            .await
            .is_err()
        {
            tracing::debug!(
                consumer = self.spec.name,
                "a closed connection takes no request"
            );
        }
    }
}

/// A name for a consumer that no other ever had. `role` tells those that read the past from those that follow.
pub(crate) fn name(api: &Api, identity: &Identity, stream: &str, role: &str) -> String {
    let Identity { pod, boot } = identity;
    format!(
        "sse-{pod}-{}-{boot}-{role}{}",
        token(stream, 100),
        api.number_consumer()
    )
}

/// The filters that this server can be asked for to get everything that the set selects.
pub(crate) fn filters(api: &Api, wanted: &FilterSet) -> Vec<Filter> {
    let filters = wanted.disjoint();
    if filters.len() == 1 || api.is_server_at_least(2, 10) {
        return filters;
    }
    // NATS 2.9 takes several filters and ignores them.
    filters
        .into_iter()
        .reduce(|one, other| one.widened(&other))
        .into_iter()
        .collect()
}

/// How long to wait before another consumer: 0.1 s, doubled with every attempt up to 5 s, half of it by chance.
pub(crate) fn pause(attempts: u32) -> Duration {
    let longest = Duration::from_millis(100 << attempts.min(6)).min(Duration::from_secs(5));
    longest.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
}

/// From this message on.
pub(crate) fn sequence(first: u64) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence {
        start_sequence: first,
    }
}

impl Spec {
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
            ..pull::Config::default()
        };
        match self.filters.as_slice() {
            [one] => config.filter_subject = one.to_string(),
            several => config.filter_subjects = several.iter().map(Filter::to_string).collect(),
        }
        config
    }

    /// A server that does not know a setting leaves it out without a word (NATS 2.9 and `filter_subjects`).
    fn compare(&self, one: &str, several: &[String]) {
        let mut asked: Vec<&str> = self.filters.iter().map(Filter::as_str).collect();
        let mut given: Vec<&str> = several
            .iter()
            .map(String::as_str)
            .chain((!one.is_empty()).then_some(one))
            .collect();
        asked.sort_unstable();
        given.sort_unstable();
        if asked != given {
            tracing::warn!(
                stream = self.stream,
                ?asked,
                ?given,
                "nats delivers more than was asked for, the rest is dropped here"
            );
        }
    }
}

/// The body of a pull request.
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
