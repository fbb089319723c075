//! Events as clients receive them: names, payloads and ids.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;
use sidestream::encoding::{Envelope, EventParts, Framing};
use sidestream::event::{EventName, Fingerprint, Position, SourceTag};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::reader::Via;
use super::{Fixture, sequence};
use testkit::sse::{Event, SseClient};
use testkit::sse_parser::Parser;

#[tokio::test]
async fn an_event_name_is_from_the_publisher_or_else_from_the_route() {
    let fixture = Fixture::start().await;
    let mut plain = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    let mut named = SseClient::get(fixture.sidestream.url("/named"))
        .connect()
        .await;
    fixture.publish_named("orders.1.created", "born", "a").await;
    fixture.publish("orders.1.changed", "b").await;
    let names = |events: Vec<Event>| {
        events
            .into_iter()
            .map(|event| event.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(plain.take(2).await), ["born", "message"]);
    assert_eq!(names(named.take(2).await), ["born", "changed"]);
    let wire = String::from_utf8_lossy(plain.wire()).into_owned();
    assert_eq!(
        wire.matches("event:").count(),
        2,
        "a position and one name: an event without a name has no such field: {wire}"
    );
}

#[tokio::test]
async fn payloads_arrive_unchanged_with_every_line_end_as_lf() {
    let fixture = Fixture::start().await;
    let payloads = [
        "one line",
        "",
        "\n",
        "a\nb",
        "a\r\nb",
        "a\rb",
        "a\n\rb",
        "ends\n",
        "ends\r\n",
        "\r\n\r\n",
        " leading space",
        ": no comment",
        "id: 7\ndata: x\n\nretry: 1",
        "{\"grüße\": \"☃ 𝄞\"}",
        "nul \0, bell \u{7}, next line \u{85}, separator \u{2028}",
        "\u{feff}no byte order mark",
    ];
    for via in Via::ALL {
        let mut orders = fixture.open(via, "/orders").await;
        let mut news = fixture.open(via, "/news").await;
        for payload in payloads {
            fixture.publish("orders.1.created", payload).await;
            fixture.publish_core("news.today", payload).await;
        }
        for payload in payloads {
            let expected = payload.replace("\r\n", "\n").replace('\r', "\n");
            for reader in [&mut orders, &mut news] {
                let event = reader.next().await;
                assert_eq!(
                    (&*event.name, &event.data),
                    ("message", &expected),
                    "{via:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_payload_that_is_not_utf8_is_base64_under_another_event_name() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders").await;
        fixture.publish("orders.1.image", &b"\xff\xfe\n"[..]).await;
        fixture
            .publish_named("orders.1.image", "image", &b"\x89PNG\r\n"[..])
            .await;
        let [plain, named] = <[Event; 2]>::try_from(reader.take(2).await).unwrap();
        assert_eq!(
            (&*plain.name, BASE64.decode(&plain.data).unwrap()),
            ("message;base64", b"\xff\xfe\n".to_vec())
        );
        assert_eq!(
            (&*named.name, BASE64.decode(&named.data).unwrap()),
            ("image;base64", b"\x89PNG\r\n".to_vec())
        );
    }
}

#[tokio::test]
async fn the_id_is_the_last_field_of_an_event() {
    let fixture = Fixture::start().await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    client.positioned().await;
    let opening = client.wire().len();
    fixture
        .publish_named("orders.1.created", "created", "one\ntwo")
        .await;
    let event = client.next().await;
    let expected = format!("event: created\ndata: one\ndata: two\nid: {}\n\n", event.id);
    assert_eq!(String::from_utf8_lossy(&client.wire()[opening..]), expected);
}

/// Publishes with raw headers that no library would send.
async fn publish_raw(fixture: &Fixture, subject: &str, name: &[u8], payload: &str) {
    let mut socket = TcpStream::connect(("127.0.0.1", fixture.nats.port()))
        .await
        .unwrap();
    let headers = [b"NATS/1.0\r\nSidestream-Event: ", name, b"\r\n\r\n"].concat();
    let (head, all) = (headers.len(), headers.len() + payload.len());
    let mut text = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    text.extend(format!("HPUB {subject} {head} {all}\r\n").bytes());
    text.extend([&headers[..], payload.as_bytes(), b"\r\nPING\r\n"].concat());
    socket.write_all(&text).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"PONG\r\n") {
        assert_ne!(
            socket.read_buf(&mut answer).await.unwrap(),
            0,
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn an_event_name_with_a_line_end_is_dropped_and_counted() {
    let fixture = Fixture::start().await;
    let mut orders = fixture.open(Via::Http11, "/orders").await;
    let mut news = fixture.open(Via::H2, "/news").await;
    orders.positioned().await;
    news.positioned().await;
    let names: [&[u8]; 4] = [b"nul\0", b"bell\x07", b"sidestream.close", &[b'x'; 200]];
    for (place, name) in names.into_iter().enumerate() {
        publish_raw(&fixture, "orders.1.x", name, &place.to_string()).await;
        publish_raw(&fixture, "news.x", name, &place.to_string()).await;
    }
    for place in 0..names.len() {
        for reader in [&mut orders, &mut news] {
            let event = reader.next().await;
            assert_eq!((&*event.name, event.data), ("message", place.to_string()));
        }
    }
    let refused = fixture
        .sidestream
        .metric(
            "sidestream_events_rejected_total",
            &[("reason", "event_name")],
        )
        .await;
    assert_eq!(refused, 8.0, "four names on each source");
}

#[tokio::test]
async fn a_header_value_with_a_carriage_return_does_not_stop_a_source() {
    let fixture = Fixture::start().await;
    let mut orders = fixture.open(Via::Http11, "/orders").await;
    let mut news = fixture.open(Via::H2, "/news").await;
    for number in 0..3 {
        fixture
            .publish("orders.1.x", format!("before {number}"))
            .await;
    }
    // A single CR does not end a line in NATS.
    publish_raw(&fixture, "orders.1.x", b"a\rdata: forged", "poison").await;
    publish_raw(&fixture, "news.x", b"a\rdata: forged", "poison").await;
    fixture.publish("orders.1.x", "after").await;

    let data: Vec<_> = orders
        .take(5)
        .await
        .into_iter()
        .map(|event| (event.name, event.data))
        .collect();
    let message = |data: &str| ("message".to_owned(), data.to_owned());
    let expected = [
        message("before 0"),
        message("before 1"),
        message("before 2"),
        message("poison"),
        message("after"),
    ];
    assert_eq!(data, expected, "every event once, in order");
    fixture.publish_core("news.x", "after").await;
    let data: Vec<_> = news
        .take(2)
        .await
        .into_iter()
        .map(|event| (event.name, event.data))
        .collect();
    assert_eq!(data, [message("poison"), message("after")]);
    let refused = fixture
        .sidestream
        .metric(
            "sidestream_events_rejected_total",
            &[("reason", "event_name")],
        )
        .await;
    assert_eq!(refused, 2.0, "one name on each source");
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await,
        0.0
    );
}

#[tokio::test]
async fn an_event_stream_of_two_sources_has_ids_with_two_positions() {
    let fixture = Fixture::start().await;
    for via in [Via::Http11, Via::H2] {
        let mut reader = fixture.open(via, "/both").await;
        reader.positioned().await;
        for number in 0..20 {
            fixture
                .publish("orders.1.x", format!("order {number}"))
                .await;
            fixture
                .publish_core("news.x", format!("news {number}"))
                .await;
        }
        let events = reader.take(40).await;
        for kind in ["order", "news"] {
            let seen: Vec<_> = events
                .iter()
                .filter(|event| event.data.starts_with(kind))
                .collect();
            let numbers: Vec<_> = (0..20).map(|number| format!("{kind} {number}")).collect();
            assert_eq!(
                seen.iter()
                    .map(|event| event.data.clone())
                    .collect::<Vec<_>>(),
                numbers,
                "{via:?}"
            );
        }
        let mut before = (0, 0);
        for event in &events {
            assert_eq!(event.id.split('.').count(), 2, "{}", event.id);
            let now = (sequence(&event.id, 0), sequence(&event.id, 1));
            let moved = if event.data.starts_with("order") {
                now.0 > before.0
            } else {
                now.1 > before.1
            };
            assert!(
                moved && now.0 >= before.0 && now.1 >= before.1,
                "{before:?}, then {now:?}"
            );
            before = now;
        }
        let mut resumed = fixture.resume(via, "/both", &events[17].id).await;
        let mut rest: Vec<_> = resumed
            .take(22)
            .await
            .into_iter()
            .map(|event| event.data)
            .collect();
        let mut owed: Vec<_> = events[18..]
            .iter()
            .map(|event| event.data.clone())
            .collect();
        // The order between sources is undefined.
        rest.sort();
        owed.sort();
        assert_eq!(rest, owed, "{via:?}");
    }
}

/// Bytes in which line ends, colons, fields and broken UTF-8 are frequent.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\r".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"data: ".to_vec()),
        Just(b"id: 1".to_vec()),
        Just(b"\xef\xbb\xbf".to_vec()),
        Just(b"\xff".to_vec()),
        "\\PC{0,8}".prop_map(String::into_bytes),
        any::<char>().prop_map(|char| char.to_string().into_bytes()),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn an_independent_parser_returns_every_payload_and_name_unchanged(
        payloads in prop::collection::vec((payload(), prop::option::of("\\PC{1,40}")), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (seq, (payload, name)) in (1..).zip(&payloads) {
            let position = Position { tag: SourceTag::of_identity("t"), seq, fingerprint: Some(Fingerprint::of_publish_time(7)) };
            let name = name.as_deref().and_then(EventName::parse);
            let parts = EventParts { name: name.as_ref(), subject: "a", data: payload, position };
            let encoding = Framing::Sse.encoder().event(parts, Envelope::NONE);
            wire.extend_from_slice(encoding.bytes());
            let name = name.as_ref().map_or("message", EventName::as_str);
            let (name, data) = match std::str::from_utf8(payload) {
                Ok(text) => (name.to_owned(), text.replace("\r\n", "\n").replace('\r', "\n")),
                Err(_) => (format!("{name};base64"), BASE64.encode(payload)),
            };
            expected.push(Event { name, data, id: position.to_string() });
        }
        let cut = cut.index(wire.len());
        let mut parser = Parser::default();
        let mut events = parser.feed(&wire[..cut]);
        events.extend(parser.feed(&wire[cut..]));
        prop_assert_eq!(events, expected);
        prop_assert!(!parser.mid_block());
    }
}
