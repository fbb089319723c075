//! A client that changes the framing at random, while two pods restart in turn.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;

use super::Fixture;
use testkit::grpc;
use testkit::http1;
use testkit::ndjson::{self, Version};
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, within};
use testkit::websocket::Request;

/// One form of the event stream.
#[derive(Clone, Copy, Debug)]
enum Form {
    Sse,
    Lines(Version),
    WebSocket { is_h2: bool },
    Grpc(grpc::Form),
    LongPoll,
}

const FORMS: [Form; 9] = [
    Form::Sse,
    Form::Lines(Version::Http11),
    Form::Lines(Version::H2),
    Form::WebSocket { is_h2: false },
    Form::WebSocket { is_h2: true },
    Form::Grpc(grpc::Form::Grpc),
    Form::Grpc(grpc::Form::WebH2),
    Form::Grpc(grpc::Form::WebHttp1),
    Form::LongPoll,
];

/// Numbers that a client receives until it leaves, and its position then.
struct Session {
    numbers: Vec<u64>,
    id: String,
}

impl Session {
    /// Session that ends with the last of these events.
    fn of(events: &[Value]) -> Self {
        let id = events.last().unwrap()["id"].as_str().unwrap();
        Self {
            numbers: events.iter().map(number).collect(),
            id: id.to_owned(),
        }
    }
}

fn number(event: &Value) -> u64 {
    assert!(
        event.get("control").is_none(),
        "no event is missing: {event}"
    );
    event["data"].as_u64().unwrap()
}

/// Reads this many events after a position, or those of one answer.
async fn read(pod: SocketAddr, form: Form, id: String, count: usize) -> Session {
    let url = format!("http://{pod}/orders");
    match form {
        Form::Sse => {
            let mut client = SseClient::get(&url).last_event_id(&id).connect().await;
            let mut session = Session {
                numbers: Vec::new(),
                id,
            };
            while session.numbers.len() < count {
                let event = client.next().await;
                match &*event.name {
                    "message" => session.numbers.push(event.data.parse().unwrap()),
                    name => assert_eq!(name, "sidestream.position"),
                }
                session.id = event.id;
            }
            session
        }
        Form::Lines(version) => {
            let request = ndjson::Request {
                version,
                last_event_id: &id,
                ..ndjson::Request::new(&url)
            };
            Session::of(&request.send().await.events(count).await)
        }
        Form::WebSocket { is_h2 } => {
            let request = Request {
                is_h2,
                ..Request::new(format!("{url}?last_event_id={id}"))
            };
            Session::of(&request.open().await.events(count).await)
        }
        Form::Grpc(form) => {
            let call = grpc::Call::new(form, format!("http://{pod}"), "/orders", &id);
            let mut response = call.send().await;
            let mut session = Session {
                numbers: Vec::new(),
                id,
            };
            while session.numbers.len() < count {
                let message = response.next().await;
                match message.content {
                    "event" => session.numbers.push(message.number()),
                    content => assert!(
                        matches!(content, "" | "open" | "position"),
                        "no event is missing: {message:?}"
                    ),
                }
                if !message.id.is_empty() {
                    session.id = message.id;
                }
            }
            session
        }
        Form::LongPoll => {
            let headers = [("Accept", "application/json"), ("Last-Event-ID", &*id)];
            let answer = http1::request("GET", &url, &headers).await.unwrap();
            let answer = answer.json();
            let events = answer["events"].as_array().unwrap().iter();
            let events = events.filter(|event| event["control"] != "close");
            Session {
                numbers: events.map(number).collect(),
                id: answer["id"].as_str().unwrap().to_owned(),
            }
        }
    }
}

/// Reads all events with at least this many changes of the framing.
async fn change_framings(events: u64, changes: usize) {
    let fixture = Fixture::start().await;
    let url = fixture.sidestream.url("/orders");
    let first = http1::request("GET", &url, &[("Accept", "application/json")]).await;
    let mut id = first.unwrap().json()["id"].as_str().unwrap().to_owned();
    let mut pods = VecDeque::from([fixture.pod().await, fixture.pod().await]);
    let alive = pods.iter().map(Sidestream::address).collect::<Vec<_>>();
    let alive = Mutex::new(alive);
    let done = Notify::new();

    let publishing = async {
        let client = fixture.nats.client().await;
        for number in 0..events {
            let payload = number.to_string().into();
            client.publish("orders.1", payload).await.unwrap();
            if number % 200 == 0 {
                client.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        client.flush().await.unwrap();
    };
    let restarting = async {
        let mut restarts = 0;
        loop {
            let mut pod = pods.pop_front().unwrap();
            let address = pod.address();
            alive.lock().unwrap().retain(|known| *known != address);
            tokio::time::sleep(Duration::from_millis(200)).await;
            pod.terminate();
            assert_eq!(pod.wait_exit(DEADLINE).await, 0);
            let pod = fixture.pod().await;
            alive.lock().unwrap().push(pod.address());
            pods.push_back(pod);
            restarts += 1;
            let pause = tokio::time::timeout(Duration::from_secs(1), done.notified());
            if pause.await.is_ok() {
                return restarts;
            }
        }
    };
    let reading = async {
        let (mut next, mut sessions) = (0, 0);
        // A long poll can have many more.
        let most = (events as usize).div_ceil(4 * changes);
        while next < events {
            let pod = {
                let alive = alive.lock().unwrap();
                alive[fastrand::usize(..alive.len())]
            };
            let count = fastrand::usize(1..=most).min((events - next) as usize);
            let form = FORMS[fastrand::usize(..FORMS.len())];
            // A session that its pod ends fails: the client has not processed its events, and its
            // position is the one before.
            let session = tokio::spawn(read(pod, form, id.clone(), count)).await;
            let Ok(session) = session else { continue };
            for number in session.numbers {
                assert_eq!(number, next, "in order, by {form:?}");
                next += 1;
            }
            id = session.id;
            sessions += 1;
        }
        done.notify_one();
        sessions
    };
    let ((), restarts, sessions) = within(Duration::from_secs(600), "all events arrive", async {
        tokio::join!(publishing, restarting, reading)
    })
    .await;
    println!("{sessions} sessions, {restarts} restarts");
    assert!(sessions >= changes, "{sessions} sessions");
    assert!(restarts >= 2, "{restarts} restarts");
}

#[tokio::test]
async fn client_that_changes_the_framing_misses_nothing_while_pods_restart() {
    change_framings(20_000, 100).await;
}

#[tokio::test]
#[ignore = "takes minutes: `make test-long`"]
async fn client_that_changes_the_framing_a_thousand_times_misses_nothing_of_a_million_events() {
    change_framings(1_000_000, 1000).await;
}
