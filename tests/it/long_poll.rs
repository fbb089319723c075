//! Long polls: one answer per request, and nothing lost between two of them.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use serde_json::Value;
use tokio::time::Instant;

use testkit::certs::Authority;
use testkit::http1;
use testkit::nats::{Nats, store};
use testkit::ndjson::{Request, Version};
use testkit::sidestream::{Sidestream, config_with_tls};
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, within};

const JSON: &str = "application/json";

const ROUTES: &str = r#"
routes:
  - path: /orders
    framings: [sse, ndjson, long_poll]
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    expired: gap
  - path: /news
    framings: [long_poll]
    sources: [{ subjects: ["news.>"] }]
  - path: /both
    framings: [long_poll]
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }, { subjects: ["news.>"] }]
  - path: /default
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
drain: { accept_for: 100ms, spread: 100ms, timeout: 5s, retry: { min: 600ms, max: 900ms } }
"#;

/// A nats-server with the JetStream stream ORDERS.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
    authority: Authority,
}

/// Client that polls repeatedly.
struct Poller {
    id: String,
    /// Payloads of the events, in order.
    numbers: Vec<u64>,
    /// Control objects.
    controls: Vec<Value>,
}

impl Fixture {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let config = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            storage: stream::StorageType::Memory,
            ..stream::Config::default()
        };
        jetstream.create_stream(config).await.unwrap();
        Self {
            nats,
            jetstream,
            authority: Authority::new(),
        }
    }

    async fn pod(&self) -> Sidestream {
        Sidestream::start(config_with_tls(&self.nats, &self.authority, ROUTES)).await
    }

    async fn publish(&self, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            store(&self.jetstream, "orders.1", number.to_string()).await;
        }
    }
}

impl Poller {
    fn new() -> Self {
        Self {
            id: String::new(),
            numbers: Vec::new(),
            controls: Vec::new(),
        }
    }

    /// Polls once. Returns the status.
    async fn poll(&mut self, url: &str) -> u16 {
        let request = Request {
            accept: JSON,
            last_event_id: &self.id.clone(),
            ..Request::new(url)
        };
        self.receive(request).await
    }

    /// Polls once, unless the pod has ended or rejects the poll.
    async fn try_poll(&mut self, url: &str) {
        let headers = [("Accept", JSON), ("Last-Event-ID", &*self.id.clone())];
        let answer = http1::request("GET", url, &headers).await;
        if let Some(answer) = answer.ok().filter(|answer| answer.status == 200) {
            self.take(&answer.body);
        }
    }

    async fn receive(&mut self, request: Request<'_>) -> u16 {
        let mut reader = request.send().await;
        let status = reader.status();
        let body = within(DEADLINE, "the poll is answered", reader.body()).await;
        if status == 200 {
            assert_eq!(reader.header("content-type").as_deref(), Some(JSON));
            assert_eq!(reader.header("cache-control").as_deref(), Some("no-store"));
            self.take(&body);
        }
        status
    }

    fn take(&mut self, body: &str) {
        let answer: Value = serde_json::from_str(body).unwrap();
        for event in answer["events"].as_array().unwrap() {
            match event["data"].as_u64() {
                Some(number) => self.numbers.push(number),
                None => self.controls.push(event.clone()),
            }
        }
        answer["id"].as_str().unwrap().clone_into(&mut self.id);
    }
}

#[tokio::test]
async fn polls_on_every_transport_miss_nothing_between_them() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    let mut polls = 0;
    for (index, (version, is_tls)) in [
        (Version::Http10, false),
        (Version::Http11, false),
        (Version::H2, false),
        (Version::Http11, true),
        (Version::H2, true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut poller = Poller::new();
        let begun = Instant::now();
        let first = 10 * index as u64;
        let mut published = first;
        for (wait, more) in [
            (None, 3),
            (Some("20s"), 1),
            (Some("20s"), 0),
            (Some("0"), 0),
        ] {
            let path = wait.map_or("/orders".to_owned(), |wait| format!("/orders?wait={wait}"));
            let url = if is_tls {
                pod.url_tls(&path)
            } else {
                pod.url(&path)
            };
            let protocol = if version == Version::H2 {
                "h2"
            } else {
                "http/1.1"
            };
            // An answer has the events that the pod has received by then.
            loop {
                let id = poller.id.clone();
                let request = Request {
                    version,
                    tls: is_tls.then(|| fixture.authority.trusting(&[protocol])),
                    accept: JSON,
                    last_event_id: &id,
                    ..Request::new(&url)
                };
                assert_eq!(poller.receive(request).await, 200, "{version:?}");
                polls += 1;
                if first + poller.numbers.len() as u64 >= published {
                    break;
                }
            }
            fixture.publish(published..published + more).await;
            published += more;
        }
        assert_eq!(poller.numbers, [first, first + 1, first + 2, first + 3]);
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "events end a wait"
        );
    }
    let labels = [("route", "/orders"), ("framing", "long_poll")];
    let opened = pod.metric("sidestream_streams_opened_total", &labels).await;
    assert_eq!(opened, f64::from(polls));
    let closed = [("route", "/orders"), ("reason", "answered")];
    pod.until_metric("sidestream_streams_closed_total", &closed, |count| {
        count == f64::from(polls)
    })
    .await;
}

#[tokio::test]
async fn event_ends_the_wait_and_the_end_of_the_wait_returns_an_id() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    for path in ["/orders", "/news", "/both"] {
        let mut poller = Poller::new();
        assert_eq!(poller.poll(&pod.url(path)).await, 200);
        let begun = Instant::now();
        assert_eq!(
            poller.poll(&pod.url(&format!("{path}?wait=300ms"))).await,
            200
        );
        assert!(begun.elapsed() >= Duration::from_millis(290));
        assert!(!poller.id.is_empty() && poller.numbers.is_empty(), "{path}");
        let subject = if path == "/orders" {
            "orders.1"
        } else {
            "news.1"
        };
        let client = fixture.nats.client().await;
        // Published between two polls, and during one.
        for (number, is_during) in [(1_u64, false), (2, true)] {
            let publish = async {
                if is_during {
                    let labels = [("framing", "long_poll")];
                    pod.until_metric("sidestream_streams", &labels, |open| open == 1.0)
                        .await;
                }
                client
                    .publish(subject, number.to_string().into())
                    .await
                    .unwrap();
                client.flush().await.unwrap();
            };
            let url = pod.url(&format!("{path}?wait=20s"));
            if is_during {
                tokio::join!(publish, poller.poll(&url));
            } else {
                publish.await;
                poller.poll(&url).await;
            }
        }
        assert_eq!(poller.numbers, [1, 2], "{path}");
        assert_eq!(poller.controls, Vec::<Value>::new(), "{path}");
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}

#[tokio::test]
async fn polls_across_two_pods_and_a_drain_miss_nothing_and_repeat_nothing() {
    let fixture = Fixture::start().await;
    let (mut one, two) = (fixture.pod().await, fixture.pod().await);
    let mut poller = Poller::new();
    assert_eq!(poller.poll(&one.url("/orders")).await, 200);
    let urls = [one.url("/orders?wait=10s"), two.url("/orders?wait=10s")];
    let polling = async {
        let mut polls = 0;
        while poller.numbers.len() < 300 {
            // The first pod ends in between: its clients continue on the other one.
            let url = &urls[polls % 2];
            polls += 1;
            poller.try_poll(url).await;
        }
    };
    let publishing = async {
        fixture.publish(0..150).await;
        one.terminate();
        fixture.publish(150..300).await;
    };
    within(4 * DEADLINE, "all events arrive", async {
        tokio::join!(polling, publishing)
    })
    .await;
    assert_eq!(poller.numbers, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn drain_answers_a_waiting_poll_with_a_close_and_the_position() {
    let fixture = Fixture::start().await;
    let mut pod = fixture.pod().await;
    let mut poller = Poller::new();
    poller.poll(&pod.url("/orders")).await;
    let before = poller.id.clone();
    let url = pod.url("/orders?wait=50s");
    let polling = tokio::spawn(async move {
        let status = poller.poll(&url).await;
        (status, poller)
    });
    let waiting = [("route", "/orders"), ("framing", "long_poll")];
    pod.until_metric("sidestream_streams", &waiting, |count| count == 1.0)
        .await;
    pod.terminate();
    let (status, poller) = polling.await.unwrap();
    assert_eq!(status, 200);
    let [close] = &poller.controls[..] else {
        panic!("one close: {:?}", poller.controls);
    };
    assert_eq!(
        (&close["control"], &close["reason"]),
        (&"close".into(), &"drain".into())
    );
    assert!((600..=900).contains(&close["retry"].as_u64().unwrap()));
    assert_eq!(poller.id, before);
    assert_eq!(pod.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn answers_are_bounded_and_the_next_poll_continues() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    let mut poller = Poller::new();
    poller.poll(&pod.url("/orders")).await;
    fixture.publish(0..2500).await;
    let mut polls = 0;
    while poller.numbers.len() < 2500 {
        let before = poller.numbers.len();
        poller.poll(&pod.url("/orders?wait=20s")).await;
        let events = poller.numbers.len() - before;
        assert!((1..2000).contains(&events), "{events}");
        polls += 1;
    }
    assert!(polls >= 2, "{polls}");
    assert_eq!(poller.numbers, (0..2500).collect::<Vec<_>>());
}

#[tokio::test]
async fn gap_is_an_object_among_the_events() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    let mut poller = Poller::new();
    poller.id = "invalid".into();
    assert_eq!(poller.poll(&pod.url("/orders?wait=20s")).await, 200);
    assert_eq!(poller.controls[0]["control"], "gap");
    assert_eq!(poller.controls[0]["reason"], "invalid");
    assert_eq!(poller.controls[0]["id"], Value::from(&*poller.id));
}

#[tokio::test]
async fn connection_serves_one_poll_after_the_other() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    let request = format!(
        "GET /orders?wait=0 HTTP/1.1\r\nHost: {}\r\nAccept: {JSON}\r\n\r\n",
        pod.address()
    );
    let url = pod.url("/").parse().unwrap();
    let transport = Connector::default().connect(&url).await.unwrap();
    let exchange = http1::Response::exchange(transport, request.as_bytes(), false);
    let mut response = exchange.await.unwrap();
    for _ in 0..3 {
        let (body, end) = response.body().await;
        assert_eq!(end, http1::End::Terminated);
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["events"], Value::Array(Vec::new()));
        assert_eq!(response.header("connection"), None);
        response = response.again(request.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn client_that_leaves_during_a_wait_ends_its_poll() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    let url = pod.url("/orders?wait=50s");
    let waiting = [("route", "/orders"), ("framing", "long_poll")];
    for version in [Version::Http11, Version::H2] {
        let polling = tokio::spawn({
            let url = url.clone();
            async move {
                let request = Request {
                    version,
                    accept: JSON,
                    ..Request::new(&url)
                };
                request.send().await.status()
            }
        });
        pod.until_metric("sidestream_streams", &waiting, |count| count == 1.0)
            .await;
        polling.abort();
        pod.until_metric("sidestream_streams", &waiting, |count| count == 0.0)
            .await;
    }
    let closed = [("route", "/orders"), ("reason", "client")];
    assert_eq!(
        pod.metric("sidestream_streams_closed_total", &closed).await,
        2.0
    );
}

#[tokio::test]
async fn invalid_poll_is_rejected_with_its_reason() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod().await;
    for (path, accept, status, code) in [
        ("/orders?wait=soon", JSON, 400, "bad_wait"),
        ("/default", JSON, 406, "not_acceptable"),
        ("/news", "text/event-stream", 406, "not_acceptable"),
    ] {
        let headers = [("Accept", accept)];
        let answer = http1::request("GET", &pod.url(path), &headers)
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.json()["error"]["code"], code);
    }
}
