//! The clients of `docs/framings.md`, run as they are printed there.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{Fixture, create_stream};
use testkit::certs::Authority;
use testkit::nats::{Nats, free_port};
use testkit::sidestream::{Sidestream, config};
use testkit::wait::{DEADLINE, within};

const PAGE: &str = include_str!("../../../docs/framings.md");

/// A client that prints what it receives.
struct Example {
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Example {
    /// Runs the code block of this language.
    fn start(
        folder: &std::path::Path,
        language: &str,
        program: &str,
        file: &str,
        url: &str,
    ) -> Self {
        let (_, rest) = PAGE.split_once(&format!("```{language}\n")).unwrap();
        let (code, _) = rest.split_once("```\n").unwrap();
        let path = folder.join(file);
        std::fs::write(&path, code).unwrap();
        let mut child = Command::new(program)
            .arg(path)
            .arg(url)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            output,
            _child: child,
        }
    }

    async fn line(&mut self) -> String {
        let line = within(
            DEADLINE,
            "the example prints a line",
            self.output.next_line(),
        );
        line.await.unwrap().expect("the example runs")
    }
}

#[tokio::test]
async fn examples_of_the_documentation_receive_events_and_resume_on_the_next_pod() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, Default::default()).await;
    let rest = "routes:\n  - path: /orders\n    retry: 1s\n    \
        sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]\n\
        drain: { accept_for: 100ms, spread: 100ms, timeout: 5s, retry: { min: 500ms, max: 600ms } }";
    let listen = format!("127.0.0.1:{}", free_port());
    let text = config(&nats, rest).replacen("127.0.0.1:0", &listen, 1);
    let mut fixture = Fixture {
        sidestream: Sidestream::start(text.clone()).await,
        nats,
        jetstream,
        authority: Authority::new(),
    };
    let url = fixture.sidestream.url("/orders");
    let folder = tempfile::tempdir().unwrap();
    let mut examples = [
        Example::start(folder.path(), "js", "node", "reader.mjs", &url),
        Example::start(folder.path(), "python", "python3", "reader.py", &url),
    ];
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[("framing", "ndjson")], |open| {
            open == 2.0
        })
        .await;
    fixture.publish("orders.1.x", "{\"a\": [1]}").await;
    for (example, data) in examples.iter_mut().zip(["{\"a\":[1]}", "{\"a\": [1]}"]) {
        assert_eq!(example.line().await, format!("orders.1.x {data}"));
    }
    fixture.sidestream.terminate();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    fixture.publish("orders.2.x", "between").await;
    fixture.sidestream = Sidestream::start(text).await;
    fixture.publish("orders.3.x", "after").await;
    for example in &mut examples {
        assert_eq!(example.line().await, "orders.2.x \"between\"");
        assert_eq!(example.line().await, "orders.3.x \"after\"");
    }
}
