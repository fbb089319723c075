//! Versions over WebSocket and in long polls.

use serde_json::{Value, json};
use testkit::grpc::{Call, Form};
use testkit::http1::{self, Answer};
use testkit::websocket::Request;

use super::{Fixture, payloads};

const NEW: &str = r#"{"customer":{"name":"Ada"}}"#;

/// Polls once with version 1, and waits for an event at a known position.
async fn poll(fixture: &Fixture, id: &str) -> (Answer, Value) {
    let wait = if id.is_empty() { "0s" } else { "5s" };
    let path = format!("/orders?version=1&wait={wait}&last_event_id={id}");
    let headers = [("Accept", "application/json")];
    let response = http1::request("GET", &fixture.sidestream.url(&path), &headers).await;
    let response = response.unwrap();
    assert_eq!(response.status, 200);
    let answer = response.json();
    (response, answer)
}

fn websocket(fixture: &Fixture, version: &str, is_h2: bool) -> Request<'static> {
    let url = fixture
        .sidestream
        .url(&format!("/orders?version={version}"));
    Request {
        is_h2,
        ..Request::new(url)
    }
}

#[tokio::test]
async fn every_framing_shows_the_version_and_an_event_is_converted_once_for_all() {
    let fixture = Fixture::start().await;
    let (_, begin) = poll(&fixture, "").await;
    let mut events = fixture.sse("/orders?version=1").await;
    let mut lines = fixture.ndjson("/orders?version=1", "").await;
    let mut messages = websocket(&fixture, "1", false).open().await;
    let mut over_http2 = websocket(&fixture, "1", true).open().await;
    let mut current = websocket(&fixture, "2", false).open().await;
    let base = fixture.sidestream.url("");
    let mut calls = Vec::new();
    for form in [Form::Grpc, Form::WebHttp1] {
        let call = Call::new(form, base.clone(), "/orders?version=1", "");
        let mut call = call.send().await;
        call.until("position").await;
        calls.push(call);
    }
    fixture.publish("orders.1", "2", NEW).await;
    fixture.publish("orders.1", "2", "no JSON").await;

    let (expected, gap) = (json!({ "name": "Ada" }), "conversion");
    assert_eq!(
        payloads(&mut events, 2).await,
        [expected.to_string().as_str(), super::GAP]
    );
    assert_eq!(lines.events(1).await[0]["data"], expected);
    assert_eq!(lines.until_control("gap").await.1["reason"], gap);
    for client in [&mut messages, &mut over_http2] {
        assert_eq!(client.events(1).await[0]["data"], expected);
        assert_eq!(client.until_control("gap").await.1["reason"], gap);
    }
    for call in &mut calls {
        let data = call.events(1).await[0].data();
        assert_eq!(data, expected.to_string().as_bytes());
        assert_eq!(call.until("gap").await.reason(), gap);
    }
    assert_eq!(
        current.events(1).await[0]["data"]["customer"]["name"],
        "Ada"
    );
    let (mut id, mut received) = (begin["id"].clone(), Vec::new());
    while received.len() < 2 {
        let (_, answer) = poll(&fixture, id.as_str().unwrap()).await;
        received.extend(answer["events"].as_array().unwrap().clone());
        id = answer["id"].clone();
    }
    assert_eq!(received[0]["data"], expected);
    assert_eq!(received[1]["reason"], gap);
    assert_eq!(fixture.conversions("/orders", "1", "converted").await, 1.0);
    assert_eq!(fixture.conversions("/orders", "1", "failed").await, 1.0);
}

#[tokio::test]
async fn handshakes_and_polls_name_the_version_and_its_end() {
    let fixture = Fixture::start().await;
    let (polled, _) = poll(&fixture, "").await;
    for is_h2 in [false, true] {
        let client = websocket(&fixture, "1", is_h2).open().await;
        for (name, value) in [
            ("sidestream-version", "1"),
            ("deprecation", "@1793491200"),
            ("sunset", "Fri, 01 Mar 2999 12:00:00 GMT"),
            ("link", "<https://example.com/v2?a=b>; rel=\"deprecation\""),
        ] {
            assert_eq!(client.header(name), Some(value), "HTTP/2: {is_h2}");
            assert_eq!(polled.header(name).as_deref(), Some(value));
        }
        let rejected = websocket(&fixture, "3", is_h2).try_open().await;
        let rejected = rejected.err().unwrap();
        assert_eq!(rejected.status, 406);
        assert!(
            rejected.body.contains("version_not_supported"),
            "{rejected:?}"
        );
        let current = websocket(&fixture, "2", is_h2).open().await;
        assert_eq!(current.header("sidestream-version"), Some("2"));
        assert_eq!(current.header("deprecation"), None);
    }
    fixture.until_streams("/orders", "1", 0.0).await;
}
