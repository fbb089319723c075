//! Response headers and first bytes of an event stream.

use serde_json::Value;

use super::reader::{Via, url};
use super::{Fixture, Setting, sequence};
use testkit::h2::H2Client;
use testkit::http1;
use testkit::nats::free_port;
use testkit::sse::{End, SseClient};

/// Headers of every event stream, without those of the connection.
fn assert_head(via: Via, header: impl Fn(&str) -> Option<String>) {
    let wanted = [
        ("content-type", Some("text/event-stream")),
        ("cache-control", Some("no-store, no-transform")),
        ("x-accel-buffering", Some("no")),
        ("incremental", Some("?1")),
        ("connection", (via.protocol() != "h2").then_some("close")),
        ("keep-alive", None),
        ("content-length", None),
        ("content-encoding", None),
    ];
    for (name, value) in wanted {
        assert_eq!(header(name).as_deref(), value, "{name} by {via:?}");
    }
}

#[tokio::test]
async fn an_event_stream_has_the_same_headers_and_first_bytes_on_every_protocol() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        for path in ["/orders/1", "/news", "/both"] {
            let mut reader = fixture.open(via, path).await;
            assert_eq!(reader.status(), 200);
            assert_head(via, |name| reader.header(name));
            let chunked = via.protocol() == "http/1.1";
            assert_eq!(
                reader.header("transfer-encoding").as_deref(),
                chunked.then_some("chunked"),
                "{via:?}"
            );
            let id = reader.positioned().await;
            assert!(
                id.bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'.' | b'-')),
                "{id:?}"
            );
            assert!(id.len() <= 128, "{id:?}");
            assert_eq!(reader.retry(), Some(3000));
        }
    }
}

#[tokio::test]
async fn the_first_bytes_are_a_retry_and_a_position_event() {
    let fixture = Fixture::with_route("retry: 1500ms").await;
    for http10 in [false, true] {
        let request = SseClient::get(fixture.sidestream.url("/orders"));
        let mut client = if http10 { request.http10() } else { request }
            .connect()
            .await;
        client.positioned().await;
        let expected = format!(
            "retry: 1500\nevent: sidestream.position\ndata: {{}}\nid: {}\n\n",
            client.last_event_id()
        );
        assert_eq!(String::from_utf8_lossy(client.wire()), expected);
    }
}

#[tokio::test]
async fn a_live_start_is_at_the_head_and_a_resume_at_the_position_of_the_client() {
    let fixture = Fixture::start().await;
    for number in 1..=3 {
        fixture
            .publish("orders.1.created", number.to_string())
            .await;
    }
    let mut witness = fixture.open(Via::Http11, "/orders").await;
    let head = witness.positioned().await;
    // The sidecar may have opened it before the third message arrived.
    fixture.publish("orders.1.created", "4").await;
    let fourth = witness
        .take(4 - sequence(&head, 0) as usize)
        .await
        .pop()
        .unwrap();
    assert_eq!((sequence(&fourth.id, 0), &*fourth.data), (4, "4"));
    for via in Via::ALL {
        assert_eq!(
            fixture.open(via, "/orders").await.positioned().await,
            fourth.id,
            "{via:?}"
        );
        let mut resumed = fixture.resume(via, "/orders", &head).await;
        resumed
            .until_seen("the client gets its own position", |parser| {
                parser.last_event_id() == head
            })
            .await;
    }
}

#[tokio::test]
async fn without_checkpoints_no_block_has_only_a_position() {
    let fixture = Fixture::with_route("checkpoint: null").await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    fixture.publish("orders.1.created", "x").await;
    let event = client.next().await;
    let expected = format!("retry: 3000\ndata: x\nid: {}\n\n", event.id);
    assert_eq!(String::from_utf8_lossy(client.wire()), expected);
}

#[tokio::test]
async fn head_returns_the_headers_and_opens_no_event_stream() {
    let monitor = free_port();
    let nats = format!("http: \"127.0.0.1:{monitor}\"");
    let fixture = Fixture::with(Setting {
        nats: &nats,
        ..Setting::default()
    })
    .await;
    for path in ["/orders/1", "/news"] {
        for via in Via::ALL {
            let url = url(&fixture, via, path);
            if via.protocol() == "h2" {
                let mut client = H2Client::builder()
                    .tls(fixture.tls("h2"))
                    .connect(&url)
                    .await;
                let mut answer = client.request("HEAD", path, &[]).await;
                assert_eq!(answer.status(), 200);
                assert_head(via, |name| answer.header(name).map(str::to_owned));
                assert_eq!(
                    (answer.closed().await, answer.sizes().len()),
                    (End::Terminated, 0)
                );
                continue;
            }
            let request = SseClient::get(url).tls(fixture.tls("http/1.1")).head();
            let mut answer = if via == Via::Http10 {
                request.http10()
            } else {
                request
            }
            .connect()
            .await;
            assert_eq!(answer.status(), 200);
            assert_head(via, |name| answer.header(name));
            assert!(
                answer.fin().await,
                "{via:?}: nothing follows, and the connection ends as it says"
            );
        }
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams_opened_total", &[])
            .await,
        0.0
    );
    assert_eq!(
        fixture.sidestream.metric("sidestream_feeds", &[]).await,
        0.0
    );
    let connections = http1::get(&format!("http://127.0.0.1:{monitor}/connz?subs=1"))
        .await
        .unwrap()
        .json();
    let subscriptions: Vec<&Value> = connections["connections"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|connection| connection["subscriptions_list"].as_array())
        .flatten()
        .collect();
    assert!(
        !subscriptions.iter().any(|subject| *subject == "news.>"),
        "{subscriptions:?}"
    );
}

/// Addresses of all clients in `/connections`.
async fn clients(fixture: &Fixture) -> Vec<String> {
    let listed = fixture.sidestream.admin_json("/connections").await;
    let client = |connection: &Value| connection["client"].as_str().unwrap().to_owned();
    listed["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(client)
        .collect()
}

#[tokio::test]
async fn forwarded_addresses_from_a_client_are_not_trusted_in_any_form() {
    for (header, ignored, prefix) in [
        ("x-forwarded-for", "forwarded", ""),
        ("forwarded", "x-forwarded-for", "for="),
    ] {
        let rest = format!("trusted_proxies: [\"127.0.0.0/8\"]\nforwarded_header: {header}");
        let fixture = Fixture::with_rest(&rest).await;
        for spoofed in [
            "6.6.6.6",
            "unknown",
            "_hidden",
            "",
            "\"",
            "6.6.6.6:80",
            "\"[2001:db8::6]:80\"",
            "6.6.6.6, unknown",
        ] {
            // Appended by the proxy, to the line of the client and as another line.
            let appended = format!("{prefix}{spoofed}, {prefix}192.0.2.7");
            let (alone, seen) = (format!("{prefix}{spoofed}"), format!("{prefix}192.0.2.7"));
            for lines in [&[appended.as_str()][..], &[alone.as_str(), seen.as_str()]] {
                let mut request = SseClient::get(fixture.sidestream.url("/orders"))
                    .header(ignored, "for=6.6.6.6");
                for line in lines {
                    request = request.header(header, line);
                }
                let mut client = request.connect().await;
                client.positioned().await;
                assert!(
                    clients(&fixture).await.contains(&"192.0.2.7".to_owned()),
                    "{header} {lines:?}"
                );
                client.reset();
                fixture
                    .sidestream
                    .until_metric("sidestream_streams", &[], |streams| streams == 0.0)
                    .await;
            }
        }
        // Without an address from the proxy, the address of the proxy itself is the client's.
        let request =
            SseClient::get(fixture.sidestream.url("/orders")).header(header, "6.6.6.6, unknown");
        let mut client = request.connect().await;
        client.positioned().await;
        assert_eq!(clients(&fixture).await, ["127.0.0.1"], "{header}");
    }
}
