//! Clients that change their subjects while the event stream is open.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::{Value, json};

use testkit::certs::Authority;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, metric};
use testkit::wait::within;
use testkit::websocket::WebSocket;

use super::{Fixture, Via};

const ROUTES: &str = r#"
routes:
  - path: /events
    framings: [websocket, ndjson]
    sources: [{ stream: ORDERS, subjects: ["{query.subject}"], allow: ["orders.>"] }]
    window: { events: 300 }
  - path: /two
    framings: [websocket]
    sources:
      - { stream: ORDERS, subjects: ["{query.subject}", "orders.all"], allow: ["orders.*.x", "orders.all"] }
      - { subjects: ["news.>"] }
  - path: /fixed
    framings: [websocket]
    sources: [{ stream: ORDERS, subjects: ["orders.1.>"], allow: ["orders.>"] }]
  - path: /finite
    framings: [websocket]
    finite: true
    sources: [{ stream: ORDERS, subjects: ["{query.subject}"], allow: ["orders.>"] }]
  - path: /state
    framings: [websocket]
    begin: latest
    sources: [{ stream: STATE, subjects: ["{query.subject}"], allow: ["s.>"] }]
limits: { per_client: { filter_sets: 2 }, subjects_per_request: 8 }
drain: { accept_for: 100ms, spread: 100ms, timeout: 5s, retry: { min: 600ms, max: 900ms } }
"#;

async fn pod(nats: &Nats, authority: &Authority) -> Sidestream {
    let identity = authority.server("server");
    let (url, certificate, key) = (
        nats.url(),
        identity.certificate.display(),
        identity.key.display(),
    );
    Sidestream::start(format!(
        r#"
listen:
  - address: 127.0.0.1:0
  - address: 127.0.0.1:0
    tls: {{ certificate: "{certificate}", key: "{key}" }}
admin: {{ address: 127.0.0.1:0, control: control.sock }}
nats: {{ servers: ["{url}"] }}
{ROUTES}"#
    ))
    .await
}

/// The fixture of the other tests, with the routes of this file.
async fn fixture() -> Fixture {
    let mut fixture = Fixture::start().await;
    let state = stream::Config {
        name: "STATE".into(),
        subjects: vec!["s.>".into()],
        max_messages_per_subject: 1,
        ..stream::Config::default()
    };
    fixture.jetstream.create_stream(state).await.unwrap();
    fixture.sidestream = pod(&fixture.nats, &fixture.authority).await;
    fixture
}

async fn send(socket: &mut WebSocket, message: &Value) {
    socket.send(0x81, message.to_string().as_bytes()).await;
}

/// Sends a message. Returns the objects before its answer, and the answer.
async fn ask(socket: &mut WebSocket, message: Value) -> (Vec<Value>, Value) {
    send(socket, &message).await;
    let mut before = Vec::new();
    loop {
        let object = socket.object().await;
        match object["control"].as_str() {
            Some("subscribed" | "unsubscribed" | "error") => return (before, object),
            _ => before.push(object),
        }
    }
}

async fn answer(socket: &mut WebSocket, message: Value) -> Value {
    ask(socket, message).await.1
}

async fn reason(socket: &mut WebSocket, message: Value) -> String {
    let answer = answer(socket, message).await;
    assert_eq!(answer["control"], "error", "{answer}");
    assert!(answer["message"].is_string());
    answer["reason"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn added_subjects_begin_at_the_position_of_the_answer_on_every_transport() {
    let fixture = fixture().await;
    for via in Via::ALL {
        let mut socket = fixture.open(via, "/events?subject=orders.1").await;
        fixture.publish("orders.2", "1").await;
        fixture.publish("orders.1", "2").await;
        assert_eq!(socket.events(1).await[0]["data"], 2);
        let subscribed = answer(
            &mut socket,
            json!({ "subscribe": ["orders.2", "orders.3.>"] }),
        )
        .await;
        assert_eq!(subscribed["control"], "subscribed");
        assert_eq!(
            subscribed["subjects"],
            json!(["orders.1", "orders.2", "orders.3.>"])
        );
        // Some of these are written by the dispatcher, without the task of the client.
        for (number, subject) in ["orders.2", "orders.1", "orders.4", "orders.3.x"]
            .iter()
            .enumerate()
        {
            fixture.publish(subject, number.to_string()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let events = socket.events(3).await;
        let seen: Vec<_> = events
            .iter()
            .map(|event| event["data"].as_u64().unwrap())
            .collect();
        assert_eq!(seen, [0, 1, 3], "{via:?}");
        let unsubscribed = answer(&mut socket, json!({ "unsubscribe": ["orders.1"] })).await;
        assert_eq!(unsubscribed["control"], "unsubscribed");
        assert_eq!(unsubscribed["subjects"], json!(["orders.2", "orders.3.>"]));
        fixture.publish("orders.1", "5").await;
        fixture.publish("orders.2", "6").await;
        assert_eq!(socket.events(1).await[0]["data"], 6);

        let connections = fixture.sidestream.admin_json("/connections").await;
        let open = &connections["connections"][0];
        assert_eq!(open["subjects"], json!(["orders.2", "orders.3.>"]));
        // On a reconnect the client names its whole set in the URL.
        let id = subscribed["id"].as_str().unwrap();
        drop(socket);
        let url = format!(
            "/events?subject=orders.1&subject=orders.2&subject=orders.3.%3E&last_event_id={id}"
        );
        let events = fixture.request(via, &url).open().await.events(5).await;
        let seen: Vec<_> = events
            .iter()
            .map(|event| event["data"].as_u64().unwrap())
            .collect();
        assert_eq!(seen, [0, 1, 3, 5, 6], "{via:?}");
    }
    let metrics = fixture.sidestream.admin("/metrics").await.1;
    let changes = |outcome| {
        metric(
            &metrics,
            "sidestream_subject_changes_total",
            &[("outcome", outcome)],
        )
    };
    assert_eq!((changes("subscribed"), changes("unsubscribed")), (4.0, 4.0));
}

#[tokio::test]
async fn message_that_is_not_applied_is_answered_and_changes_nothing() {
    let fixture = fixture().await;
    let mut socket = fixture.open(Via::Http11, "/events?subject=orders.1").await;
    for (message, expected) in [
        (json!({ "subscribe": ["news.1"] }), "subject_not_allowed"),
        (
            json!({ "subscribe": ["orders.2", ">"] }),
            "subject_not_allowed",
        ),
        (json!({ "subscribe": ["orders..2"] }), "bad_subject"),
        (json!({ "subscribe": ["$KV.x"] }), "bad_subject"),
        (json!({ "subscribe": [] }), "bad_message"),
        (json!({ "subscribe": "orders.2" }), "bad_message"),
        (json!({ "publish": ["orders.2"] }), "bad_message"),
        (json!(["orders.2"]), "bad_message"),
        (json!({ "unsubscribe": ["orders.2"] }), "not_subscribed"),
        (json!({ "unsubscribe": ["orders.1"] }), "last_subject"),
        (
            json!({ "subscribe": (2..10).map(|number| format!("orders.{number}")).collect::<Vec<_>>() }),
            "too_many_subjects",
        ),
    ] {
        assert_eq!(
            reason(&mut socket, message.clone()).await,
            expected,
            "{message}"
        );
    }
    socket.send(0x82, b"\x00").await;
    assert_eq!(
        socket.until_control("error").await.1["reason"],
        "bad_message"
    );
    fixture.publish("orders.2", "1").await;
    fixture.publish("orders.1", "2").await;
    assert_eq!(socket.events(1).await[0]["data"], 2);
    for path in ["/fixed", "/finite?subject=orders.1"] {
        let mut socket = fixture.open(Via::H2, path).await;
        let message = json!({ "subscribe": ["orders.2"] });
        assert_eq!(
            reason(&mut socket, message).await,
            "not_supported",
            "{path}"
        );
    }
    // A subject that another one covers, and one that is there already.
    let subscribed = answer(
        &mut socket,
        json!({ "subscribe": ["orders.*", "orders.1"] }),
    )
    .await;
    assert_eq!(subscribed["subjects"], json!(["orders.1", "orders.*"]));
    let unsubscribed = answer(&mut socket, json!({ "unsubscribe": ["orders.*"] })).await;
    assert_eq!(unsubscribed["subjects"], json!(["orders.1"]));
    fixture.publish("orders.2", "3").await;
    fixture.publish("orders.1", "4").await;
    assert_eq!(socket.events(1).await[0]["data"], 4);
}

#[tokio::test]
async fn too_many_messages_are_rejected_with_a_time() {
    let fixture = fixture().await;
    let mut socket = fixture.open(Via::Http11, "/events?subject=orders.1").await;
    for number in 0..60 {
        let message = match number % 2 {
            0 => json!({ "subscribe": ["orders.2"] }),
            _ => json!({ "unsubscribe": ["orders.2"] }),
        };
        send(&mut socket, &message).await;
    }
    let (before, error) = socket.until_control("error").await;
    assert_eq!(error["reason"], "too_many_messages");
    let retry = error["retry"].as_u64().unwrap();
    assert!((1..=200).contains(&retry), "{retry}");
    tokio::time::sleep(Duration::from_millis(retry + 500)).await;
    let mut answers = before.len();
    while answers < 59 {
        answers += usize::from(socket.object().await["control"].is_string());
    }
    assert_eq!(
        answer(&mut socket, json!({ "subscribe": ["orders.3"] })).await["control"],
        "subscribed"
    );
}

#[tokio::test]
async fn only_the_source_that_allows_a_subject_changes() {
    let fixture = fixture().await;
    let mut socket = fixture.open(Via::Http11, "/two?subject=orders.1.x").await;
    for subject in ["news.1", "orders.2.y"] {
        let message = json!({ "subscribe": [subject] });
        assert_eq!(
            reason(&mut socket, message).await,
            "subject_not_allowed",
            "{subject}"
        );
    }
    // The subject of the route stays.
    let message = json!({ "unsubscribe": ["orders.all"] });
    assert_eq!(reason(&mut socket, message).await, "not_subscribed");
    let subscribed = answer(&mut socket, json!({ "subscribe": ["orders.2.x"] })).await;
    assert_eq!(subscribed["subjects"], json!(["orders.1.x", "orders.2.x"]));
    let unsubscribed = answer(
        &mut socket,
        json!({ "unsubscribe": ["orders.1.x", "orders.2.x"] }),
    )
    .await;
    assert_eq!(unsubscribed["subjects"], json!([]));
    let client = fixture.nats.client().await;
    client.publish("news.1", "1".into()).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(socket.events(1).await[0]["subject"], "news.1");
    fixture.publish("orders.1.x", "2").await;
    fixture.publish("orders.all", "3").await;
    assert_eq!(socket.events(1).await[0]["subject"], "orders.all");
}

#[tokio::test]
async fn client_with_too_many_filter_sets_keeps_those_that_it_has() {
    let fixture = fixture().await;
    let mut first = fixture.open(Via::Http11, "/events?subject=orders.1").await;
    let _same = fixture.open(Via::Http11, "/events?subject=orders.1").await;
    let mut third = fixture.open(Via::Http11, "/events?subject=orders.3").await;
    // In place of its own: there are two again.
    let message = json!({ "subscribe": ["orders.4"] });
    assert_eq!(answer(&mut third, message).await["control"], "subscribed");
    let message = json!({ "subscribe": ["orders.5"] });
    assert_eq!(
        reason(&mut first, message).await,
        "too_many_filter_sets_of_client"
    );
    fixture.publish("orders.5", "1").await;
    fixture.publish("orders.1", "2").await;
    assert_eq!(first.events(1).await[0]["data"], 2);
}

#[tokio::test]
async fn added_subject_of_a_state_brings_the_state_again() {
    let fixture = fixture().await;
    for (subject, value) in [("s.1", "1"), ("s.2", "2"), ("s.3", "3")] {
        fixture.publish(subject, value).await;
    }
    let mut socket = fixture
        .request(Via::Http11, "/state?subject=s.1")
        .open()
        .await;
    // A message during the state waits for its end.
    let (before, subscribed) = ask(&mut socket, json!({ "subscribe": ["s.2"] })).await;
    assert_eq!(before.last().unwrap()["control"], "synced");
    assert_eq!(subscribed["id"], "");
    let (state, synced) = socket.until_control("synced").await;
    assert_eq!(state[0]["control"], "snapshot");
    let keys: Vec<_> = state[1..]
        .iter()
        .map(|one| one["subject"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["s.1", "s.2"]);
    assert!(!synced["id"].as_str().unwrap().is_empty());
    let unsubscribed = answer(&mut socket, json!({ "unsubscribe": ["s.1"] })).await;
    assert!(!unsubscribed["id"].as_str().unwrap().is_empty());
    fixture.publish("s.1", "4").await;
    fixture.publish("s.2", "5").await;
    let change = socket.object().await;
    assert_eq!(
        (&change["subject"], &change["data"]),
        (&"s.2".into(), &5.into())
    );
}

/// Subjects that a client can name in the test of random changes.
const FILTERS: [&str; 10] = [
    "orders.0.a",
    "orders.0.b",
    "orders.1.a",
    "orders.1.*",
    "orders.2.>",
    "orders.*.a",
    "orders.3.b",
    "orders.4.a",
    "orders.4.b",
    "orders.>",
];

fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Sequence number in an id.
fn sequence(object: &Value) -> u64 {
    let id = object["id"].as_str().unwrap();
    id.split('-').nth(1).unwrap().parse().unwrap()
}

/// Client of the test of random changes, and the model of what it has to receive.
struct Changing {
    chosen: BTreeSet<&'static str>,
    /// Subjects from a position on.
    model: Vec<(u64, BTreeSet<&'static str>)>,
    received: Vec<u64>,
    id: String,
}

impl Changing {
    fn take(&mut self, objects: &[Value]) {
        for object in objects {
            match object["control"].as_str() {
                None => self.received.push(sequence(object)),
                Some("gap") => panic!("{object}"),
                Some(_) => {}
            }
            if let Some(id) = object["id"].as_str() {
                id.clone_into(&mut self.id);
            }
        }
    }

    /// Changes the subjects at random, once.
    async fn change(&mut self, socket: &mut WebSocket, rng: &mut fastrand::Rng) {
        let filter = FILTERS[rng.usize(..FILTERS.len())];
        let mut after = self.chosen.clone();
        let key = if self.chosen.contains(filter) && self.chosen.len() > 1 {
            after.remove(filter);
            "unsubscribe"
        } else if self.chosen.len() < 8 {
            after.insert(filter);
            "subscribe"
        } else {
            return;
        };
        let (before, answer) = ask(socket, json!({ key: [filter] })).await;
        assert_eq!(answer["control"], format!("{key}d"), "{answer}");
        self.take(&before);
        self.take(std::slice::from_ref(&answer));
        self.model.push((sequence(&answer), after.clone()));
        self.chosen = after;
        let named = answer["subjects"].as_array().unwrap().len();
        assert_eq!(named, self.chosen.len());
    }

    async fn connect(&self, pod: &Sidestream, via: Via, fixture: &Fixture) -> WebSocket {
        let subjects = self
            .chosen
            .iter()
            .map(|filter| format!("subject={}&", filter.replace('>', "%3E")));
        let url = format!(
            "/events?{}last_event_id={}",
            subjects.collect::<String>(),
            self.id
        );
        fixture.request_to(pod, via, &url).open().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_random_changes_under_load_miss_nothing_and_repeat_nothing() {
    let fixture = fixture().await;
    let pods = [
        &fixture.sidestream,
        &pod(&fixture.nats, &fixture.authority).await,
    ];
    let published: Mutex<Vec<(u64, String)>> = Mutex::default();
    let is_done = AtomicBool::new(false);
    let publishing = async {
        let mut rng = fastrand::Rng::with_seed(5);
        while !is_done.load(Ordering::Relaxed) {
            let mut sent = Vec::new();
            for _ in 0..20 {
                let subject = format!("orders.{}.{}", rng.u8(..6), ["a", "b"][rng.usize(..2)]);
                let ack = fixture
                    .jetstream
                    .publish(subject.clone(), "1".into())
                    .await
                    .unwrap();
                sent.push((ack, subject));
            }
            for (ack, subject) in sent {
                let sequence = ack.await.unwrap().sequence;
                published.lock().unwrap().push((sequence, subject));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let changing = async {
        let mut rng = fastrand::Rng::with_seed(6);
        let chosen = BTreeSet::from(["orders.0.a"]);
        let mut client = Changing {
            chosen,
            model: Vec::new(),
            received: Vec::new(),
            id: String::new(),
        };
        let mut changes = 0;
        while changes < 1000 {
            let via = Via::ALL[rng.usize(..Via::ALL.len())];
            if rng.bool() {
                // Beyond memory: it changes its subjects while it reads the history.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let mut socket = client.connect(pods[rng.usize(..2)], via, &fixture).await;
            if client.model.is_empty() {
                let (_, position) = socket.until_control("position").await;
                client
                    .model
                    .push((sequence(&position), client.chosen.clone()));
                client.take(&[position]);
            }
            for _ in 0..rng.usize(1..45) {
                client.change(&mut socket, &mut rng).await;
                changes += 1;
                if rng.u8(..3) == 0 {
                    tokio::time::sleep(Duration::from_millis(rng.u64(..20))).await;
                }
            }
        }
        is_done.store(true, Ordering::Relaxed);
        client
    };
    let (mut client, ()) = within(Duration::from_secs(300), "all changes are made", async {
        tokio::join!(changing, publishing)
    })
    .await;
    client.chosen.insert("orders.end");
    let mut socket = client.connect(pods[0], Via::Http11, &fixture).await;
    fixture.publish("orders.end", "1").await;
    loop {
        let object = socket.object().await;
        if object["subject"] == "orders.end" {
            break;
        }
        client.take(&[object]);
    }
    let metrics = fixture.sidestream.admin("/metrics").await.1;
    let outcome = [("outcome", "archive")];
    let replays = metric(&metrics, "sidestream_resumes_total", &outcome);
    assert!(replays >= 3.0, "{replays} times it reads the history");
    let published = published.into_inner().unwrap();
    let first = client.model[0].0;
    let expected: Vec<u64> = published
        .iter()
        .filter(|(sequence, _)| *sequence > first)
        .filter(|(sequence, subject)| {
            let set = client.model.iter().rfind(|(from, _)| from < sequence);
            set.unwrap().1.iter().any(|filter| matches(filter, subject))
        })
        .map(|(sequence, _)| *sequence)
        .collect();
    assert!(client.model.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert!(expected.len() > 1000, "{}", expected.len());
    assert_eq!(client.received, expected);
}
