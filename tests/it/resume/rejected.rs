//! Permanent errors of NATS when a stream is read: clients are closed with their positions and
//! resume later without loss.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream;

use super::{Fixture, configuration, fill, texts};
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

/// Fixture with a stream that allows two consumers: one for the tailer and one more.
async fn fixture() -> Fixture {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let config = stream::Config {
        name: "A".to_owned(),
        subjects: vec!["a.>".to_owned()],
        max_consumers: 2,
        ..stream::Config::default()
    };
    let stream = jetstream.create_stream(config).await.unwrap();
    fill(&nats, &stream, 1, 60).await;
    let sidestream = Sidestream::start(configuration(&nats, "")).await;
    Fixture {
        nats,
        jetstream,
        stream,
        sidestream,
    }
}

impl Fixture {
    /// Creates a consumer. Returns false at the limit of the stream.
    async fn create_consumer(&self, name: &str) -> bool {
        let inactive_threshold = Duration::from_secs(600);
        let config = pull::Config {
            name: Some(name.to_owned()),
            inactive_threshold,
            ..pull::Config::default()
        };
        self.stream.create_consumer(config).await.is_ok()
    }

    /// Deletes the consumer of the tailer and creates another before the tailer recreates its own.
    async fn replace_consumer_of_tailer(&self) {
        use futures_util::TryStreamExt as _;
        let client = self.nats.client().await;
        eventually(
            RECOVERY,
            "another consumer has replaced that of the tailer",
            || async {
                let names = || async {
                    let names: Vec<String> =
                        self.stream.consumer_names().try_collect().await.unwrap();
                    names
                        .into_iter()
                        .filter(|name| name.starts_with("sse-"))
                        .collect::<Vec<_>>()
                };
                for name in names().await {
                    client
                        .publish(format!("$JS.API.CONSUMER.DELETE.A.{name}"), "".into())
                        .await
                        .unwrap();
                }
                client.flush().await.unwrap();
                self.create_consumer("second").await && names().await.is_empty()
            },
        )
        .await;
    }

    async fn check(&self, name: &str) -> Option<String> {
        let health = self.sidestream.admin_json("/health").await;
        health["checks"][name]["message"]
            .as_str()
            .map(str::to_owned)
    }
}

#[tokio::test]
async fn a_rejected_replay_closes_the_event_stream_and_a_later_one_delivers_everything() {
    let fixture = fixture().await;
    let start = format!("{}-0", fixture.tag().await);
    assert!(fixture.create_consumer("other").await);

    // The first client waits for some attempts; then its event stream is closed with its position.
    let mut first = SseClient::get(fixture.sidestream.url("/all"))
        .last_event_id(&start)
        .connect()
        .await;
    assert_eq!(first.status(), 200);
    let end = first.next().await;
    assert_eq!(
        (end.name.as_str(), end.id.as_str()),
        ("sidestream.close", start.as_str())
    );
    assert!(end.data.contains(r#""reason":"upstream""#), "{}", end.data);
    let check = fixture.check("replays:A").await.unwrap();
    assert!(
        check.contains("error code 10026") && check.contains("raise `max_consumers`"),
        "{check}"
    );
    assert_eq!(
        fixture.sidestream.admin_json("/health").await["status"],
        "degraded"
    );
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);

    // After that, a program is rejected at once, and a browser continues live after a gap with the
    // reason.
    let mut program = SseClient::get(fixture.sidestream.url("/status"))
        .last_event_id(&start)
        .connect()
        .await;
    assert_eq!(program.status(), 503);
    assert!(program.body().await.contains("nats_rejected"));
    let mut browser = SseClient::get(fixture.sidestream.url("/gap"))
        .last_event_id(&start)
        .browser()
        .connect()
        .await;
    let gap = browser.next().await;
    assert_eq!(gap.name, "sidestream.gap");
    assert_eq!(
        gap.data,
        r#"{"reason":"rejected","missed":null,"resume":"live"}"#
    );
    fixture.publish("a.1", "61").await;
    assert_eq!(browser.next().await.data, "61");
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[("reason", "rejected")])
            .await,
        1.0
    );

    fixture.stream.delete_consumer("other").await.unwrap();
    eventually(RECOVERY, "the check is gone", || async {
        fixture.check("replays:A").await.is_none()
    })
    .await;
    let mut resumed = SseClient::get(fixture.sidestream.url("/status"))
        .last_event_id(&start)
        .connect()
        .await;
    let events = resumed.until(|event| event.data == "61").await;
    assert_eq!(
        events
            .into_iter()
            .map(|event| event.data)
            .collect::<Vec<_>>(),
        texts(1, 61)
    );
}

#[tokio::test]
async fn a_rejected_tailer_closes_its_event_streams_and_accepts_none_until_it_recovers() {
    let fixture = fixture().await;
    let mut live = SseClient::get(fixture.sidestream.url("/all"))
        .connect()
        .await;
    fixture.publish("a.1", "61").await;
    assert_eq!(live.next().await.data, "61");
    assert!(fixture.create_consumer("first").await);
    fixture.replace_consumer_of_tailer().await;
    fixture.publish("a.1", "62").await;

    let end = live.next().await;
    assert_eq!(end.name, "sidestream.close");
    assert!(end.data.contains(r#""reason":"upstream""#), "{}", end.data);
    let position = live.last_event_id().to_owned();
    let mut program = SseClient::get(fixture.sidestream.url("/all"))
        .last_event_id(&position)
        .connect()
        .await;
    assert_eq!(program.status(), 503);
    assert!(program.body().await.contains("nats_rejected"));
    let mut browser = SseClient::get(fixture.sidestream.url("/all"))
        .browser()
        .connect()
        .await;
    assert_eq!(
        (browser.status(), browser.next().await.name.as_str()),
        (200, "sidestream.close")
    );
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 503);

    fixture.stream.delete_consumer("second").await.unwrap();
    fixture.ready().await;
    fixture.publish("a.1", "63").await;
    let mut resumed = SseClient::get(fixture.sidestream.url("/all"))
        .last_event_id(&position)
        .connect()
        .await;
    assert_eq!(resumed.next().await.data, "62");
    assert_eq!(resumed.next().await.data, "63");
}
