//! Clients that disconnect, in every way, and leave no resource.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Fixture;
use super::reader::{Reader, Via};
use testkit::h2::H2Client;
use testkit::http1::Response;
use testkit::sse::{End, SseClient};
use testkit::transport::Connector;
use testkit::wait::eventually;

/// 5 s: "at once", on a busy machine. Without a detection, the heartbeat after 15 s is the first
/// write that fails.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn gone(fixture: &Fixture, how: &str, left: u64) {
    eventually(
        AT_ONCE,
        &format!("{left} event streams are left after {how}"),
        || async {
            fixture.connections().await == left
                && fixture.sidestream.metric("sidestream_streams", &[]).await == left as f64
        },
    )
    .await;
}

#[tokio::test]
async fn a_client_that_closes_an_idle_connection_is_detected_at_once() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        for path in ["/orders", "/news"] {
            let mut reader = fixture.open(via, path).await;
            reader.positioned().await;
            assert_eq!(fixture.connections().await, 1);
            drop(reader);
            gone(&fixture, &format!("a close by {via:?}"), 0).await;
            fixture
                .sidestream
                .until_metric_within(AT_ONCE, "sidestream_connections", &[], |open| open == 0.0)
                .await;
        }
    }
    let closed = fixture
        .sidestream
        .metric("sidestream_streams_closed_total", &[("reason", "client")])
        .await;
    assert_eq!(closed, 10.0);
}

#[tokio::test]
async fn a_client_that_resets_its_connection_is_detected_at_once() {
    let fixture = Fixture::start().await;
    for via in [Via::Http10, Via::Http11, Via::Tls11] {
        let Reader::Http1(mut client) = fixture.open(via, "/orders").await else {
            unreachable!()
        };
        client.positioned().await;
        client.reset();
        gone(&fixture, &format!("a reset by {via:?}"), 0).await;
    }
}

#[tokio::test]
async fn a_close_is_detected_while_events_arrive() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders").await;
        for number in 0..20 {
            fixture.publish("orders.1.x", number.to_string()).await;
            reader.next().await;
        }
        drop(reader);
        gone(&fixture, &format!("a close by {via:?}"), 0).await;
    }
}

#[tokio::test]
async fn bytes_after_the_request_do_not_hide_the_close() {
    let fixture = Fixture::start().await;
    let url = fixture.sidestream.url("/orders").parse().unwrap();
    let request = "GET /orders HTTP/1.1\r\nHost: a\r\n\r\n";
    let transport = Connector::default().connect(&url).await.unwrap();
    let pipelined = [request, request, "and more"].concat();
    let mut answer = Response::exchange(transport, pipelined.as_bytes(), false)
        .await
        .unwrap();
    answer.chunk().await.unwrap();
    assert_eq!(
        fixture.connections().await,
        1,
        "the second request is not answered"
    );
    drop(answer);
    gone(&fixture, "a close after pipelined bytes", 0).await;
}

#[tokio::test]
async fn a_request_during_an_event_stream_does_not_disturb_it() {
    let fixture = Fixture::start().await;
    for via in [Via::Http10, Via::Http11, Via::Tls11] {
        let Reader::Http1(mut client) = fixture.open(via, "/orders").await else {
            unreachable!()
        };
        let request = b"GET /orders HTTP/1.1\r\nHost: a\r\n\r\n";
        for number in 0..3 {
            client
                .response()
                .transport()
                .write_all(request)
                .await
                .unwrap();
            client.response().transport().flush().await.unwrap();
            fixture.publish("orders.1.x", number.to_string()).await;
            assert_eq!(client.next().await.data, number.to_string(), "{via:?}");
        }
        assert_eq!(fixture.connections().await, 1);
        drop(client);
        gone(&fixture, &format!("a close by {via:?}"), 0).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_more_than_a_stray_request_is_closed() {
    let fixture = Fixture::start().await;
    let mut polite = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    client
        .response()
        .transport()
        .write_all(&[b'x'; 16 * 1024])
        .await
        .unwrap();
    fixture.publish("orders.1.x", "16 KiB are borne").await;
    assert_eq!(client.next().await.data, "16 KiB are borne");
    client.response().transport().write_all(b"x").await.unwrap();
    assert_ne!(client.closed().await, End::Terminated);
    gone(&fixture, "a client that talked too much", 1).await;
    fixture.publish("orders.1.x", "others go on").await;
    assert_eq!(polite.take(2).await[1].data, "others go on");
}

#[tokio::test]
async fn rst_stream_releases_only_its_stream() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut kept = connection.get("/orders").await;
    let also_kept = connection.get("/news").await;
    let left = connection.get("/orders").await;
    assert_eq!(fixture.connections().await, 3);
    left.reset();
    gone(&fixture, "RST_STREAM of one of three", 2).await;
    fixture.publish("orders.1.x", "the others go on").await;
    assert_eq!(kept.next().await.data, "the others go on");
    let mut again = connection.get("/orders").await;
    fixture
        .publish("orders.1.x", "and the connection takes new ones")
        .await;
    assert_eq!(again.next().await.data, "and the connection takes new ones");
    drop((also_kept, connection));
    gone(&fixture, "the close of the whole connection", 0).await;
}

#[tokio::test]
async fn a_client_that_half_closes_counts_as_gone_and_still_gets_other_responses() {
    let fixture = Fixture::start().await;
    // The FIN may arrive with the request or after it.
    let others = std::iter::repeat_n(("/nowhere", false), 50);
    for (target, is_event_stream) in others.chain([("/orders", true)]) {
        let url = fixture.sidestream.url(target).parse().unwrap();
        let mut transport = Connector::default().connect(&url).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        transport.write_all(request.as_bytes()).await.unwrap();
        transport.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // This response ends at once; an event stream may be truncated.
        let read = tokio::time::timeout(AT_ONCE, transport.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{target} ends");
        let answer = String::from_utf8_lossy(&answer);
        if is_event_stream {
            assert!(!answer.contains("sidestream.close"), "{answer}");
            gone(&fixture, "a FIN after the request", 0).await;
        } else {
            assert!(
                answer.contains("404") && answer.contains("not_found"),
                "{answer}"
            );
        }
    }
}
