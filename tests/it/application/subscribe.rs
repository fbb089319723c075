//! The application turns a request into an event stream.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream;
use testkit::application::Application;
use testkit::h2::H2Client;
use testkit::http1::{self, End};
use testkit::nats::{Nats, create_stream, publish};
use testkit::ndjson;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// Application, and a sidecar in front of it that follows the stream ORDERS.
struct Fixture {
    sidestream: Sidestream,
    application: Application,
    nats: Nats,
    jetstream: jetstream::Context,
}

const SUBSCRIBE: &str = r#"{ sources: [
    { stream: ORDERS, allow: ["orders.>", "alerts"] },
    { allow: ["news.*"] },
] }"#;

fn configuration(nats: &Nats, application: &Application, subscribe: &str, rest: &str) -> String {
    let text = format!(
        "application: {{ address: \"http://{}\", subscribe: {subscribe} }}
routes: [{{ path: /news, sources: [{{ subjects: [news] }}] }}]
drain: {{ accept_for: 100ms, spread: 100ms, timeout: 5s }}
{rest}",
        application.address()
    );
    config(nats, &text)
}

impl Fixture {
    async fn start() -> Self {
        Self::with(SUBSCRIBE, "").await
    }

    /// Starts with a value of `application.subscribe` and further sections.
    async fn with(subscribe: &str, rest: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        create_stream(&jetstream, "ORDERS", &["orders.>", "alerts"]).await;
        let application = Application::start().await;
        let text = configuration(&nats, &application, subscribe, rest);
        let sidestream = Sidestream::start(text).await;
        Self {
            sidestream,
            application,
            nats,
            jetstream,
        }
    }

    async fn publish(&self, subject: &str, text: &str) {
        publish(&self.jetstream, subject, [text.to_owned()]).await;
    }

    /// URL to which the application answers with these header fields.
    fn url(&self, fields: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(fields);
        self.sidestream
            .url(&format!("/subscribe/?{}", query.finish()))
    }

    /// Opens an event stream of these subjects.
    async fn open(&self, subjects: &str) -> SseClient {
        let client = SseClient::get(self.url(&[("Sidestream-Subscribe", subjects)]));
        let client = client.connect().await;
        assert_eq!(client.status(), 200);
        client
    }

    async fn refusals(&self, code: &str) -> f64 {
        let labels = [("code", code)];
        self.sidestream
            .metric("sidestream_refusals_total", &labels)
            .await
    }
}

/// Data of the next event of a publisher.
async fn next(client: &mut SseClient) -> String {
    let events = client.until(|event| !event.name.starts_with("sidestream."));
    events.await.pop().unwrap().data
}

fn unix_seconds() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

#[tokio::test]
async fn response_becomes_an_event_stream_of_its_subjects() {
    let fixture = Fixture::start().await;
    let mut first = fixture.open("orders.42.>, alerts").await;
    let url = fixture.url(&[("Sidestream-Subscribe", "orders.42.>, alerts")]);
    let target = url.split_once("/subscribe").unwrap().1;
    let mut h2 = H2Client::connect(&url).await;
    let mut second = h2.get(&format!("/subscribe{target}")).await;
    let mut lines = ndjson::Request::new(&url).send().await;
    assert_eq!(first.header("content-type").unwrap(), "text/event-stream");
    assert_eq!(first.header("sidestream-subscribe"), None);
    assert_eq!(first.header("content-length"), None);
    assert_eq!(second.status(), 200);
    assert_eq!(second.header("content-type"), Some("text/event-stream"));
    assert_eq!(
        lines.header("content-type").unwrap(),
        "application/x-ndjson"
    );
    for (subject, text) in [
        ("orders.7.new", "other"),
        ("orders.42.new", "one"),
        ("alerts", "two"),
    ] {
        fixture.publish(subject, text).await;
    }
    assert_eq!(
        [next(&mut first).await, next(&mut first).await],
        ["one", "two"]
    );
    let events = second.until(|event| event.data == "two").await;
    let events: Vec<&str> = events
        .iter()
        .filter(|event| !event.name.starts_with("sidestream."))
        .map(|event| &*event.data)
        .collect();
    assert_eq!(events, ["one", "two"]);
    let lines = lines.events(2).await;
    assert_eq!([&lines[0]["data"], &lines[1]["data"]], ["one", "two"]);
    let labels = [("route", "application"), ("framing", "sse")];
    let streams = fixture.sidestream.metric("sidestream_streams", &labels);
    assert_eq!(streams.await, 2.0);
    let busy = "sidestream_application_requests_in_progress";
    assert_eq!(fixture.sidestream.metric(busy, &[]).await, 0.0);
}

#[tokio::test]
async fn each_subject_is_read_from_the_first_source_that_allows_it() {
    let fixture = Fixture::start().await;
    let mut both = fixture.open("news.a, orders.1").await;
    let mut live = fixture.open("news.*").await;
    fixture.publish("orders.1", "order").await;
    assert_eq!(next(&mut both).await, "order");
    let nats = fixture.nats.client().await;
    nats.publish("news.a", "news".into()).await.unwrap();
    assert_eq!(next(&mut both).await, "news");
    assert_eq!(next(&mut live).await, "news");
}

#[tokio::test]
async fn client_resumes_without_loss_and_the_application_is_asked_again() {
    let fixture = Fixture::start().await;
    let mut client = fixture.open("orders.>").await;
    fixture.publish("orders.1", "one").await;
    assert_eq!(next(&mut client).await, "one");
    let id = client.last_event_id().to_owned();
    client.reset();
    for text in ["two", "three"] {
        fixture.publish("orders.1", text).await;
    }
    let url = fixture.url(&[("Sidestream-Subscribe", "orders.>")]);
    let mut client = SseClient::get(&url).last_event_id(&id).connect().await;
    assert_eq!(
        [next(&mut client).await, next(&mut client).await],
        ["two", "three"]
    );
    let path = url.split_once("/subscribe").unwrap().1;
    assert_eq!(
        fixture.application.requests(&format!("/subscribe{path}")),
        2
    );
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        0.0
    );
}

#[tokio::test]
async fn cookies_and_cors_are_kept_and_the_rest_of_the_response_is_dropped() {
    let fixture = Fixture::start().await;
    let fields = [
        ("Sidestream-Subscribe", "orders.>"),
        ("Sidestream-Client", "alice"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Access-Control-Allow-Origin", "https://shop.example"),
        ("Access-Control-Allow-Credentials", "true"),
        ("Vary", "Origin"),
        ("Cache-Control", "public, max-age=600"),
        ("ETag", "\"1\""),
        ("Content-Encoding", "gzip"),
    ];
    let url = fixture.url(&fields);
    let mut open = Vec::new();
    for builder in [SseClient::get(&url), SseClient::get(&url).head()] {
        let client = builder.connect().await;
        assert_eq!(client.status(), 200);
        for (name, expected) in [
            ("set-cookie", Some("a=1, b=2")),
            ("access-control-allow-origin", Some("https://shop.example")),
            ("access-control-allow-credentials", Some("true")),
            ("vary", Some("Origin, accept")),
            ("cache-control", Some("no-store, no-transform")),
            ("content-type", Some("text/event-stream")),
            ("etag", None),
            ("content-encoding", None),
            ("sidestream-client", None),
        ] {
            assert_eq!(client.header(name).as_deref(), expected, "{name}");
        }
        open.push(client);
    }
    let listed = fixture.sidestream.admin_json("/connections").await;
    assert_eq!(listed["connections"][0]["client"], "alice", "{listed}");
    assert_eq!(listed["connections"][0]["route"], "application", "{listed}");
}

#[tokio::test]
async fn event_stream_ends_when_the_session_expires() {
    let fixture = Fixture::start().await;
    let at = |seconds: u64| {
        fixture.url(&[
            ("Sidestream-Subscribe", "orders.>"),
            ("Sidestream-Expires", &seconds.to_string()),
        ])
    };
    let expires = unix_seconds() + 2;
    let mut client = SseClient::get(at(expires)).connect().await;
    let events = client.until(|event| event.name == "sidestream.close").await;
    assert!(SystemTime::now() >= UNIX_EPOCH + std::time::Duration::from_secs(expires));
    let renew = events.iter().find(|event| event.name == "sidestream.renew");
    assert_eq!(renew.unwrap().data, format!("{{\"expires\":{expires}}}"));
    assert!(
        events.last().unwrap().data.contains("expired"),
        "{events:?}"
    );

    let mut late = SseClient::get(at(expires)).connect().await;
    assert_eq!(late.status(), 401);
    assert!(late.body().await.contains("unauthenticated"));
    let mut browser = SseClient::get(at(expires)).browser().connect().await;
    assert_eq!(browser.status(), 200);
    assert!(browser.next().await.data.contains("unauthenticated"));
}

#[tokio::test]
async fn impossible_subscription_is_a_fault_of_the_application() {
    let fixture = Fixture::start().await;
    let many = vec!["orders.1"; 17].join(",");
    let cases = [
        ("secret.>", None),
        ("orders.1, secret.>", None),
        (">", None),
        ("*.1", None),
        ("orders..1", None),
        (" , ", None),
        (&*many, None),
        ("orders.1", Some(("Sidestream-Client", ""))),
        ("orders.1", Some(("Sidestream-Expires", "soon"))),
    ];
    for (subjects, other) in cases {
        let mut fields = vec![("Sidestream-Subscribe", subjects)];
        fields.push(("Set-Cookie", "a=1"));
        fields.extend(other);
        let answer = http1::get(&fixture.url(&fields)).await.unwrap();
        assert_eq!(answer.status, 502, "{subjects}: {}", answer.body);
        assert_eq!(answer.json()["error"]["code"], "application_invalid");
        assert!(!answer.body.contains("secret"), "{}", answer.body);
        assert!(!answer.body.contains("text of"), "{}", answer.body);
        assert_eq!(answer.header("set-cookie").unwrap(), "a=1");
        let mut browser = SseClient::get(fixture.url(&fields))
            .browser()
            .connect()
            .await;
        assert_eq!(browser.status(), 200, "{subjects}");
        let close = browser.next().await;
        assert_eq!(close.name, "sidestream.close", "{subjects}");
    }
    assert_eq!(fixture.refusals("application_invalid").await, 18.0);
    let line = fixture
        .sidestream
        .until_message("the application asks for an event stream that is not possible")
        .await;
    let reason = "`secret.>` is outside of every `allow`";
    assert!(line.to_string().contains(reason), "{line}");
}

#[tokio::test]
async fn header_has_no_effect_on_other_responses() {
    let fixture = Fixture::start().await;
    let subscribe = ("Sidestream-Subscribe", "orders.>");
    for (method, status) in [
        ("GET", "403"),
        ("GET", "404"),
        ("GET", "201"),
        ("POST", "200"),
    ] {
        let url = fixture.url(&[subscribe, ("status", status)]);
        let answer = http1::request(method, &url, &[("Content-Length", "0")]);
        let answer = answer.await.unwrap();
        assert_eq!(answer.status.to_string(), status);
        assert_eq!(answer.body, "text of the application", "{method} {status}");
        assert_eq!(answer.header("sidestream-subscribe"), None);
    }
    let off = Fixture::with("null", "").await;
    let answer = http1::get(&off.url(&[subscribe])).await.unwrap();
    assert_eq!(
        (answer.status, &*answer.body),
        (200, "text of the application")
    );
    assert_eq!(answer.header("sidestream-subscribe"), None);
}

#[tokio::test]
async fn client_that_sends_the_header_achieves_nothing() {
    let fixture = Fixture::start().await;
    let headers = [
        ("Accept", "text/event-stream"),
        ("Sidestream-Subscribe", "orders.>"),
        ("sidestream-client", "alice"),
        ("Connection", "Sidestream-Subscribe"),
    ];
    let answer = http1::request("GET", &fixture.sidestream.url("/echo"), &headers).await;
    let answer = answer.unwrap();
    assert_eq!(answer.header("content-type").unwrap(), "application/json");
    let received = answer.json()["rawHeaders"].to_string().to_lowercase();
    assert!(!received.contains("sidestream-"), "{received}");

    let url = fixture.url(&[("Sidestream-Subscribe", "orders.1")]);
    let asked = SseClient::get(&url).header("Sidestream-Subscribe", "orders.2");
    let mut client = asked.header("Sidestream-Client", "bob").connect().await;
    fixture.publish("orders.2", "two").await;
    fixture.publish("orders.1", "one").await;
    assert_eq!(next(&mut client).await, "one");
    let listed = fixture.sidestream.admin_json("/connections").await;
    assert_eq!(listed["connections"][0]["client"], "127.0.0.1", "{listed}");
}

#[tokio::test]
async fn limits_of_a_client_count_its_name() {
    let rest = "limits: { per_client: { connections: 1 } }";
    let fixture = Fixture::with(SUBSCRIBE, rest).await;
    let url = |client| {
        fixture.url(&[
            ("Sidestream-Subscribe", "orders.>"),
            ("Sidestream-Client", client),
        ])
    };
    let alice = SseClient::get(url("alice")).connect().await;
    assert_eq!(alice.status(), 200);
    let mut again = SseClient::get(url("alice")).connect().await;
    assert_eq!(again.status(), 503);
    let body = again.body().await;
    assert!(body.contains("too_many_connections_of_client"), "{body}");
    let bob = SseClient::get(url("bob")).connect().await;
    assert_eq!(bob.status(), 200);
}

#[tokio::test]
async fn client_accepts_a_framing_or_is_rejected() {
    let fixture = Fixture::start().await;
    let url = fixture.url(&[("Sidestream-Subscribe", "orders.>")]);
    let answer = http1::request("GET", &url, &[("Accept", "text/html")]).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 406);
    assert_eq!(answer.json()["error"]["code"], "not_acceptable");
    let rest = r#"{ sources: [{ stream: ORDERS, allow: ["orders.>"] }], framings: [sse], cors: { origins: ["https://a.example"] } }"#;
    let fixture = Fixture::with(rest, "").await;
    let url = fixture.url(&[("Sidestream-Subscribe", "orders.>")]);
    let client = SseClient::bare(&url).header("Origin", "https://a.example");
    let client = client.connect().await;
    assert_eq!(client.status(), 200);
    let allowed = client.header("access-control-allow-origin");
    assert_eq!(allowed.as_deref(), Some("https://a.example"));
}

#[tokio::test]
async fn drain_hands_the_client_over() {
    let mut fixture = Fixture::start().await;
    let mut client = fixture.open("orders.>").await;
    fixture.publish("orders.1", "one").await;
    assert_eq!(next(&mut client).await, "one");
    fixture.sidestream.terminate();
    let events = client.until(|event| event.name == "sidestream.close").await;
    assert!(events.last().unwrap().data.contains("drain"), "{events:?}");
    assert_eq!(client.closed().await, End::Terminated);
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);

    let text = configuration(&fixture.nats, &fixture.application, SUBSCRIBE, "");
    let next_pod = Sidestream::start(text).await;
    fixture.publish("orders.1", "two").await;
    fixture.sidestream = next_pod;
    let url = fixture.url(&[("Sidestream-Subscribe", "orders.>")]);
    let id = client.last_event_id().to_owned();
    let mut client = SseClient::get(url).last_event_id(&id).connect().await;
    assert_eq!(next(&mut client).await, "two");
}

#[tokio::test]
async fn reload_follows_what_is_allowed() {
    let fixture = Fixture::with(
        r#"{ sources: [{ stream: ORDERS, allow: ["orders.>"] }] }"#,
        "",
    );
    let fixture = fixture.await;
    let url = fixture.url(&[("Sidestream-Subscribe", "alerts")]);
    assert_eq!(http1::get(&url).await.unwrap().status, 502);
    let text = configuration(&fixture.nats, &fixture.application, SUBSCRIBE, "");
    fixture.sidestream.rewrite_config(&text);
    eventually(DEADLINE, "the reload allows the subject", || async {
        let client = SseClient::get(&url).connect().await;
        (client.status() == 200).then_some(())
    })
    .await;
    let mut client = fixture.open("alerts").await;
    fixture.publish("alerts", "alert").await;
    assert_eq!(next(&mut client).await, "alert");
}

/// Requests of one user: a page, then its orders.
async fn read_as(fixture: &Fixture, user: &str, round: usize) -> SseClient {
    let url = fixture.sidestream.url("/mine/orders");
    let cookie = format!("user={user}");
    if round.is_multiple_of(2) {
        let page = http1::request("GET", &url, &[("Cookie", &cookie)]).await;
        let page = page.unwrap();
        let seen = page.header("set-cookie");
        assert_eq!(
            (&*page.body, seen.as_deref()),
            (user, Some(&*format!("seen={user}")))
        );
    }
    let client = SseClient::get(&url)
        .header("Cookie", &cookie)
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    assert_eq!(client.header("set-cookie"), Some(format!("seen={user}")));
    client
}

#[tokio::test]
async fn users_of_one_url_never_receive_what_belongs_to_another() {
    const ROUNDS: usize = 1000;
    let fixture = Fixture::start().await;
    for round in 0..ROUNDS {
        let (mut alice, mut bob) = tokio::join!(
            read_as(&fixture, "alice", round),
            read_as(&fixture, "bob", round / 2)
        );
        let order = |user: &str| format!("order {round} of {user}");
        let (first, second) = if round.is_multiple_of(2) {
            ("alice", "bob")
        } else {
            ("bob", "alice")
        };
        fixture
            .publish(&format!("orders.{first}"), &order(first))
            .await;
        fixture
            .publish(&format!("orders.{second}"), &order(second))
            .await;
        assert_eq!(next(&mut alice).await, order("alice"));
        assert_eq!(next(&mut bob).await, order("bob"));
    }
}
