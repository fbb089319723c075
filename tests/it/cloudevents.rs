//! `format: cloudevents`: every message is a structured CloudEvent for clients, which the SDK reads.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use async_nats::{HeaderMap, jetstream};
use serde_json::{Value, json};

use testkit::grpc::{Call, Form};
use testkit::http1;
use testkit::nats::{self, Nats};
use testkit::ndjson::{Reader, Request};
use testkit::sidestream::{self, Sidestream};
use testkit::sse::SseClient;
use testkit::websocket;

const ROUTES: &str = r#"
routes:
  - path: /orders
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    framings: [sse, ndjson, websocket, long_poll, grpc_web]
    format: cloudevents
  - path: /plain
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
  - path: /versions
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    format: cloudevents
    versions:
      current: 2
      supported: [1, 2]
      conversions: [{ from: 2, to: 1, patch: [{ op: move, from: /new, path: /old }] }]
  - path: /core
    sources: [{ subjects: ["news.>"] }]
    format: cloudevents
"#;

const REQUIRED: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "a%20b"),
    ("ce-source", "/shop"),
    ("ce-type", "com.example.order.created"),
];

const STRUCTURED: &str =
    r#"{ "specversion":"1.0","id":"1","source":"/s","type":"t","data":{"new": 2}}"#;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.insert(*name, *value);
    }
    headers
}

async fn publish(jetstream: &jetstream::Context, fields: &[(&str, &str)], payload: &[u8]) {
    let payload = payload.to_vec().into();
    let sent = jetstream.publish_with_headers("orders.7", headers(fields), payload);
    sent.await.unwrap().await.unwrap();
}

async fn start(nats: &Nats) -> (Sidestream, jetstream::Context) {
    let jetstream = nats.jetstream().await;
    nats::create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::start(sidestream::config(nats, ROUTES)).await;
    (sidestream, jetstream)
}

async fn ndjson(sidestream: &Sidestream, path: &str) -> Reader {
    let url = sidestream.url(path);
    Request::new(&url).send().await
}

async fn next_data(client: &mut SseClient) -> (String, String) {
    let received = client
        .until(|event| !event.name.starts_with("sidestream."))
        .await;
    let event = received.last().unwrap();
    (event.data.clone(), event.id.clone())
}

/// Events as the SDK reads them, which rejects what does not conform.
fn read_by_sdk(documents: &[String]) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/cloudevents");
    assert!(
        folder.join("node_modules/cloudevents").exists(),
        "the SDK is not installed: run `make tools`"
    );
    let mut node = Command::new("node")
        .arg("read.mjs")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs Node 20 or newer");
    let mut input = node.stdin.take().unwrap();
    input
        .write_all((documents.join("\n") + "\n").as_bytes())
        .unwrap();
    drop(input);
    let output = node.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn the_sdk_reads_every_kind_of_message_in_every_framing() {
    let nats = Nats::start().await;
    let (sidestream, jetstream) = start(&nats).await;
    let mut events = SseClient::get(sidestream.url("/orders")).connect().await;
    let mut again = SseClient::get(sidestream.url("/orders")).connect().await;
    let mut lines = ndjson(&sidestream, "/orders").await;
    let url = sidestream.url("/orders");
    let mut messages = websocket::Request::new(&url).open().await;
    let mut call = Call::new(Form::Grpc, sidestream.url(""), "/orders", "")
        .send()
        .await;
    call.until("position").await;
    let mut plain = SseClient::get(sidestream.url("/plain")).connect().await;

    let with = |more: &[(&'static str, &'static str)]| [&REQUIRED[..], more].concat();
    publish(&jetstream, &with(&[("ce-subject", "7")]), br#"{"a":1}"#).await;
    publish(
        &jetstream,
        &with(&[("Content-Type", "text/plain")]),
        b"text",
    )
    .await;
    publish(
        &jetstream,
        &with(&[("Content-Type", "image/png")]),
        b"\xff\0",
    )
    .await;
    publish(&jetstream, &[("Sidestream-Event", "created")], b"").await;
    publish(&jetstream, &[("ce-id", "1")], b"text").await;
    publish(
        &jetstream,
        &[("Content-Type", "application/cloudevents+json")],
        STRUCTURED.as_bytes(),
    )
    .await;

    let (mut documents, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let (document, id) = next_data(&mut events).await;
        assert_eq!(next_data(&mut again).await, (document.clone(), id.clone()));
        documents.push(document);
        ids.push(id);
    }
    for (line, document) in lines.events(6).await.iter().zip(&documents) {
        let document: Value = serde_json::from_str(document).unwrap();
        assert_eq!(line["data"], document);
    }
    for (message, document) in messages.events(6).await.iter().zip(&documents) {
        let document: Value = serde_json::from_str(document).unwrap();
        assert_eq!(message["data"], document);
    }
    for (message, document) in call.events(6).await.iter().zip(&documents) {
        assert_eq!(message.data(), document.as_bytes());
    }
    let headers = [("Accept", "application/json"), ("Last-Event-ID", &*ids[0])];
    let answer = http1::request("GET", &url, &headers).await.unwrap().json();
    let polled = answer["events"].as_array().unwrap();
    assert_eq!(polled.len(), 5);
    for (event, document) in polled.iter().zip(&documents[1..]) {
        let document: Value = serde_json::from_str(document).unwrap();
        assert_eq!(event["data"], document);
    }
    assert_eq!(
        next_data(&mut plain).await.0,
        r#"{"a":1}"#,
        "other routes are as published"
    );

    let of = |id: &str, source: &str, kind: &str, media_type: Value, data: Value| {
        let mut event = json!({ "id": id, "source": source, "type": kind, "specversion": "1.0" });
        for (name, value) in [("datacontenttype", media_type), ("data", data)] {
            if !value.is_null() {
                event[name] = value;
            }
        }
        event
    };
    let binary =
        |media_type: Value, data: Value| of("a b", "/shop", REQUIRED[3].1, media_type, data);
    let mut first = binary(Value::Null, json!({ "a": 1 }));
    first["subject"] = json!("7");
    let expected = [
        first,
        binary(json!("text/plain"), json!("text")),
        binary(json!("image/png"), json!({ "bytes": [255, 0] })),
        of(&ids[3], "orders.7", "created", Value::Null, Value::Null),
        of(
            "1",
            "orders.7",
            "orders.7",
            json!("text/plain"),
            json!("text"),
        ),
        of("1", "/s", "t", Value::Null, json!({ "new": 2 })),
    ];
    assert_eq!(read_by_sdk(&documents), expected);
    assert_eq!(documents[5], STRUCTURED, "a structured event is unchanged");
    for (mode, count) in [("binary", 3.0), ("completed", 2.0), ("structured", 1.0)] {
        let labels = [("route", "/orders"), ("mode", mode)];
        let name = "sidestream_cloud_events_total";
        // Once for all clients and framings.
        assert_eq!(sidestream.metric(name, &labels).await, count, "{mode}");
    }
    // A client that resumes receives the same documents.
    let url = sidestream.url("/orders");
    let mut resumed = SseClient::get(url).last_event_id(&ids[0]).connect().await;
    for (document, id) in documents.iter().zip(&ids).skip(1) {
        assert_eq!(
            next_data(&mut resumed).await,
            (document.clone(), id.clone())
        );
    }
}

#[tokio::test]
async fn core_subjects_and_versions_have_the_format_too() {
    let nats = Nats::start().await;
    let (sidestream, jetstream) = start(&nats).await;
    let mut core = SseClient::get(sidestream.url("/core")).connect().await;
    let mut old = SseClient::get(sidestream.url("/versions?version=1"))
        .connect()
        .await;
    let client = nats.client().await;
    let sent = client.publish_with_headers("news.a", headers(&REQUIRED), "7".into());
    sent.await.unwrap();
    let document: Value = serde_json::from_str(&next_data(&mut core).await.0).unwrap();
    let expected = json!({
        "specversion": "1.0", "id": "a b", "source": "/shop", "type": REQUIRED[3].1, "data": 7
    });
    assert_eq!(document, expected);
    // The conversion changes the payload, before it becomes data.
    publish(&jetstream, &REQUIRED, br#"{"new":1}"#).await;
    let document: Value = serde_json::from_str(&next_data(&mut old).await.0).unwrap();
    assert_eq!(document["data"], json!({ "old": 1 }));
}
