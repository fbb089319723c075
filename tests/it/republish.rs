//! JetStream streams with republish, read by core subscriptions: the same events and ids, without a
//! consumer.

mod fitness;
mod losses;

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures_util::TryStreamExt as _;

use testkit::nats::{Nats, store};
use testkit::sidestream::{Sidestream, config, config_for};
use testkit::sse::SseClient;
use testkit::sse_parser::Event;
use testkit::wait::{RECOVERY, eventually};

/// A server with a stream `A` that republishes `a.>` to `live.>`.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
}

// === impl Fixture ===

impl Fixture {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        jetstream
            .create_stream(republishing(Some(("a.>", "live.>"))))
            .await
            .unwrap();
        Self { nats, jetstream }
    }

    /// Sidecar with this delivery and three routes: everything, one subject, and subjects from the
    /// client.
    async fn pod(&self, delivery: &str) -> Sidestream {
        Sidestream::start(config(&self.nats, &routes(delivery))).await
    }

    /// Same as [`Fixture::pod`], with republish delivery and behind a proxy.
    async fn pod_through(&self, address: std::net::SocketAddr) -> Sidestream {
        Sidestream::start(config_for(
            &[format!("nats://{address}")],
            &routes("republish"),
        ))
        .await
    }

    async fn publish(&self, subject: &str, text: impl ToString) {
        store(&self.jetstream, subject, text.to_string()).await;
    }

    /// Changes the republish setting of the stream.
    async fn republish(&self, republish: Option<(&str, &str)>) {
        self.jetstream
            .update_stream(republishing(republish))
            .await
            .unwrap();
    }

    async fn consumers(&self) -> Vec<String> {
        let stream = self.jetstream.get_stream("A").await.unwrap();
        stream.consumer_names().try_collect().await.unwrap()
    }
}

fn republishing(republish: Option<(&str, &str)>) -> stream::Config {
    stream::Config {
        name: "A".to_owned(),
        subjects: vec!["a.>".to_owned()],
        allow_direct: true,
        republish: republish.map(|(source, destination)| stream::Republish {
            source: source.to_owned(),
            destination: destination.to_owned(),
            headers_only: false,
        }),
        ..stream::Config::default()
    }
}

fn routes(delivery: &str) -> String {
    format!(
        "routes:
  - {{ path: /all, sources: [{{ stream: A, subjects: [\"a.>\"], delivery: {delivery} }}] }}
  - {{ path: \"/one/{{id}}\", sources: [{{ stream: A, subjects: [\"a.{{id}}\"], delivery: {delivery} }}] }}
  - {{ path: /named, sources: [{{ stream: A, subjects: [\"{{query.subject}}\"], allow: [\"a.>\"], delivery: {delivery} }}] }}"
    )
}

/// Connects a live client; returns when it has its position.
async fn live(pod: &Sidestream, target: &str) -> SseClient {
    let mut client = SseClient::get(pod.url(target)).connect().await;
    assert_eq!(client.status(), 200);
    client.positioned().await;
    client
}

async fn resume(pod: &Sidestream, target: &str, id: &str) -> SseClient {
    SseClient::get(pod.url(target))
        .last_event_id(id)
        .connect()
        .await
}

/// Data of events, and reasons of gaps.
fn summaries(events: &[Event]) -> Vec<String> {
    let text = |event: &Event| {
        if event.name == "message" {
            return event.data.clone();
        }
        let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        format!("{}:{}", event.name, gap["reason"].as_str().unwrap())
    };
    events.iter().map(text).collect()
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_live_client_gets_the_same_events_and_ids_as_on_a_shared_pod_without_a_consumer() {
    let fixture = Fixture::start().await;
    fixture.publish("a.0", "before").await;
    let pod = fixture.pod("republish").await;
    let mut all = live(&pod, "/all").await;
    let mut one = live(&pod, "/one/1").await;
    for number in 1..=20 {
        fixture.publish(&format!("a.{}", number % 2), number).await;
    }
    let events = all.take(20).await;
    assert_eq!(summaries(&events), numbers(1..=20));
    let odd = one.take(10).await;
    assert_eq!(
        summaries(&odd),
        (1..=20)
            .step_by(2)
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
    );
    assert_eq!(fixture.consumers().await, [""; 0]);
    let shared = fixture.pod("shared").await;
    let mut same = resume(
        &shared,
        "/all",
        &format!("{}-0", events[0].id.split('-').next().unwrap()),
    )
    .await;
    let there = same.take(21).await;
    assert_eq!(there[1..], events[..], "the same events under the same ids");
}

#[tokio::test]
async fn a_client_moves_between_pods_with_shared_and_republish_delivery() {
    let fixture = Fixture::start().await;
    let (shared, on_demand) = (fixture.pod("shared").await, fixture.pod("republish").await);
    for number in 1..=10 {
        fixture.publish("a.1", number).await;
    }
    let mut client = live(&shared, "/one/1").await;
    let mut id = String::new();
    for (turn, pod) in [&on_demand, &shared, &on_demand].into_iter().enumerate() {
        for number in 0..10 {
            fixture.publish("a.1", (turn + 1) * 100 + number).await;
        }
        if id.is_empty() {
            // The shared pod may lag a few messages when a client connects.
            id = client
                .until(|event| event.data == "104")
                .await
                .pop()
                .unwrap()
                .id;
            assert!(id.matches('-').count() == 2, "{id} has a check");
        }
        client = resume(pod, "/one/1", &id).await;
        let mut expected = numbers(((turn as u64 + 1) * 100)..=((turn as u64 + 1) * 100 + 9));
        if turn == 0 {
            expected.drain(..5);
        }
        let events = client.take(expected.len()).await;
        assert_eq!(summaries(&events), expected);
        id = events.last().unwrap().id.clone();
    }
    // An old position: replayed from JetStream, then live; the consumer of the replay is deleted.
    let mut back = resume(
        &on_demand,
        "/one/1",
        &format!("{}-5", id.split('-').next().unwrap()),
    )
    .await;
    assert_eq!(summaries(&back.take(5).await), numbers(6..=10));
    back.take(30).await;
    fixture.publish("a.1", "live").await;
    assert_eq!(back.next().await.data, "live");
    drop(shared);
    eventually(
        RECOVERY,
        "only the shared pod's consumer is left",
        || async { fixture.consumers().await.len() <= 1 },
    )
    .await;
    let refused = resume(
        &on_demand,
        "/one/1",
        &format!("{}-999", id.split('-').next().unwrap()),
    )
    .await
    .next()
    .await;
    assert_eq!(summaries(&[refused]), ["sidestream.gap:ahead"]);
}

#[tokio::test]
async fn a_client_of_several_subjects_gets_them_in_stream_order() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut client = live(
        &pod,
        "/named?subject=a.1&subject=a.2&subject=a.3.*&subject=a.3.x",
    )
    .await;
    let publisher = fixture.nats.client().await;
    for number in 1..=3000 {
        let subject = match number % 4 {
            0 => "a.3.x".to_owned(),
            rest => format!("a.{rest}{}", if rest == 3 { ".y" } else { "" }),
        };
        publisher
            .publish(subject, number.to_string().into())
            .await
            .unwrap();
    }
    publisher.flush().await.unwrap();
    assert_eq!(summaries(&client.take(3000).await), numbers(1..=3000));
    assert_eq!(
        pod.metric("sidestream_republish_losses_total", &[("source", "A")])
            .await,
        0.0
    );
}

#[tokio::test]
async fn an_idle_client_gets_positions_that_stay_within_retention() {
    let fixture = Fixture::start().await;
    let routes = routes("republish")
        .replace("path: /all,", "path: /all, checkpoint: 1s,")
        .replace("\"/one/{id}\",", "\"/one/{id}\", checkpoint: 1s,");
    let pod = Sidestream::start(config(&fixture.nats, &routes)).await;
    let mut quiet = live(&pod, "/one/quiet").await;
    for number in 1..=5 {
        fixture.publish("a.1", number).await;
    }
    quiet
        .until_seen("a checkpoint after the messages of the others", |parser| {
            parser.last_event_id().ends_with("-5")
        })
        .await;
    fixture.publish("a.quiet", "6").await;
    assert_eq!(quiet.next().await.data, "6");
}

#[tokio::test]
async fn a_recreated_stream_is_a_gap_and_read_from_its_beginning() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut client = live(&pod, "/all").await;
    for number in 1..=5 {
        fixture.publish("a.1", number).await;
    }
    let before = client.take(5).await;
    fixture.jetstream.delete_stream("A").await.unwrap();
    fixture
        .jetstream
        .create_stream(republishing(Some(("a.>", "live.>"))))
        .await
        .unwrap();
    for number in 101..=103 {
        fixture.publish("a.1", number).await;
    }
    let after = client.take(4).await;
    assert_eq!(
        summaries(&after),
        ["sidestream.gap:recreated", "101", "102", "103"]
    );
    let tag = |event: &Event| event.id.split('-').next().unwrap().to_owned();
    assert_ne!(tag(&after[3]), tag(&before[4]));
    fixture.publish("a.1", 104).await;
    assert_eq!(client.next().await.data, "104");
    let mut late = resume(&pod, "/all", &before[4].id).await;
    assert_eq!(
        summaries(&[late.next().await]),
        ["sidestream.gap:recreated"]
    );
    let mut fresh = resume(&pod, "/all", &after[1].id).await;
    assert_eq!(summaries(&fresh.take(3).await), numbers(102..=104));
}

#[tokio::test]
async fn messages_deleted_from_the_stream_are_no_gap() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut client = live(&pod, "/all").await;
    let stream = fixture.jetstream.get_stream("A").await.unwrap();
    for number in 1..=4 {
        fixture.publish("a.1", number).await;
    }
    stream.delete_message(4).await.unwrap();
    fixture.publish("a.1", 5).await;
    stream.purge().await.unwrap();
    fixture.publish("a.1", 6).await;
    assert_eq!(summaries(&client.take(6).await), numbers(1..=6));
}

#[tokio::test]
async fn a_reload_adds_a_republish_source_and_changes_the_delivery_of_another() {
    let fixture = Fixture::start().await;
    let first = config(
        &fixture.nats,
        "routes: [{ path: /core, sources: [{ subjects: [\"x\"] }] }]",
    );
    let mut pod = Sidestream::start(first.clone()).await;
    let added = first
        .replace("routes: [", &format!("{}\n  - ", routes("republish")))
        .replace("] }] }]", "] }] }");
    pod.rewrite_config(&added);
    pod.signal(rustix::process::Signal::HUP);
    pod.until_message("configuration applied").await;
    let mut client = live(&pod, "/all").await;
    fixture.publish("a.1", 1).await;
    let event = client.next().await;
    assert_eq!(fixture.consumers().await, [""; 0]);
    let shown = pod.admin_json("/config").await;
    assert_eq!(
        shown["effective"]["routes"][0]["sources"][0]["delivery"], "republish",
        "{shown}"
    );
    pod.rewrite_config(&added.replace("delivery: republish", "delivery: shared"));
    pod.signal(rustix::process::Signal::HUP);
    pod.until_log("the second reload", |line| {
        line["message"] == "configuration applied" && line["hash"] != shown["hash"]
    })
    .await;
    let mut moved = resume(&pod, "/all", &event.id).await;
    fixture.publish("a.1", 2).await;
    assert_eq!(
        (moved.next().await.data, client.next().await.data),
        ("2".to_owned(), "2".to_owned())
    );
}

#[tokio::test]
async fn clients_that_share_a_subject_receive_one_copy_of_each_message_from_nats() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut clients = Vec::new();
    for number in 0..30 {
        clients.push(
            live(
                &pod,
                &format!("/named?subject=a.busy&subject=a.own.{number}"),
            )
            .await,
        );
    }
    // A second subscription that matches as well: a second copy of each message.
    clients.push(live(&pod, "/named?subject=a.*&subject=a.busy.%3E").await);
    for number in 0..20 {
        fixture.publish("a.busy", number).await;
    }
    fixture.publish("a.own.7", "of one client").await;
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let mut ids = std::collections::HashSet::new();
    for client in &mut clients {
        let events = client.take(20).await;
        assert_eq!(summaries(&events), expected, "each message once, in order");
        ids.insert(events[19].id.clone());
    }
    assert_eq!(clients[7].next().await.data, "of one client");
    assert_eq!(
        ids.len(),
        1,
        "every client has the position of the stream: {ids:?}"
    );
    let received = pod
        .metric("sidestream_events_received_total", &[("source", "A")])
        .await;
    assert!(
        received <= 2.0 * 20.0 + 2.0,
        "a copy for each subject that matches, not for each client: {received}"
    );
    for outcome in ["repaired", "reported"] {
        assert_eq!(
            pod.metric(
                "sidestream_republish_losses_total",
                &[("source", "A"), ("outcome", outcome)]
            )
            .await,
            0.0
        );
    }
}
