//! JSON Schemas of payloads: from a folder and from a bucket, counted and rejected.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, kv};
use serde_json::Value;
use tempfile::TempDir;

use testkit::grpc::{Call, Form};
use testkit::http1;
use testkit::nats::{self, Nats};
use testkit::ndjson;
use testkit::sidestream::{self, Sidestream};
use testkit::sse::SseClient;
use testkit::wait::{eventually, within};
use testkit::websocket;

const ROUTES: &str = r#"
routes:
  - path: /orders
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    framings: [sse, ndjson, websocket, long_poll, grpc_web]
    window: { events: 40 }
    versions: &versions
      current: 2
      supported: [1, 2]
      conversions:
        - { from: 2, to: 1, patch: [{ op: move, from: /total, path: /sum }] }
        - { from: 1, to: 2, patch: [{ op: move, from: /sum, path: /total }] }
  - path: /state
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    begin: latest
    versions: *versions
  - path: /core
    sources: [{ subjects: ["news.>"] }]
    format: cloudevents
  - path: /run
    sources: [{ stream: ORDERS, subjects: ["orders.run"] }]
    finite: true
  - path: /other
    sources: [{ subjects: ["other.>"] }]
"#;

const PAYLOADS: &str = r#"
  payloads:
    - { subjects: ["orders.>"], version: 1, schema: orders/v1.json }
    - { subjects: ["orders.>"], version: 2, schema: orders/v2.json }
    - { subjects: ["orders.run", "news.>"], schema: news.json }
"#;

/// Schema of an order with a positive integer under a name.
fn order(name: &str) -> String {
    format!(
        r##"{{"properties":{{"{name}":{{"$ref":"../money.json#/$defs/money"}}}},"required":["{name}"]}}"##
    )
}

const MONEY: &str = r#"{"$defs":{"money":{"type":"integer","minimum":1}}}"#;
const NEWS: &str = r#"{"type":"string","maxLength":8}"#;

const GAP: &str = r#"{"reason":"schema","missed":1,"resume":"live"}"#;

fn documents() -> [(&'static str, String); 4] {
    [
        ("orders/v1.json", order("sum")),
        ("orders/v2.json", order("total")),
        ("money.json", MONEY.to_owned()),
        ("news.json", NEWS.to_owned()),
    ]
}

/// Folder as the kubelet mounts a ConfigMap: a link names the directory with the files.
struct Mount {
    folder: TempDir,
    swaps: u32,
}

impl Mount {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["money.json", "news.json", "orders"] {
            symlink(Path::new("..data").join(file), folder.path().join(file)).unwrap();
        }
        let mut mount = Self { folder, swaps: 0 };
        mount.put(&documents());
        mount
    }

    fn put(&mut self, documents: &[(&str, String)]) {
        self.swaps += 1;
        let name = PathBuf::from(format!("..{}", self.swaps));
        let root = self.folder.path();
        for (path, text) in documents {
            let file = root.join(&name).join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        symlink(&name, root.join("..new")).unwrap();
        fs::rename(root.join("..new"), root.join("..data")).unwrap();
    }

    fn config(&self, nats: &Nats, validate: &str) -> String {
        let folder = self.folder.path().display();
        let schemas = format!("schemas:\n  folder: {folder}\n  validate: {validate}{PAYLOADS}");
        sidestream::config(nats, &format!("{ROUTES}{schemas}"))
    }
}

/// A nats-server with the JetStream stream ORDERS.
async fn server() -> (Nats, jetstream::Context) {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    nats::create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    (nats, jetstream)
}

/// Publishes an order; an empty version: without the header.
async fn publish(jetstream: &jetstream::Context, version: &str, payload: &str) {
    let mut headers = HeaderMap::new();
    if !version.is_empty() {
        headers.insert("Sidestream-Version", version);
    }
    let payload = payload.to_owned().into();
    let sent = jetstream.publish_with_headers("orders.1", headers, payload);
    sent.await.unwrap().await.unwrap();
}

async fn sse(pod: &Sidestream, path: &str) -> SseClient {
    let mut client = SseClient::get(pod.url(path)).connect().await;
    client.positioned().await;
    client
}

/// Payloads of the next events and gaps.
async fn received(client: &mut SseClient, count: usize) -> Vec<String> {
    let mut received = Vec::new();
    while received.len() < count {
        let event = client.next().await;
        if event.name == "sidestream.gap" || !event.name.starts_with("sidestream.") {
            received.push(event.data);
        }
    }
    received
}

async fn until_count(pod: &Sidestream, schema: &str, result: &str, count: f64) {
    let labels = [("schema", schema), ("result", result)];
    let name = "sidestream_schema_payloads_total";
    pod.until_metric(name, &labels, |value| value == count)
        .await;
}

/// Waits until the check has a status, and returns its reason.
async fn until_check(pod: &Sidestream, status: &str) -> String {
    let probe = || async {
        let health = pod.admin_json("/health").await;
        let check = &health["checks"]["schemas"];
        (check["status"] == status)
            .then(|| check["message"].as_str().unwrap_or_default().to_owned())
    };
    eventually(Duration::from_secs(20), "the check has the status", probe).await
}

#[tokio::test]
async fn reject_sends_a_gap_live_on_resume_and_from_history_in_every_framing() {
    let (nats, jetstream) = server().await;
    let mount = Mount::new();
    let pod = Sidestream::start(mount.config(&nats, "reject")).await;
    let mut current = sse(&pod, "/orders").await;
    let mut again = sse(&pod, "/orders").await;
    let mut old = sse(&pod, "/orders?version=1").await;
    let url = pod.url("/orders");
    let mut lines = ndjson::Request::new(&url).send().await;
    let mut socket = websocket::Request::new(&url).open().await;
    let mut call = Call::new(Form::WebHttp1, pod.url(""), "/orders", "")
        .send()
        .await;
    call.until("position").await;

    publish(&jetstream, "", r#"{"total":7}"#).await;
    publish(&jetstream, "2", r#"{"total":0}"#).await;
    publish(&jetstream, "", "no JSON").await;
    publish(&jetstream, "1", r#"{"total":7}"#).await;
    publish(&jetstream, "1", r#"{"sum":8}"#).await;
    let expected = [r#"{"total":7}"#, GAP, GAP, GAP, r#"{"total":8}"#];
    let first = current.until(|event| event.name == "message").await;
    let start = first.last().unwrap().id.clone();
    assert_eq!(first.last().unwrap().data, expected[0]);
    assert_eq!(received(&mut current, 4).await, expected[1..]);
    assert_eq!(received(&mut again, 5).await, expected);
    let of_version_1 = [r#"{"sum":7}"#, GAP, GAP, GAP, r#"{"sum":8}"#];
    assert_eq!(received(&mut old, 5).await, of_version_1);
    for (name, mut objects) in [("lines", Vec::new()), ("socket", Vec::new())] {
        while objects.len() < 5 {
            let object = match name {
                "lines" => lines.next().await,
                _ => socket.object().await,
            };
            let is_counted = object["control"] == "gap" || object.get("data").is_some();
            objects.extend(is_counted.then_some(object));
        }
        let gaps = objects.iter().filter(|object| object["reason"] == "schema");
        assert_eq!(gaps.count(), 3, "{name}");
        assert_eq!(objects[4]["data"]["total"], 8, "{name}");
    }
    assert_eq!(call.until("gap").await.reason(), "schema");
    // Once for all clients, versions and framings.
    until_count(&pod, "orders/v2.json", "valid", 1.0).await;
    until_count(&pod, "orders/v2.json", "invalid", 2.0).await;
    until_count(&pod, "orders/v1.json", "valid", 1.0).await;
    until_count(&pod, "orders/v1.json", "invalid", 1.0).await;
    let gaps = [("route", "/orders"), ("reason", "schema")];
    let name = "sidestream_gaps_total";
    pod.until_metric(name, &gaps, |value| value >= 15.0).await;
    let line = pod.until_message("payload does not match its schema").await;
    assert_eq!(line["subject"], "orders.1");
    let violation = line["violation"].as_str().unwrap().to_owned();
    assert!(violation.starts_with("#/total: "), "{violation}");

    // A client that resumes has the same gaps: from memory, and from the history.
    let resume = async || {
        let mut client = SseClient::get(&url).last_event_id(&start).connect().await;
        received(&mut client, 4).await
    };
    assert_eq!(resume().await, expected[1..]);
    let headers = [("Accept", "application/json"), ("Last-Event-ID", &*start)];
    let answer = http1::request("GET", &url, &headers).await.unwrap().json();
    let gaps = answer["events"].as_array().unwrap().iter();
    let gaps = gaps.filter(|object| object["reason"] == "schema");
    assert_eq!(gaps.count(), 3);
    for _ in 0..60 {
        publish(&jetstream, "", r#"{"total":9}"#).await;
    }
    received(&mut current, 60).await;
    assert_eq!(resume().await, expected[1..], "from the history");
}

#[tokio::test]
async fn reject_holds_for_states_core_subjects_and_ends() {
    let (nats, jetstream) = server().await;
    publish(&jetstream, "", r#"{"total":"many"}"#).await;
    let mount = Mount::new();
    let pod = Sidestream::start(mount.config(&nats, "reject")).await;
    let mut state = SseClient::get(pod.url("/state")).connect().await;
    let events = state.until(|event| event.name == "sidestream.synced").await;
    let gap = events.iter().find(|event| event.name == "sidestream.gap");
    assert_eq!(gap.unwrap().data, GAP);
    publish(&jetstream, "", r#"{"total":1}"#).await;
    assert_eq!(received(&mut state, 1).await, [r#"{"total":1}"#]);
    publish(&jetstream, "", "text").await;
    publish(&jetstream, "", r#"{"total":2}"#).await;
    let rest = state.until(|event| event.data == r#"{"total":2}"#).await;
    let snapshot = rest
        .iter()
        .find(|event| event.name == "sidestream.snapshot");
    assert!(snapshot.is_none(), "the state would not repair it");

    let mut core = sse(&pod, "/core").await;
    let client = nats.client().await;
    for payload in ["7", "\"a\"", "\"a long text\"", "\"b\""] {
        client.publish("news.a", payload.into()).await.unwrap();
    }
    let data = received(&mut core, 4).await;
    assert_eq!((&*data[0], &*data[2]), (GAP, GAP));
    let event: Value = serde_json::from_str(&data[1]).unwrap();
    assert_eq!(event["data"], "a", "the payload as published is validated");

    let mut run = sse(&pod, "/run").await;
    let mut headers = HeaderMap::new();
    headers.insert("Sidestream-End", "true");
    for payload in ["not JSON", "the end, which is not JSON"] {
        let headers = if payload.contains("end") {
            headers.clone()
        } else {
            HeaderMap::new()
        };
        let sent = jetstream.publish_with_headers("orders.run", headers, payload.into());
        sent.await.unwrap().await.unwrap();
    }
    let data = received(&mut run, 2).await;
    assert_eq!(data, [GAP, "the end, which is not JSON"]);
    run.closed().await;
}

#[tokio::test]
async fn count_delivers_everything_and_off_validates_nothing() {
    let (nats, jetstream) = server().await;
    let mount = Mount::new();
    let pod = Sidestream::start(mount.config(&nats, "count")).await;
    let mut client = sse(&pod, "/orders").await;
    let mut old = sse(&pod, "/orders?version=1").await;
    let sent = [r#"{"total":1}"#, r#"{"total":-1}"#, r#"{"total":-2}"#];
    for payload in sent {
        publish(&jetstream, "", payload).await;
    }
    publish(&jetstream, "1", r#"{"sum":1}"#).await;
    assert_eq!(received(&mut client, 3).await, sent);
    assert_eq!(received(&mut old, 1).await, [r#"{"sum":1}"#]);
    until_count(&pod, "orders/v2.json", "invalid", 2.0).await;
    until_count(&pod, "orders/v2.json", "valid", 1.0).await;
    until_count(&pod, "orders/v1.json", "valid", 1.0).await;
    let line = pod.until_message("payload does not match its schema").await;
    assert_eq!(line["schema"], "orders/v2.json");
    let lines = pod.log();
    let lines = lines
        .iter()
        .filter(|line| line["schema"] == "orders/v2.json");
    assert_eq!(lines.count(), 1, "at most one line in ten seconds");

    // A reload changes the mode; documents stay.
    pod.rewrite_config(&mount.config(&nats, "reject"));
    pod.until_message("configuration applied").await;
    until_check(&pod, "ok").await;
    let mut rejecting = sse(&pod, "/orders").await;
    publish(&jetstream, "", r#"{"total":-3}"#).await;
    assert_eq!(received(&mut rejecting, 1).await, [GAP]);
    assert_eq!(received(&mut client, 2).await[1], r#"{"total":-3}"#);

    let off = Sidestream::start(mount.config(&nats, "off")).await;
    let mut client = sse(&off, "/orders").await;
    publish(&jetstream, "", "text").await;
    assert_eq!(received(&mut client, 1).await, ["text"]);
    for result in ["valid", "invalid", "skipped", "missing"] {
        until_count(&off, "orders/v2.json", result, 0.0).await;
    }
}

#[tokio::test]
async fn folder_is_read_again_and_bad_documents_leave_the_old_ones() {
    let (nats, jetstream) = server().await;
    let mut mount = Mount::new();
    let pod = Sidestream::start(mount.config(&nats, "reject")).await;
    let mut client = sse(&pod, "/orders").await;
    assert_eq!(until_check(&pod, "ok").await, "");

    let mut changed = documents();
    changed[1].1 = "{ no schema".to_owned();
    mount.put(&changed);
    let why = until_check(&pod, "degraded").await;
    assert!(why.contains("orders/v2.json is not JSON"), "{why}");
    let is_reported = |line: &Value| {
        let why = line["why"].as_str().unwrap_or_default();
        line["level"] == "WARN" && why.contains("orders/v2.json is not JSON")
    };
    pod.until_log("the problem is logged", is_reported).await;
    publish(&jetstream, "", r#"{"total":0}"#).await;
    assert_eq!(received(&mut client, 1).await, [GAP]);
    changed[1].1 = r#"{"$ref":"https://example.com/order.json"}"#.to_owned();
    mount.put(&changed);
    let is_remote = |why: &str| why.contains("is not among the documents");
    eventually(
        Duration::from_secs(15),
        "the reference is reported",
        || async { is_remote(&until_check(&pod, "degraded").await).then_some(()) },
    )
    .await;
    publish(&jetstream, "", r#"{"total":0}"#).await;
    assert_eq!(received(&mut client, 1).await, [GAP]);
    // The document that both versions refer to allows what it did not.
    changed = documents();
    changed[2].1 = MONEY.replace("\"minimum\":1", "\"minimum\":0");
    mount.put(&changed);
    until_check(&pod, "ok").await;
    publish(&jetstream, "", r#"{"total":0}"#).await;
    assert_eq!(received(&mut client, 1).await, [r#"{"total":0}"#]);
}

#[tokio::test]
async fn bucket_is_watched_and_a_changed_document_applies_at_once() {
    let (nats, jetstream) = server().await;
    let config = kv::Config {
        bucket: "SCHEMAS".into(),
        ..Default::default()
    };
    let bucket = jetstream.create_key_value(config.clone()).await.unwrap();
    let fill = async |bucket: &kv::Store| {
        for (key, text) in documents() {
            bucket.put(key, text.into()).await.unwrap();
        }
    };
    fill(&bucket).await;
    let schemas = format!("schemas:\n  bucket: SCHEMAS\n  validate: reject{PAYLOADS}");
    let pod = Sidestream::start(sidestream::config(&nats, &format!("{ROUTES}{schemas}"))).await;
    let mut client = sse(&pod, "/orders").await;
    publish(&jetstream, "", r#"{"total":0}"#).await;
    assert_eq!(received(&mut client, 1).await, [GAP]);

    let relaxed = MONEY.replace("\"minimum\":1", "\"minimum\":0");
    bucket.put("money.json", relaxed.into()).await.unwrap();
    let applied = |count: usize| {
        let is_applied = |line: &&Value| line["message"] == "schemas applied";
        pod.log().iter().filter(is_applied).count() >= count
    };
    eventually(Duration::from_secs(15), "the change is applied", || async {
        applied(2).then_some(())
    })
    .await;
    publish(&jetstream, "", r#"{"total":0}"#).await;
    assert_eq!(received(&mut client, 1).await, [r#"{"total":0}"#]);

    bucket.put("orders/v2.json", "{".into()).await.unwrap();
    let why = until_check(&pod, "degraded").await;
    assert!(why.contains("orders/v2.json is not JSON"), "{why}");
    bucket.delete("orders/v2.json").await.unwrap();
    eventually(
        Duration::from_secs(15),
        "the missing document is reported",
        || async {
            let why = until_check(&pod, "degraded").await;
            why.contains("orders/v2.json is missing").then_some(())
        },
    )
    .await;
    publish(&jetstream, "", r#"{"total":-1}"#).await;
    assert_eq!(received(&mut client, 1).await, [GAP]);

    // Another bucket of the same name.
    jetstream.delete_key_value("SCHEMAS").await.unwrap();
    let bucket = jetstream.create_key_value(config).await.unwrap();
    fill(&bucket).await;
    within(Duration::from_secs(60), "the new bucket is read", async {
        loop {
            publish(&jetstream, "", r#"{"total":0}"#).await;
            if received(&mut client, 1).await == [GAP] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    until_check(&pod, "ok").await;
}

#[tokio::test]
async fn check_reads_the_documents_of_the_folder_if_it_exists() {
    let mut mount = Mount::new();
    let folder = tempfile::tempdir().unwrap();
    let schemas = mount.folder.path().display().to_string();
    let text = format!("{ROUTES}schemas:\n  folder: {schemas}\n{PAYLOADS}");
    fs::write(folder.path().join("sidecar.yaml"), &text).unwrap();
    let check = || sidestream::run(&["check"], folder.path());
    let output = check().await;
    let summary = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(summary.contains("validate: count"), "{summary}");
    mount.put(&documents()[..3]);
    let output = check().await;
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64));
    let is_named = errors.contains("error: schemas: ") && errors.contains("news.json");
    assert!(is_named, "{errors}");
    let elsewhere = text.replace(&schemas, "/not/mounted/here");
    fs::write(folder.path().join("sidecar.yaml"), elsewhere).unwrap();
    let output = check().await;
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("warning: schemas: /not/mounted/here"),
        "{errors}"
    );
}

#[tokio::test]
async fn listed_permissions_suffice_for_the_bucket() {
    let manual = include_str!("../../docs/nats-permissions.md");
    let (_, after) = manual.split_once("With `schemas.bucket: schemas`").unwrap();
    let list = after.split("```").nth(1).unwrap();
    let subjects: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let allowed = format!("{:?}", [&["_INBOX_sse.>"], &subjects[..]].concat());
    let users = format!(
        "accounts {{ A {{ jetstream: enabled, users: [
          {{ user: admin, password: p }},
          {{ user: sidecar, password: p, permissions: {{ publish: {{ allow: {allowed} }}, subscribe: {{ allow: [\"_INBOX_sse.>\", \"news.>\"] }} }} }}
        ] }} }}"
    );
    let nats = Nats::builder().config(&users).start().await;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into());
    let client = nats.client_with(options).await;
    let jetstream = jetstream::new(client.clone());
    let config = kv::Config {
        bucket: "schemas".into(),
        ..Default::default()
    };
    let bucket = jetstream.create_key_value(config).await.unwrap();
    bucket.put("news", NEWS.into()).await.unwrap();
    let port = nats.port();
    let pod = Sidestream::start(format!(
        r#"listen: [{{ address: "127.0.0.1:0" }}]
admin: {{ address: "127.0.0.1:0" }}
nats: {{ servers: ["nats://sidecar:p@127.0.0.1:{port}"] }}
routes: [{{ path: /news, sources: [{{ subjects: ["news.>"] }}] }}]
schemas: {{ bucket: schemas, validate: reject, payloads: [{{ subjects: ["news.>"], schema: news }}] }}
"#
    ))
    .await;
    assert_eq!(until_check(&pod, "ok").await, "");
    let mut news = sse(&pod, "/news").await;
    client.publish("news.a", "7".into()).await.unwrap();
    assert_eq!(received(&mut news, 1).await, [GAP]);
    bucket.put("news", "true".into()).await.unwrap();
    let is_applied = |line: &&Value| line["message"] == "schemas applied";
    eventually(Duration::from_secs(15), "the change is applied", || async {
        (pod.log().iter().filter(is_applied).count() >= 2).then_some(())
    })
    .await;
    client.publish("news.a", "7".into()).await.unwrap();
    assert_eq!(received(&mut news, 1).await, ["7"]);
}

#[tokio::test]
async fn pod_is_ready_without_the_bucket_after_a_while_and_counts_what_it_cannot_validate() {
    let (nats, jetstream) = server().await;
    let schemas = format!("schemas:\n  bucket: SCHEMAS\n  validate: reject{PAYLOADS}");
    let config = sidestream::config(&nats, &format!("{ROUTES}{schemas}"));
    let mut pod = Sidestream::builder(config).without_waiting().start().await;
    let why = until_check(&pod, "degraded").await;
    pod.ready().await;
    assert!(why.contains("bucket SCHEMAS: bucket not found"), "{why}");
    let mut client = sse(&pod, "/orders").await;
    publish(&jetstream, "", "text").await;
    assert_eq!(received(&mut client, 1).await, ["text"]);
    until_count(&pod, "orders/v2.json", "missing", 1.0).await;
}
