//! Decoders that users have: curl, Node, Python and Chromium.

use std::process::{Command, Stdio};

use testkit::browser::Page;
use testkit::wait::{DEADLINE, within};

use super::{Fixture, Received};

const ROUTES: &str = r#"
routes:
  - path: /both
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    compression: {}
    heartbeat: 100ms
  - path: /gzip
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    compression: { algorithms: [gzip] }
    heartbeat: 100ms
drain: { accept_for: 100ms, spread: 100ms, timeout: 10s }
"#;

/// Reads an event stream to its end and writes it to standard output.
const NODE: &str = "
const response = await fetch(process.argv[1], { headers: { 'accept-encoding': 'gzip' } });
for await (const bytes of response.body) process.stdout.write(bytes);
";

const PYTHON: &str = "
import sys, urllib.request, zlib
request = urllib.request.Request(sys.argv[1], headers={'Accept-Encoding': 'gzip'})
decoder = zlib.decompressobj(31)
with urllib.request.urlopen(request) as response:
    while bytes := response.read1():
        sys.stdout.buffer.write(decoder.decompress(bytes))
assert decoder.eof and not decoder.unused_data
";

#[tokio::test]
async fn programs_read_a_compressed_event_stream_to_its_end() {
    let mut fixture = Fixture::start(ROUTES).await;
    let url = fixture.sidestream.url("/both");
    let curl = |options: &[&'static str]| [&["curl", "-sSN", "--compressed"], options].concat();
    let commands = [
        curl(&["-H", "Accept-Encoding: gzip"]),
        curl(&["-H", "Accept-Encoding: zstd"]),
        curl(&["--http2-prior-knowledge", "-H", "Accept-Encoding: gzip"]),
        curl(&["--http2-prior-knowledge", "-H", "Accept-Encoding: zstd"]),
        curl(&["--http1.0", "-H", "Accept-Encoding: gzip"]),
        curl(&["--http1.0", "-H", "Accept-Encoding: zstd"]),
        vec!["node", "--input-type=module", "-e", NODE],
        vec!["python3", "-c", PYTHON],
    ];
    let mut readers = Vec::new();
    for command in &commands {
        let before = fixture
            .sidestream
            .metric("sidestream_streams_opened_total", &[])
            .await;
        let child = Command::new(command[0])
            .args(&command[1..])
            .arg(&url)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        readers.push(child.unwrap_or_else(|error| panic!("{}: {error}", command[0])));
        let opened = "sidestream_streams_opened_total";
        let is_open = |opened: f64| opened > before;
        fixture.sidestream.until_metric(opened, &[], is_open).await;
        // The next one joins after these.
        let next = readers.len() as u64 * 10;
        fixture.publish(next - 9..=next).await;
    }
    fixture.publish(81..=200).await;
    fixture.sidestream.terminate();
    for (index, (reader, command)) in readers.into_iter().zip(&commands).enumerate() {
        let output = tokio::task::spawn_blocking(|| reader.wait_with_output());
        let output = within(DEADLINE, "the client ends", output)
            .await
            .unwrap()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}");
        let received = Received::of(&String::from_utf8(output.stdout).unwrap(), "");
        let first = index as u64 * 10 + 1;
        assert_eq!(
            received.numbers,
            (first..=200).collect::<Vec<_>>(),
            "{command:?}"
        );
        assert_eq!(received.close.as_deref(), Some("drain"), "{command:?}");
    }
}

#[tokio::test]
async fn chromium_receives_compressed_events_at_once() {
    let page = Page::serve().await;
    let cors = format!(
        "cors: {{ origins: [\"{}\"] }}\n    heartbeat",
        page.origin()
    );
    let fixture = Fixture::start(&ROUTES.replace("heartbeat", &cors)).await;
    let urls = ["/both", "/gzip"].map(|path| fixture.sidestream.url(path));
    let browser = page.open(&[&urls[0], &urls[1]], &[]);
    browser
        .until("both are open", |reports| {
            reports
                .iter()
                .filter(|report| report["kind"] == "open")
                .count()
                == 2
        })
        .await;
    for path in ["zstd", "gzip"] {
        let labels = [("coding", path), ("form", "sent")];
        let bytes = fixture
            .sidestream
            .metric("sidestream_compression_bytes_total", &labels)
            .await;
        assert!(bytes > 0.0, "Chromium accepts {path}");
    }
    let mut last = 0;
    // One event, then a block, each seen before the next is published.
    for count in [1, 30, 1, 1, 200] {
        fixture.publish(last + 1..=last + count).await;
        last += count;
        browser
            .until("every event has arrived", |reports| {
                (0..2).all(|source| {
                    let data = reports
                        .iter()
                        .filter(|report| report["kind"] == "event" && report["source"] == source);
                    let numbers = data.map(|event| {
                        let data = event["data"].as_str().unwrap();
                        let data: serde_json::Value = serde_json::from_str(data).unwrap();
                        data["n"].as_u64().unwrap()
                    });
                    numbers.eq(1..=last)
                })
            })
            .await;
    }
}
