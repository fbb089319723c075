//! Resume: a client gets every event once and in order, from any sidecar, or an exact gap.

mod chromium;
mod cluster;
mod crowds;
mod positions;
mod reader;
mod recreated;
mod rejected;
mod replays;
mod restored;

use async_nats::jetstream::{self, stream};

use reader::{Reader, Via};
use testkit::nats::{Nats, create_stream, store};
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

/// Number of subjects: message `n` has the subject `a.(n % SUBJECTS)`.
const SUBJECTS: u64 = 50;

/// A server with a stream `A`, and a sidecar with a window of twenty events.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
    stream: stream::Stream,
    sidestream: Sidestream,
}

// === impl Fixture ===

impl Fixture {
    /// Starts with `count` messages in the stream, numbered like their sequences.
    async fn with(count: u64) -> Self {
        Self::with_routes(count, "").await
    }

    /// Same as [`Fixture::with`], with further routes.
    async fn with_routes(count: u64, routes: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let stream = create_stream(&jetstream, "A", &["a.>"]).await;
        fill(&nats, &stream, 1, count).await;
        let sidestream = Sidestream::start(configuration(&nats, routes)).await;
        Self {
            nats,
            jetstream,
            stream,
            sidestream,
        }
    }

    /// Waits until the sidecar is ready.
    async fn ready(&self) {
        eventually(RECOVERY, "the sidecar is ready", || async {
            self.sidestream.admin("/health/ready").await.0 == 200
        })
        .await;
    }

    /// Publishes the numbers after the last sequence and waits until all are stored.
    async fn fill(&self, count: u64) {
        fill(&self.nats, &self.stream, self.last().await + 1, count).await;
    }

    /// Publishes a text as the last message.
    async fn publish(&self, subject: &str, text: &str) {
        store(&self.jetstream, subject, text.to_owned()).await;
    }

    async fn last(&self) -> u64 {
        last(&self.stream).await
    }

    /// Position of a new live client.
    async fn position(&self) -> String {
        let mut client = SseClient::get(self.sidestream.url("/all")).connect().await;
        client.positioned().await;
        client.last_event_id().to_owned()
    }

    /// Source tag of the ids of the stream.
    async fn tag(&self) -> String {
        self.position().await.split('-').next().unwrap().to_owned()
    }

    /// Ids of all messages: number `n` has the id at index `n - 1`.
    async fn ids(&self) -> Vec<String> {
        let start = format!("{}-0", self.tag().await);
        let last = self.last().await;
        let mut client = SseClient::get(self.sidestream.url("/all"))
            .last_event_id(&start)
            .connect()
            .await;
        let events = client.until(|event| event.data == last.to_string()).await;
        assert_eq!(
            texts(1, last),
            events
                .iter()
                .map(|event| event.data.clone())
                .collect::<Vec<_>>()
        );
        events.into_iter().map(|event| event.id).collect()
    }

    async fn resume(&self, via: Via, target: &str, id: &str) -> Reader {
        Reader::open(&self.sidestream, via, target, &[("last-event-id", id)]).await
    }

    /// Waits until no replay is running or queued, and none has left a consumer.
    async fn until_no_replay_runs(&self) {
        for metric in ["sidestream_replays_running", "sidestream_replays_queued"] {
            self.sidestream
                .until_metric(metric, &[], |value| value == 0.0)
                .await;
        }
        eventually(RECOVERY, "no replay has left a consumer", || async {
            replaying(&self.stream).await == 0
        })
        .await;
    }
}

/// Routes: everything, everything with each response to an expired position, and one subject.
fn configuration(nats: &Nats, routes: &str) -> String {
    let all = "sources: [{ stream: A, subjects: [\"a.>\"] }], window: { events: 20 }";
    config(
        nats,
        &format!(
            "routes:
  - {{ path: /all, {all} }}
  - {{ path: /status, {all}, expired: status }}
  - {{ path: /gap, {all}, expired: gap }}
  - {{ path: \"/one/{{id}}\", sources: [{{ stream: A, subjects: [\"a.{{id}}\"] }}], window: {{ events: 20 }} }}
{routes}"
        ),
    )
}

async fn fill(nats: &Nats, stream: &stream::Stream, first: u64, count: u64) {
    let client = nats.client().await;
    for number in first..first + count {
        client
            .publish(subject(number), number.to_string().into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    eventually(RECOVERY, "all messages are stored", || async {
        last(stream).await >= first + count - 1
    })
    .await;
}

async fn last(stream: &stream::Stream) -> u64 {
    stream.get_info().await.unwrap().state.last_sequence
}

/// Number of consumers of replays on the stream.
async fn replaying(stream: &stream::Stream) -> usize {
    use futures_util::TryStreamExt as _;
    let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
    names.iter().filter(|name| is_of_replay(name)).count()
}

/// Returns true for `sse-POD-STREAM-BOOT-rNUMBER`.
fn is_of_replay(name: &str) -> bool {
    name.rsplit('-')
        .next()
        .is_some_and(|role| role.starts_with('r'))
}

fn subject(number: u64) -> String {
    format!("a.{}", number % SUBJECTS)
}

/// Payloads from one number to another.
fn texts(first: u64, last: u64) -> Vec<String> {
    (first..=last).map(|number| number.to_string()).collect()
}
