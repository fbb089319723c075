//! Events, positions, heartbeats, drain and metrics.

use serde_json::{Value, json};

use super::{Fixture, Via};
use testkit::ndjson;
use testkit::wait::DEADLINE;
use testkit::websocket::{Frame, SUBPROTOCOL};

#[tokio::test]
async fn client_receives_the_objects_of_ndjson_as_messages_on_every_transport() {
    let fixture = Fixture::start().await;
    let url = fixture.sidestream.url("/orders");
    let mut lines = ndjson::Request::new(&url).send().await;
    lines.until_control("position").await;
    for via in Via::ALL {
        let mut socket = fixture.request(via, "/orders").open().await;
        assert_eq!(socket.header("sec-websocket-protocol"), Some(SUBPROTOCOL));
        assert_eq!(
            socket.object().await,
            json!({ "control": "open", "retry": 3000 })
        );
        assert_eq!(socket.object().await["control"], "position");
        let payloads: [&[u8]; 5] = [
            b"{\"a\":\n1}",
            b"plain text",
            b"\xff\xfe",
            &[b'x'; 300],
            &[b'y'; 100_000],
        ];
        for payload in payloads {
            fixture.publish("orders.1", payload.to_vec()).await;
        }
        let expected = lines.events(payloads.len()).await;
        assert_eq!(socket.events(payloads.len()).await, expected, "{via:?}");
    }
}

#[tokio::test]
async fn client_of_several_sources_receives_ids_of_all_positions() {
    let fixture = Fixture::start().await;
    let client = fixture.nats.client().await;
    for via in Via::ALL {
        let mut socket = fixture.open(via, "/both").await;
        fixture.publish("orders.1", "1").await;
        let [order] = &socket.events(1).await[..] else {
            panic!("an event");
        };
        client.publish("news.1", "2".into()).await.unwrap();
        client.flush().await.unwrap();
        let [news] = &socket.events(1).await[..] else {
            panic!("an event");
        };
        assert_eq!((&order["data"], &news["data"]), (&json!(1), &json!(2)));
        assert!(news["id"].as_str().unwrap().contains('.'), "{news}");
    }
}

#[tokio::test]
async fn heartbeats_are_pings_and_the_pings_of_a_client_are_answered() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut socket = fixture.open(via, "/orders").await;
        assert_eq!(socket.next().await, Frame::Ping(Vec::new()), "{via:?}");
        socket.send(0x8a, b"").await;
        socket.send(0x89, b"are you there?").await;
        loop {
            match socket.next().await {
                Frame::Ping(_) => {}
                frame => {
                    assert_eq!(frame, Frame::Pong(b"are you there?".to_vec()), "{via:?}");
                    break;
                }
            }
        }
        fixture.publish("orders.1", "1").await;
        assert_eq!(socket.events(1).await[0]["data"], 1);
    }
}

#[tokio::test]
async fn pings_during_a_burst_of_events_are_answered_between_whole_messages() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut socket = fixture.open(via, "/orders").await;
        // More than the buffers of the socket have room for, while nothing is read.
        let flood = testkit::websocket::masked(0x89, &[b'p'; 100]).repeat(500);
        for number in 0..40_u32 {
            let payload = format!("[{number},\"{}\"]", "x".repeat(20_000));
            fixture.publish("orders.1", payload).await;
            if number % 8 == 0 {
                socket.send_bytes(&flood).await;
            }
        }
        let mut next = 0;
        let mut pongs = 0;
        while next < 40 || pongs < 2500 {
            match socket.next().await {
                Frame::Text(text) => {
                    let event: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(event["data"][0], next, "{via:?}");
                    next += 1;
                }
                Frame::Pong(content) => {
                    assert_eq!(content, [b'p'; 100]);
                    pongs += 1;
                }
                Frame::Ping(_) => {}
                frame => panic!("{frame:?} on {via:?}"),
            }
        }
    }
}

#[tokio::test]
async fn drained_client_resumes_on_another_pod_without_loss() {
    let mut fixture = Fixture::start().await;
    let mut sockets = Vec::new();
    for via in Via::ALL {
        sockets.push((via, fixture.open(via, "/query").await));
    }
    fixture.publish("orders.1", "1").await;
    fixture.sidestream.terminate();
    let mut positions = Vec::new();
    for (via, socket) in &mut sockets {
        let (before, close) = socket.until_control("close").await;
        assert_eq!(before[0]["data"], 1);
        assert_eq!(close["reason"], "drain");
        assert!((600..=900).contains(&close["retry"].as_u64().unwrap()));
        assert_eq!(socket.next().await, Frame::Close(1001, "drain".into()));
        socket.send(0x88, &1001_u16.to_be_bytes()).await;
        assert_eq!(socket.next().await, Frame::End, "{via:?}");
        positions.push((*via, socket.last_event_id().to_owned()));
    }
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    fixture.publish("orders.1", "2").await;
    fixture.sidestream = fixture.pod().await;
    for (via, id) in positions {
        // Browsers cannot set headers: the position is in the query.
        let mut socket = fixture
            .request(via, &format!("/query?after={id}"))
            .open()
            .await;
        fixture.publish("orders.2", "3").await;
        assert_eq!(socket.events(1).await[0]["data"], 2, "{via:?}");
    }
}

#[tokio::test]
async fn finite_event_stream_ends_with_a_regular_close_also_for_a_client_that_returns() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut socket = fixture.open(via, "/run").await;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Sidestream-End", "true");
        let subject = "orders.1".to_owned();
        let sent = fixture
            .jetstream
            .publish_with_headers(subject, headers, "1".into());
        sent.await.unwrap().await.unwrap();
        let (before, _) = socket.until_control("end").await;
        assert_eq!(before[0]["data"], 1);
        assert_eq!(socket.next().await, Frame::Close(1000, "end".into()));
        let path = format!("/run?last_event_id={}", socket.last_event_id());
        let mut socket = fixture.request(via, &path).open().await;
        assert_eq!(
            socket.next().await,
            Frame::Close(1000, "end".into()),
            "{via:?}"
        );
        let url = fixture.sidestream.url(&path);
        let headers = [("Accept", "application/json")];
        let poll = testkit::http1::request("GET", &url, &headers).await;
        assert_eq!(poll.unwrap().status, 204);
    }
}

#[tokio::test]
async fn client_changes_the_framing_without_loss() {
    let fixture = Fixture::start().await;
    let mut socket = fixture.open(Via::Http11, "/orders").await;
    fixture.publish("orders.1", "1").await;
    socket.events(1).await;
    let id = socket.last_event_id().to_owned();
    drop(socket);
    fixture.publish("orders.1", "2").await;
    let url = fixture.sidestream.url("/orders");
    let request = ndjson::Request {
        last_event_id: &id,
        ..ndjson::Request::new(&url)
    };
    let mut lines = request.send().await;
    assert_eq!(lines.events(1).await[0]["data"], 2);
    let id = lines.last_event_id().to_owned();
    fixture.publish("orders.1", "3").await;
    let mut request = fixture.request(Via::H2, "/orders");
    request.headers.push(("last-event-id", &id));
    let mut socket = request.open().await;
    assert_eq!(socket.events(1).await[0]["data"], 3);
}

#[tokio::test]
async fn unknown_position_is_a_gap() {
    let fixture = Fixture::start().await;
    let mut socket = fixture
        .request(Via::Http11, "/orders?last_event_id=invalid")
        .open()
        .await;
    let (_, gap) = socket.until_control("gap").await;
    assert_eq!(gap["reason"], "invalid");
    fixture.publish("orders.1", "1").await;
    assert_eq!(socket.events(1).await[0]["data"], 1);
}

#[tokio::test]
async fn metrics_and_the_list_of_connections_name_the_framing() {
    let fixture = Fixture::start().await;
    let sockets = [
        fixture.open(Via::Http11, "/orders").await,
        fixture.open(Via::H2, "/orders").await,
    ];
    for protocol in ["http/1.1", "h2"] {
        let labels = [
            ("route", "/orders"),
            ("protocol", protocol),
            ("framing", "websocket"),
        ];
        let open = fixture.sidestream.metric("sidestream_streams", &labels);
        assert_eq!(open.await, 1.0, "{protocol}");
    }
    let list = fixture.sidestream.admin_json("/connections").await;
    for connection in list["connections"].as_array().unwrap() {
        assert_eq!(connection["framing"], "websocket");
    }
    drop(sockets);
    let all = [("route", "/orders"), ("framing", "websocket")];
    fixture
        .sidestream
        .until_metric("sidestream_streams", &all, |open| open == 0.0)
        .await;
}
