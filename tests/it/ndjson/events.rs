//! Lines of events, positions and heartbeats, on every transport.

use serde_json::{Value, json};

use super::{Fixture, Via};

/// Returns a line without its id, which must be there.
fn without_id(mut line: Value) -> Value {
    let id = line.as_object_mut().unwrap().remove("id");
    assert!(id.is_some_and(|id| id.is_string()), "{line}");
    line
}

#[tokio::test]
async fn events_of_every_kind_are_lines_on_every_transport() {
    let fixture = Fixture::start().await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders?user=1", "").await;
        assert_eq!(reader.status(), 200, "{via:?}");
        let header = |name| reader.header(name).unwrap_or_default();
        assert_eq!(header("content-type"), "application/x-ndjson");
        assert_eq!(header("vary"), "accept");
        assert_eq!(header("cache-control"), "no-store, no-transform");
        assert_eq!(header("incremental"), "?1");
        assert_eq!(
            reader.next().await,
            json!({ "control": "open", "retry": 3000 })
        );
        assert_eq!(
            without_id(reader.next().await),
            json!({ "control": "position" })
        );
        readers.push((via, reader));
    }
    let large = "y".repeat(100_000);
    let expected = [
        ("{\"a\":\r\n [1, null]}", None, json!({ "a": [1, null] })),
        ("plain \"text\"\n", None, json!("plain \"text\"\n")),
        ("", Some("empty"), json!("")),
        ("\"\u{2028}\"", Some("it's \"é\""), json!("\u{2028}")),
        (&*large, None, json!(large)),
    ];
    for (payload, name, _) in &expected {
        fixture
            .publish_named("orders.1.x", *name, payload.to_string())
            .await;
    }
    fixture.publish("orders.2.x", &b"\xff\0"[..]).await;
    for (via, reader) in &mut readers {
        for (_, name, data) in &expected {
            let mut line = json!({ "subject": "orders.1.x", "data": data });
            if let Some(name) = name {
                line["event"] = (*name).into();
            }
            assert_eq!(without_id(reader.next().await), line, "{via:?}");
        }
        assert_eq!(
            without_id(reader.next().await),
            json!({ "subject": "orders.2.x", "base64": "/wA=" })
        );
    }
}

#[tokio::test]
async fn many_small_events_arrive_in_order_on_every_transport() {
    let fixture = Fixture::start().await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        readers.push(fixture.open(via, "/orders?user=1", "").await);
    }
    for number in 0..500u64 {
        fixture
            .publish(&format!("orders.{number}.x"), number.to_string())
            .await;
    }
    for reader in &mut readers {
        let events = reader.events(500).await;
        assert_eq!(super::numbers(&events), (0..500).collect::<Vec<_>>());
    }
    // A client that resumes receives copies of many events in one write.
    let first = readers[0]
        .last_event_id()
        .split('-')
        .next()
        .unwrap()
        .to_owned();
    for via in Via::ALL {
        let mut reader = fixture
            .open(via, "/orders?user=1", &format!("{first}-0"))
            .await;
        let events = reader.events(500).await;
        assert_eq!(super::numbers(&events), (0..500).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn route_names_events_without_a_name_of_their_own() {
    let fixture = Fixture::start().await;
    let mut reader = fixture.open(Via::Http11, "/named", "").await;
    fixture.publish("orders.1.paid", "1").await;
    fixture
        .publish_named("orders.1.paid", Some("own"), "2")
        .await;
    let events = reader.events(2).await;
    assert_eq!(events[0]["event"], "paid");
    assert_eq!(events[1]["event"], "own");
}

#[tokio::test]
async fn heartbeat_of_an_idle_stream_is_an_empty_line() {
    let fixture = Fixture::start().await;
    for via in [Via::Http11, Via::TlsH2] {
        let mut reader = fixture.open(via, "/orders?user=1", "").await;
        reader.until_heartbeats(2).await;
        fixture.publish("orders.1.x", "7").await;
        assert_eq!(super::numbers(&reader.events(1).await), [7]);
    }
}

#[tokio::test]
async fn events_of_several_sources_have_the_positions_of_all() {
    let fixture = Fixture::start().await;
    let client = fixture.jetstream.client();
    for via in [Via::Http11, Via::H2] {
        let mut reader = fixture.open(via, "/both", "").await;
        reader.until_control("position").await;
        let mut ids = vec![reader.last_event_id().to_owned()];
        for number in 0..10u64 {
            fixture.publish("orders.1.x", number.to_string()).await;
            client
                .publish("news.1", number.to_string().into())
                .await
                .unwrap();
            client.flush().await.unwrap();
            for event in reader.events(2).await {
                assert_eq!(event["data"], number);
                ids.push(event["id"].as_str().unwrap().to_owned());
            }
        }
        assert!(ids.iter().all(|id| id.split('.').count() == 2), "{ids:?}");
        let mut resumed = fixture.open(via, "/both", &ids[ids.len() - 5]).await;
        let events = resumed.events(4).await;
        let mut data = super::numbers(&events);
        data.sort_unstable();
        assert_eq!(data, [8, 8, 9, 9], "two sources, each from its position");
    }
}

#[tokio::test]
async fn framing_is_a_label_of_metrics_and_a_field_of_connections_and_the_log() {
    let fixture = Fixture::start().await;
    let streams = async |framing| {
        let labels = [("route", "/orders"), ("framing", framing)];
        let metric = |name| fixture.sidestream.metric(name, &labels);
        let (open, opened) = (
            metric("sidestream_streams").await,
            metric("sidestream_streams_opened_total").await,
        );
        (open, opened)
    };
    let page = fixture.sidestream.admin("/metrics").await.1;
    let at_zero = r#"sidestream_streams{framing="ndjson",protocol="h2",route="/orders"} 0"#;
    assert!(page.contains(at_zero), "closed labels start at zero");
    let reader = fixture.open(Via::H2, "/orders?user=7", "").await;
    assert_eq!(streams("ndjson").await, (1.0, 1.0));
    assert_eq!(streams("sse").await, (0.0, 0.0));
    let connections = fixture.sidestream.admin_json("/connections").await;
    assert_eq!(connections["connections"][0]["framing"], "ndjson");
    let opened = fixture
        .sidestream
        .until_message("event stream opened")
        .await;
    assert_eq!(opened["framing"], "ndjson");
    drop(reader);
    let labels = [("route", "/orders"), ("framing", "ndjson")];
    fixture
        .sidestream
        .until_metric("sidestream_streams", &labels, |open| open == 0.0)
        .await;
    assert_eq!(streams("ndjson").await, (0.0, 1.0));
}
