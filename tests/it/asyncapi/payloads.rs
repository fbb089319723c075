//! Messages of the sidecar against the schemas of its document.

use serde_json::{Map, Value, json};

use testkit::http1;
use testkit::nats::{self, Nats};
use testkit::ndjson;
use testkit::sidestream::{self, Sidestream};
use testkit::sse::{Event, SseClient};
use testkit::websocket;

use super::{document, problems, validate};

const ROUTES: &str = r#"
routes:
  - path: /state
    framings: [sse, ndjson, websocket, long_poll]
    begin: latest
    finite: true
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
  - path: /live
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
"#;

/// Fields of a Server-Sent Event.
fn fields(event: &Event) -> Value {
    let mut fields = Map::new();
    fields.insert("data".to_owned(), json!(event.data));
    fields.insert("id".to_owned(), json!(event.id));
    if event.name != "message" {
        fields.insert("event".to_owned(), json!(event.name));
    }
    fields.into()
}

/// Payload of a message of the channel.
fn payload(message: &str, payload: &Value) -> Value {
    json!({ "channel": "state", "message": message, "payload": payload })
}

/// Payload of a JSON object: an event or a control message.
fn object(framing: &str, object: &Value) -> Value {
    let is_control = object.get("control").is_some();
    let suffix = if is_control { "_control" } else { "" };
    payload(&format!("{framing}{suffix}"), object)
}

#[tokio::test]
async fn messages_in_every_framing_match_the_schemas() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    nats::create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::start(sidestream::config(&nats, ROUTES)).await;
    for data in [&b"{\"order\":1}"[..], b"text", b"\xff"] {
        let subject = format!("orders.{}", data.len());
        let sent = jetstream.publish(subject, data.into()).await.unwrap();
        sent.await.unwrap();
    }
    let (url, live) = (sidestream.url("/state"), sidestream.url("/live"));
    let mut payloads = Vec::new();

    let mut events = SseClient::get(url.clone()).connect().await;
    let mut lines = ndjson::Request::new(&url).send().await;
    let mut messages = websocket::Request::new(&url).open().await;
    let state = events
        .until(|event| event.name == "sidestream.synced")
        .await;
    let of_sse = |event: &Event| {
        let is_control = event.name.starts_with("sidestream.");
        payload(
            if is_control { "sse_control" } else { "sse" },
            &fields(event),
        )
    };
    payloads.extend(state.iter().map(of_sse));
    let (state, synced) = lines.until_control("synced").await;
    payloads.extend(
        state
            .into_iter()
            .chain([synced])
            .map(|one| object("ndjson", &one)),
    );
    let (state, synced) = messages.until_control("synced").await;
    payloads.extend(
        state
            .into_iter()
            .chain([synced])
            .map(|one| object("websocket", &one)),
    );
    let headers = [("Accept", "application/json")];
    let answer = http1::request("GET", &url, &headers).await.unwrap().json();
    payloads.push(payload("long_poll", &answer));

    // A gap, an event and the end.
    let request = ndjson::Request {
        last_event_id: "no id",
        ..ndjson::Request::new(&live)
    };
    let (before, gap) = request.send().await.until_control("gap").await;
    let of_live = before.into_iter().chain([gap]);
    payloads.extend(
        of_live
            .map(|one| json!({ "channel": "live", "message": "ndjson_control", "payload": one })),
    );
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Sidestream-End", "true");
    headers.insert("Sidestream-Event", "done");
    let sent = jetstream.publish_with_headers("orders.end", headers, "7".into());
    sent.await.unwrap().await.unwrap();
    let (rest, end) = lines.until_control("end").await;
    payloads.extend(
        rest.into_iter()
            .chain([end])
            .map(|one| object("ndjson", &one)),
    );
    let rest = events.until(|event| event.name == "sidestream.end").await;
    payloads.extend(rest.iter().map(of_sse));
    assert!(payloads.len() > 20, "{}", payloads.len());

    // Payloads that are wrong show that the schemas exclude something.
    let valid = payloads.len();
    payloads.extend([
        object("ndjson", &json!({ "id": "a-1-b", "data": 1 })),
        object("ndjson", &json!({ "subject": "a" })),
        object(
            "websocket",
            &json!({ "control": "gap", "reason": "boredom", "missed": 1, "resume": "live" }),
        ),
        object("ndjson", &json!({ "control": "position" })),
        payload(
            "sse_control",
            &json!({ "event": "sidestream.other", "data": "{}" }),
        ),
        payload("long_poll", &json!({ "events": [{}], "id": "" })),
    ]);
    let file = sidestream.config_file();
    let text = document(&["--config", file.to_str().unwrap()]);
    let result = validate(&text, &payloads);
    assert_eq!(problems(&result), Vec::<&Value>::new());
    let results = result["payloads"].as_array().unwrap();
    for (payload, errors) in payloads.iter().zip(results).take(valid) {
        assert_eq!(errors, &json!([]), "{payload}");
    }
    for (payload, errors) in payloads.iter().zip(results).skip(valid) {
        assert_ne!(errors, &json!([]), "{payload}");
    }
}
