//! The tap of the page: the events of one route, within its subjects, at a bounded rate.

use async_nats::HeaderMap;
use serde_json::Value;
use testkit::http1::{self, Answer};
use testkit::nats::{Nats, create_stream, publish, store_with};
use testkit::sidestream::{self, Sidestream};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

const ROUTES: &str = r#"
routes:
  - path: /orders/{id}
    sources: [{ stream: ORDERS, subjects: ["orders.{id}.>"] }]
  - path: /events
    event: shop
    sources: [{ stream: ORDERS, subjects: ["{query.subject}"], allow: ["orders.>", "alerts"] }]
  - path: /core
    sources: [{ subjects: ["core.{query.name}"] }]
  - path: /runs/{id}
    finite: true
    sources: [{ stream: ORDERS, subjects: ["runs.{id}"] }]
"#;

async fn start(nats: &Nats) -> Sidestream {
    let jetstream = nats.jetstream().await;
    create_stream(
        &jetstream,
        "ORDERS",
        &["orders.>", "alerts", "secrets", "runs.*"],
    )
    .await;
    let config = sidestream::config(nats, ROUTES).replace("admin:\n", "admin:\n  tap: true\n");
    Sidestream::start(config).await
}

async fn open(sidestream: &Sidestream, query: &str) -> SseClient {
    let mut tap = SseClient::get(sidestream.url_admin(&format!("/page/tap?{query}")))
        .connect()
        .await;
    assert_eq!(tap.next().await.name, "subjects");
    tap
}

async fn get(sidestream: &Sidestream, path: &str) -> Answer {
    http1::get(&sidestream.url_admin(path)).await.unwrap()
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
    (answer.status, code)
}

/// Next event of the source that a tap shows.
async fn shown(tap: &mut SseClient) -> Value {
    let events = tap.until(|event| event.name != "status").await;
    serde_json::from_str(&events.last().unwrap().data).unwrap()
}

#[tokio::test]
async fn tap_shows_events_of_a_route_narrowed_by_values_of_its_variables() {
    let nats = Nats::start().await;
    let sidestream = start(&nats).await;
    let routes = get(&sidestream, "/page/routes").await.json();
    assert_eq!(routes["tap"], Value::Null);
    assert_eq!(routes["routes"][0]["variables"][0], "{id}");
    assert_eq!(
        routes["routes"][1]["subjects"],
        serde_json::json!(["{query.subject}", "orders.>", "alerts"])
    );

    let mut all = open(&sidestream, "route=/orders/{id}").await;
    let mut one = open(&sidestream, "route=/events&%7Bquery.subject%7D=orders.42.*").await;
    let jetstream = nats.jetstream().await;
    for subject in ["secrets", "alerts", "orders.7.paid", "orders.42.paid"] {
        publish(&jetstream, subject, [format!("{{\"of\":\"{subject}\"}}")]).await;
    }
    for expected in ["orders.7.paid", "orders.42.paid"] {
        let event = shown(&mut all).await;
        assert_eq!(event["subject"], expected);
        assert_eq!(event["data"]["of"], expected);
    }
    let event = shown(&mut one).await;
    assert_eq!(
        (&event["subject"], &event["event"]),
        (&Value::from("orders.42.paid"), &Value::from("shop")),
        "under the name that clients of the route receive"
    );

    let third = get(&sidestream, "/page/tap?route=/core").await;
    assert_eq!(code(&third), (503, "too_many_taps".into()));
    drop((all, one));
    let mut core = eventually(DEADLINE, "a tap that leaves is replaced", || async {
        let opened = SseClient::get(sidestream.url_admin("/page/tap?route=/core"))
            .connect()
            .await;
        (opened.status() == 200).then_some(opened)
    })
    .await;
    let client = nats.client().await;
    client.publish("core.any", "text".into()).await.unwrap();
    let event = core.until(|event| event.name == "message").await;
    let event: Value = serde_json::from_str(&event.last().unwrap().data).unwrap();
    assert_eq!(
        (&event["subject"], &event["data"]),
        (&"core.any".into(), &"text".into())
    );
    assert_eq!(
        sidestream
            .metric("sidestream_streams_opened_total", &[])
            .await,
        0.0,
        "a tap is no client"
    );
}

#[tokio::test]
async fn tap_outside_of_the_subjects_of_a_route_is_rejected() {
    let nats = Nats::start().await;
    let sidestream = start(&nats).await;
    for (query, expected) in [
        ("route=/nothing", (404, "tap_unknown_route")),
        ("", (404, "tap_unknown_route")),
        ("route=/orders/{id}&{id}=4.2", (400, "tap_bad_value")),
        ("route=/orders/{id}&{id}=*", (400, "tap_bad_value")),
        ("route=/events&{query.subject}=a..b", (400, "tap_bad_value")),
        (
            "route=/events&{query.subject}=secrets",
            (403, "tap_not_allowed"),
        ),
        (
            "route=/events&{query.subject}=%3E",
            (403, "tap_not_allowed"),
        ),
    ] {
        let query = query.replace('{', "%7B").replace('}', "%7D");
        let rejected = get(&sidestream, &format!("/page/tap?{query}")).await;
        assert_eq!(code(&rejected), (expected.0, expected.1.into()), "{query}");
    }
}

#[tokio::test]
async fn tap_goes_on_after_the_end_of_one_finite_event_stream() {
    let nats = Nats::start().await;
    let sidestream = start(&nats).await;
    let mut tap = open(&sidestream, "route=/runs/{id}").await;
    let jetstream = nats.jetstream().await;
    let mut headers = HeaderMap::new();
    headers.insert("Sidestream-End", "true");
    store_with(&jetstream, "runs.1", headers, "last").await;
    publish(&jetstream, "runs.2", ["first".to_owned()]).await;
    for expected in ["last", "first"] {
        assert_eq!(shown(&mut tap).await["data"], expected);
    }
}

#[tokio::test]
async fn tap_is_off_by_default() {
    let nats = Nats::start().await;
    let routes = "routes:\n  - path: /a\n    sources: [{ subjects: [a] }]";
    let sidestream = Sidestream::start(sidestream::config(&nats, routes)).await;
    let rejected = get(&sidestream, "/page/tap?route=/a").await;
    assert_eq!(code(&rejected), (403, "tap_disabled".into()));
    let routes = get(&sidestream, "/page/routes").await.json();
    assert_eq!(routes["tap"]["code"], "tap_disabled");
}

#[tokio::test]
async fn busy_route_is_shown_at_a_bounded_rate_and_the_rest_is_counted() {
    let nats = Nats::start().await;
    let sidestream = start(&nats).await;
    let mut tap = open(&sidestream, "route=/core").await;
    let client = nats.client().await;
    let publishing = tokio::spawn(async move {
        for number in 0..u64::MAX {
            let text = number.to_string();
            client.publish("core.any", text.into()).await.unwrap();
            if number % 100 == 99 {
                client.flush().await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    });
    let begun = std::time::Instant::now();
    let mut status = Value::Null;
    while status["skipped"].as_u64().unwrap_or_default() < 1_000 {
        let events = tap.until(|event| event.name == "status").await;
        status = serde_json::from_str(&events.last().unwrap().data).unwrap();
    }
    publishing.abort();
    // 5 events per quarter of a second, and the two quarters at the edges.
    let most = 20.0 * begun.elapsed().as_secs_f64() + 10.0;
    let shown = status["shown"].as_f64().unwrap();
    assert!(shown >= 5.0 && shown <= most, "{status}, at most {most}");
}
