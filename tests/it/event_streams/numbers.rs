//! Event streams in `/connections` and `/metrics`, while they are open and afterwards.

use serde_json::Value;

use super::Fixture;
use super::reader::Via;
use sidestream::encoding::Framing;
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};
use testkit::{grpc, http1, ndjson, websocket};

/// The only event stream, once `wanted` returns true for its description.
async fn the_connection(fixture: &Fixture, fact: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(DEADLINE, fact, || async {
        let list = fixture.sidestream.admin_json("/connections").await;
        let connection = list["connections"][0].clone();
        wanted(&connection).then_some(connection)
    })
    .await
}

#[tokio::test]
async fn connections_lists_every_event_stream() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders/7").await;
        reader.positioned().await;
        fixture.publish("orders.7.paid", "x").await;
        let event = reader.next().await;
        let fact = format!("the event by {via:?} is reported");
        let seen = the_connection(&fixture, &fact, |connection| {
            connection["sent"]["events"] == 1
        })
        .await;
        assert_eq!(seen["client"], "127.0.0.1");
        assert_eq!(seen["route"], "/orders/{id}");
        assert_eq!(seen["subjects"], serde_json::json!(["orders.7.>"]));
        assert_eq!(seen["protocol"], via.protocol());
        assert_eq!(seen["tls"], via.is_tls());
        assert_eq!(seen["state"], "active");
        assert_eq!(seen["last_event_id"], *event.id);
        assert_eq!(
            seen["lag"],
            serde_json::json!({ "events": 0, "bytes": 0, "seconds": 0.0 })
        );
        assert!(seen["sent"]["bytes"].as_u64().unwrap() > 0);
        assert!(seen["memory"]["bytes"].as_u64().unwrap() > 0);
        drop(reader);
        eventually(DEADLINE, "it is forgotten", || async {
            fixture.connections().await == 0
        })
        .await;
    }
}

#[tokio::test]
async fn streams_and_connections_are_counted_by_protocol_while_open_and_in_total() {
    let fixture = Fixture::start().await;
    let metric = async |name: &str, labels: &[(&str, &str)]| {
        fixture
            .sidestream
            .metric(&format!("sidestream_{name}"), labels)
            .await
    };
    for via in Via::ALL {
        let (protocol, tls) = (via.protocol(), if via.is_tls() { "true" } else { "false" });
        let labels = [("protocol", protocol), ("route", "/orders")];
        let opened = metric("streams_opened_total", &labels).await;
        let accepted = metric("connections_total", &[("tls", tls)]).await;
        let mut reader = fixture.open(via, "/orders").await;
        reader.positioned().await;
        assert_eq!(metric("streams", &labels).await, 1.0, "{via:?}");
        assert_eq!(
            metric("streams_opened_total", &labels).await,
            opened + 1.0,
            "{via:?}"
        );
        assert_eq!(metric("connections", &[("tls", tls)]).await, 1.0, "{via:?}");
        assert_eq!(
            metric("connections_total", &[("tls", tls)]).await,
            accepted + 1.0,
            "{via:?}"
        );
        assert!(metric("connections_memory_bytes", &[]).await > 0.0);
        drop(reader);
        fixture
            .sidestream
            .until_metric("sidestream_streams", &[], |streams| streams == 0.0)
            .await;
        fixture
            .sidestream
            .until_metric("sidestream_connections", &[], |connections| {
                connections == 0.0
            })
            .await;
    }
    let closed = [("route", "/orders"), ("reason", "client")];
    assert_eq!(metric("streams_closed_total", &closed).await, 5.0);
    assert_eq!(
        metric("streams_closed_total", &[]).await,
        5.0,
        "for no other reason"
    );
}

#[tokio::test]
async fn deliveries_are_counted_by_framing() {
    let nats = Nats::start().await;
    let routes = "routes:\n  - path: /news\n    framings: [sse, ndjson, websocket, long_poll, grpc_web]\n    sources: [{ subjects: [\"news.>\"] }]\n";
    let sidestream = Sidestream::start(testkit::sidestream::config(&nats, routes)).await;
    let url = sidestream.url("/news");
    let mut sse = SseClient::get(&url).connect().await;
    let mut lines = ndjson::Request::new(&url).send().await;
    let mut socket = websocket::Request::new(&url).open().await;
    socket.until_control("position").await;
    // gRPC has the name of gRPC-Web.
    let call = grpc::Call::new(grpc::Form::Grpc, sidestream.url(""), "/news", "");
    let mut call = call.send().await;
    call.until("position").await;
    let accept = ("Accept", "application/json");
    // The first poll is answered at once, with an id.
    let first = http1::request("GET", &url, &[accept]).await.unwrap();
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let headers = [accept, ("Last-Event-ID", &*id)];
    let poll = http1::request("GET", &url, &headers);
    let publish = async {
        let framing = [("framing", "long_poll")];
        let is_open = |streams| streams == 1.0;
        (sidestream.until_metric("sidestream_streams", &framing, is_open)).await;
        let client = nats.client().await;
        client.publish("news.1", "a".into()).await.unwrap();
        client.flush().await.unwrap();
    };
    let (answer, ()) = tokio::join!(poll, publish);
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(sse.next().await.data, "a");
    assert_eq!(lines.events(1).await.len(), 1);
    assert_eq!(socket.events(1).await.len(), 1);
    assert_eq!(call.events(1).await.len(), 1);
    for framing in Framing::ALL {
        let framing = [("route", "/news"), ("framing", framing.as_str())];
        sidestream
            .until_metric("sidestream_events_delivered_total", &framing, |events| {
                events == 1.0
            })
            .await;
        let bytes = sidestream.metric("sidestream_bytes_sent_total", &framing);
        assert!(bytes.await > 10.0, "{framing:?}");
    }
}

#[tokio::test]
async fn deliveries_are_counted_and_timed_from_receipt_to_the_socket() {
    let fixture = Fixture::start().await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        readers.push(fixture.open(via, "/orders").await);
    }
    for number in 0..10 {
        fixture.publish("orders.1.x", number.to_string()).await;
    }
    for reader in &mut readers {
        reader.take(10).await;
    }
    let route = [("route", "/orders")];
    let metric = async |name: &str| {
        fixture
            .sidestream
            .metric(&format!("sidestream_{name}"), &route)
            .await
    };
    fixture
        .sidestream
        .until_metric("sidestream_events_delivered_total", &route, |events| {
            events == 50.0
        })
        .await;
    let received = fixture
        .sidestream
        .metric("sidestream_events_received_total", &[("source", "ORDERS")])
        .await;
    assert_eq!(received, 10.0);
    let bytes = metric("bytes_sent_total").await;
    assert!(bytes > 50.0 * 20.0, "{bytes}");
    let (count, sum) = (
        metric("delivery_seconds_count").await,
        metric("delivery_seconds_sum").await,
    );
    assert!(
        (1.0..=50.0).contains(&count),
        "one observation per write: {count}"
    );
    assert!(sum > 0.0 && sum / count < 1.0, "{sum} s in {count} writes");
    let source = [("source", "ORDERS")];
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_window_events", &source)
            .await,
        10.0
    );
    assert!(
        fixture
            .sidestream
            .metric("sidestream_window_bytes", &source)
            .await
            > 0.0
    );
    assert_eq!(
        fixture.sidestream.metric("sidestream_feeds", &source).await,
        1.0
    );
}

#[tokio::test]
async fn the_lag_of_an_unread_stream_is_reported_and_delivered_when_it_is_read() {
    let fixture = Fixture::start().await;
    let mut lazy = SseClient::get(fixture.sidestream.url("/orders"))
        .receive_buffer(4096)
        .connect()
        .await;
    for number in 0..100 {
        fixture
            .publish("orders.1.x", format!("{number} {}", "x".repeat(32 * 1024)))
            .await;
    }
    let route = [("route", "/orders")];
    let lag = fixture
        .sidestream
        .until_metric("sidestream_lag_events", &route, |lag| lag > 10.0)
        .await;
    assert!(lag < 100.0);
    let bytes = fixture
        .sidestream
        .metric("sidestream_lag_bytes", &route)
        .await;
    assert!(bytes > 10.0 * 32.0 * 1024.0, "{bytes}");
    assert!(
        fixture
            .sidestream
            .metric("sidestream_lag_seconds", &route)
            .await
            > 0.0
    );
    fixture
        .sidestream
        .until_metric("sidestream_slow_clients", &route, |slow| slow == 1.0)
        .await;
    the_connection(&fixture, "its lag is listed", |connection| {
        connection["lag"]["events"].as_u64() > Some(10)
    })
    .await;
    for number in 0..100 {
        assert!(lazy.next().await.data.starts_with(&format!("{number} ")));
    }
    fixture
        .sidestream
        .until_metric("sidestream_lag_events", &route, |lag| lag == 0.0)
        .await;
    fixture
        .sidestream
        .until_metric("sidestream_slow_clients", &route, |slow| slow == 0.0)
        .await;
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        0.0
    );
}

#[tokio::test]
async fn outcomes_of_resumes_and_gaps_are_counted() {
    let fixture = Fixture::start().await;
    let mut first = fixture.open(Via::Http11, "/orders").await;
    first.positioned().await;
    fixture.publish("orders.1.x", "one").await;
    fixture.publish("orders.1.x", "two").await;
    let one = first.next().await;
    first.next().await;

    let mut resumed = fixture.resume(Via::H2, "/orders", &one.id).await;
    assert_eq!(resumed.next().await.data, "two");
    let outcome = async |outcome: &str| {
        fixture
            .sidestream
            .metric("sidestream_resumes_total", &[("outcome", outcome)])
            .await
    };
    assert_eq!(outcome("window").await, 1.0);

    for (id, reason) in [("no id at all", "invalid"), ("abcdef-7-0000", "recreated")] {
        let mut reader = fixture.resume(Via::Http11, "/orders", id).await;
        let gap = reader.next().await;
        assert_eq!(gap.name, "sidestream.gap");
        assert_eq!(super::json(&gap.data)["reason"], reason);
        assert!(
            !gap.id.is_empty() && gap.id != id,
            "the gap carries the position from which it goes on"
        );
        let told = fixture
            .sidestream
            .metric("sidestream_gaps_total", &[("reason", reason)])
            .await;
        assert_eq!(told, 1.0, "{reason}");
    }
}

#[tokio::test]
async fn rejections_are_counted_by_code() {
    let fixture = Fixture::start().await;
    let url = |path: &str| fixture.sidestream.url(path);
    let cases = [
        (http1::get(&url("/nothing")).await, 404, "not_found"),
        (
            http1::request("POST", &url("/orders"), &[]).await,
            405,
            "method_not_allowed",
        ),
        (
            http1::request("GET", &url("/orders"), &[("Accept", "application/json")]).await,
            406,
            "not_acceptable",
        ),
        (http1::get(&url("/orders/a.b")).await, 400, "bad_variable"),
    ];
    for (answer, status, code) in cases {
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (status, &code.into())
        );
        assert_eq!(
            fixture
                .sidestream
                .metric("sidestream_refusals_total", &[("code", code)])
                .await,
            1.0,
            "{code}"
        );
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams_opened_total", &[])
            .await,
        0.0
    );
}
