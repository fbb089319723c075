//! Libraries of applications: grpcio, and connect-web on Node and in Chromium.

use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Fixture;
use testkit::browser::Page;
use testkit::process::Process;
use testkit::proxy::Proxy;
use testkit::repository::{file, root, tool};
use testkit::wait::{DEADLINE, eventually};

/// Library under test.
#[derive(Clone, Copy, Debug)]
enum Library {
    /// gRPC over HTTP/2.
    Grpcio,
    /// gRPC-Web over HTTP/1.1.
    ConnectWeb,
}

/// Client process. Dropping it ends the process.
struct Client {
    process: Process,
    _folder: TempDir,
}

impl Library {
    const ALL: [Self; 2] = [Self::Grpcio, Self::ConnectWeb];

    fn start(self, address: impl std::fmt::Display, path: &str, options: &Value) -> Client {
        let folder = tempfile::tempdir().unwrap();
        let scripts = root().join("tests/clients/grpc");
        let options = options.to_string();
        let mut command = match self {
            Self::Grpcio => {
                let mut command = Command::new(python());
                command
                    .arg(scripts.join("client.py"))
                    .arg(address.to_string());
                command
            }
            Self::ConnectWeb => {
                let descriptors = descriptors(&folder);
                let mut command = Command::new("node");
                command
                    .arg(scripts.join("client.mjs"))
                    .arg(descriptors)
                    .arg(format!("http://{address}"))
                    .env_remove("NODE_OPTIONS");
                command
            }
        };
        Client {
            process: Process::spawn(&format!("{self:?}"), command.args([path, &options])),
            _folder: folder,
        }
    }

    /// Status as the library names it.
    fn status(self, name: &str, code: u64) -> Value {
        match self {
            Self::Grpcio => name.into(),
            Self::ConnectWeb => code.into(),
        }
    }
}

/// Compiles the `.proto`.
fn descriptors(folder: &TempDir) -> PathBuf {
    let descriptors = folder.path().join("events.binpb");
    let compiled = Command::new(python())
        .args(["-m", "grpc_tools.protoc", "-I"])
        .arg(root().join("proto"))
        .arg(format!("--descriptor_set_out={}", descriptors.display()))
        .arg("sidestream/v1/events.proto")
        .status();
    assert!(compiled.unwrap().success());
    descriptors
}

/// Python with grpcio and grpcio-tools.
fn python() -> PathBuf {
    tool("clients-grpc", "bin/python")
}

impl Client {
    fn reports(&self) -> Vec<Value> {
        self.process.scan(0, |lines| {
            let parse = |line: &String| serde_json::from_str(line).ok();
            lines.iter().filter_map(parse).collect()
        })
    }

    /// Waits until the reports satisfy `wanted`; returns them.
    async fn until(&self, fact: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually(DEADLINE, fact, || async {
            let reports = self.reports();
            wanted(&reports).then_some(reports)
        })
        .await
    }

    /// Waits for a message with this content.
    async fn message(&self, content: &str) -> Value {
        let is_wanted = |report: &Value| report["content"] == content;
        let fact = format!("the client has `{content}`");
        let reports = self.until(&fact, |reports| reports.iter().any(is_wanted));
        reports.await.into_iter().find(is_wanted).unwrap()
    }

    /// Waits for the end of the first call.
    async fn status(&self) -> Value {
        let is_status = |report: &Value| report["kind"] == "status";
        let reports = self.until("the call has ended", |reports| {
            reports.iter().any(is_status)
        });
        reports.await.into_iter().find(is_status).unwrap()
    }
}

/// Payloads of all events, decoded from base64 as numbers.
fn numbers(reports: &[Value]) -> Vec<u64> {
    let events = reports.iter().filter(|report| report["content"] == "event");
    let decode = |event: &Value| {
        let data = event["data"].as_str().unwrap();
        let data = BASE64.decode(data);
        String::from_utf8(data.unwrap()).unwrap().parse().unwrap()
    };
    events.map(decode).collect()
}

/// Publishes numbers until there are 30, and ends the pod after ten. Returns another pod, which
/// continues.
#[tokio::test]
async fn library_receives_events_and_continues_on_another_pod_after_a_drain() {
    for library in Library::ALL {
        let mut fixture = Fixture::start().await;
        let proxy = Proxy::start(fixture.sidestream.address()).await;
        let options = json!({ "reconnect": true });
        let client = library.start(proxy.address(), "/orders", &options);
        client.message("position").await;
        fixture.publish_across_a_drain(&proxy).await;
        let reports = client
            .until("all events", |reports| numbers(reports).len() >= 30)
            .await;
        assert_eq!(numbers(&reports), (0..30).collect::<Vec<_>>());
        let status = client.status().await;
        assert_eq!(status["code"], library.status("UNAVAILABLE", 14));
        assert_eq!(status["trailers"]["sidestream-code"], "drain");
        let close = client.message("close").await;
        assert_eq!(close["reason"], "drain");
        assert_eq!(
            status["trailers"]["grpc-retry-pushback-ms"]
                .as_str()
                .unwrap(),
            close["retry"].to_string().trim_matches('"')
        );
    }
}

#[tokio::test]
async fn library_receives_binary_and_large_payloads_unchanged() {
    let fixture = Fixture::start().await;
    let large: Vec<u8> = (0..1024 * 1024_usize - 200)
        .map(|n| (n % 251) as u8)
        .collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, &large);
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    for library in Library::ALL {
        let address = fixture.sidestream.address();
        let client = library.start(address, "/orders", &json!({}));
        client.message("position").await;
        fixture.publish("orders.1.x", &b"\xff\x00\xfe"[..]).await;
        fixture.publish("orders.1.x", large.clone()).await;
        let is_event = |report: &Value| report["content"] == "event";
        let reports = client
            .until("both events", |reports| {
                reports.iter().filter(|report| is_event(report)).count() == 2
            })
            .await;
        let events: Vec<_> = reports.iter().filter(|report| is_event(report)).collect();
        assert_eq!(events[0]["data"], "/wD+");
        assert_eq!(events[0]["subject"], "orders.1.x");
        assert_eq!(events[1]["data"], json!([large.len(), digest]));
    }
}

#[tokio::test]
async fn library_shows_gaps_rejections_deadlines_and_the_end_of_a_finite_event_stream() {
    let fixture = Fixture::start().await;
    let address = fixture.sidestream.address();
    fixture.publish("orders.1", "1").await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Sidestream-End", "true");
    let end = fixture
        .jetstream
        .publish_with_headers("orders.1", headers, "2".into());
    end.await.unwrap().await.unwrap();
    for library in Library::ALL {
        let resumed = library.start(address, "/orders", &json!({ "id": "no-id", "timeout": 2 }));
        let gap = resumed.message("gap").await;
        assert_eq!(
            (&gap["reason"], &gap["resume"]),
            (&json!("invalid"), &json!("live"))
        );
        let late = resumed.status().await;
        assert_eq!(late["code"], library.status("DEADLINE_EXCEEDED", 4));

        let rejected = library
            .start(address, "/nowhere", &json!({}))
            .status()
            .await;
        assert_eq!(rejected["code"], library.status("NOT_FOUND", 5));
        assert_eq!(rejected["message"], "no route has this path");
        assert_eq!(rejected["trailers"]["sidestream-code"], "not_found");

        let finite = library.start(address, "/run", &json!({}));
        let ended = finite.status().await;
        assert_eq!(ended["code"], library.status("OK", 0));
        assert_eq!(numbers(&finite.reports()), [1, 2]);
        let id = finite.message("end").await["id"].clone();
        let returned = library.start(address, "/run", &json!({ "id": id }));
        assert_eq!(returned.status().await["code"], library.status("OK", 0));
        assert_eq!(returned.reports().len(), 1, "no message");

        let metadata = json!({ "metadata": { "x-user": "7" } });
        let mine = library.start(address, "/metadata", &metadata);
        mine.message("position").await;
        fixture.publish("orders.7.x", "7").await;
        mine.message("event").await;
    }
}

#[tokio::test]
async fn page_of_another_origin_receives_events_and_continues_on_another_pod_after_a_drain() {
    let page = Page::serve().await;
    let mut fixture = Fixture::with_origin(&page.origin()).await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    let folder = tempfile::tempdir().unwrap();
    let descriptors = std::fs::read(descriptors(&folder)).unwrap();
    let call = |path: &str| {
        json!({
            "descriptors": BASE64.encode(&descriptors),
            "baseUrl": format!("http://{}", proxy.address()),
            "path": path,
            // Not safelisted: the preflight has to allow it.
            "metadata": { "authorization": "Bearer x" },
        })
    };
    let scripts = root().join("tests/clients/grpc");
    let bundled = Command::new(scripts.join("node_modules/.bin/esbuild"))
        .arg(scripts.join("page.mjs"))
        .args([
            "--bundle",
            "--format=iife",
            "--minify",
            "--log-level=warning",
        ])
        .output()
        .unwrap();
    assert!(bundled.status.success(), "{bundled:?}");
    let bundle = String::from_utf8(bundled.stdout).unwrap();
    let browser = page.run(&format!("const CALL = {};\n{bundle}", call("/orders")));
    let has = |reports: &[Value], content: &str| {
        reports.iter().any(|report| report["content"] == content)
    };
    browser
        .until("the position", |reports| has(reports, "position"))
        .await;
    fixture.publish_across_a_drain(&proxy).await;
    let reports = browser
        .until("all events", |reports| numbers(reports).len() >= 30)
        .await;
    assert_eq!(numbers(&reports), (0..30).collect::<Vec<_>>());
    let status = reports.iter().find(|report| report["kind"] == "status");
    let status = status.unwrap();
    assert_eq!(status["code"], 14, "{status}");
    assert_eq!(status["trailers"]["sidestream-code"], "drain");
    drop(browser);

    // The page reads the status of a rejection, which is in the head.
    let page = Page::serve().await;
    let fixture = Fixture::with_origin(&page.origin()).await;
    proxy.forward_to(fixture.sidestream.address());
    let browser = page.run(&format!(
        "const CALL = {};\n{bundle}",
        call("/orders?last=9")
    ));
    let reports = browser
        .until("the status", |reports| !reports.is_empty())
        .await;
    assert_eq!(reports[0]["code"], 3, "{reports:?}");
    let code = &reports[0]["trailers"]["sidestream-code"];
    assert_eq!(code, "begin_out_of_range");
}

#[tokio::test]
async fn example_of_the_documentation_receives_events_and_resumes_on_the_next_pod() {
    let mut fixture = Fixture::start().await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    let page = file("docs/framings.md");
    let (_, section) = page.split_once("\n## gRPC and gRPC-Web\n").unwrap();
    let (_, rest) = section.split_once("```python\n").unwrap();
    let (code, _) = rest.split_once("```\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("reader.py");
    std::fs::write(&script, code).unwrap();
    let mut command = Command::new(python());
    command
        .arg(script)
        .args([&proxy.address().to_string(), "/orders"])
        .env("PYTHONPATH", root().join("proto"));
    let example = Process::spawn("reader.py", &mut command);
    let labels = [("framing", "grpc_web")];
    fixture
        .sidestream
        .until_metric("sidestream_streams", &labels, |count| count == 1.0)
        .await;
    fixture.publish_across_a_drain(&proxy).await;
    let expected: Vec<String> = (0..30).map(|n| format!("orders.1 b'{n}'")).collect();
    eventually(DEADLINE, "the example prints every event", || async {
        example.scan(0, |lines| {
            let events = lines.iter().filter(|line| line.starts_with("orders.1 "));
            events.eq(&expected)
        })
    })
    .await;
    assert!(
        example
            .lines()
            .iter()
            .any(|line| line.starts_with("UNAVAILABLE"))
    );
}
