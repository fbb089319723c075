//! A blocked or closed standard error does not affect the sidecar.

use std::time::Instant;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

use super::fixture::Fixture;
use testkit::http1;
use testkit::process::Output;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually, within};

/// Log filter with several lines per client.
const VERBOSE: &str = "log: { filter: debug }\n";

/// Connects clients, each of which writes log lines, until `holds` returns true.
async fn churn_until(fixture: &Fixture, fact: &str, mut holds: impl AsyncFnMut() -> bool) {
    within(DEADLINE * 4, fact, async {
        while !holds().await {
            for _ in 0..200 {
                let mut client = fixture.socket().await;
                client
                    .write_all(b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
                    .unwrap();
            }
        }
    })
    .await;
}

/// Asserts that a new client gets an event.
async fn assert_delivers(fixture: &Fixture) {
    let publisher = fixture.nats.client().await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders/beside"))
        .connect()
        .await;
    client.positioned().await;
    publisher
        .publish("orders.beside.x", "x".into())
        .await
        .unwrap();
    assert_eq!(client.next().await.data, "x");
}

#[tokio::test]
async fn a_blocked_standard_error_stops_nothing_and_dropped_lines_are_counted_and_reported() {
    let mut fixture = Fixture::start(VERBOSE).await;
    let dropped = async || {
        fixture
            .sidestream
            .metric("sidestream_log_lines_dropped_total", &[])
            .await
    };
    assert_eq!(dropped().await, 0.0);
    fixture.sidestream.set_output(Output::Left);
    churn_until(&fixture, "lines are dropped", async || {
        dropped().await > 0.0
    })
    .await;
    let live = http1::get(&fixture.sidestream.url_admin("/health/live"))
        .await
        .unwrap();
    assert_eq!(live.status, 200);

    fixture.sidestream.set_output(Output::Read);
    let report = eventually(
        DEADLINE,
        "dropped lines are reported when writing works again",
        || async {
            let lines = fixture.sidestream.output();
            let lines = lines
                .iter()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines.into_iter().find(|line| {
                line["message"] == "log lines dropped: standard error did not accept them"
            })
        },
    )
    .await;
    assert!(
        report["lines"].as_f64().is_some_and(|lines| lines > 0.0),
        "{report}"
    );

    fixture.sidestream.set_output(Output::Left);
    let before = dropped().await;
    churn_until(&fixture, "lines are dropped again", async || {
        dropped().await > before
    })
    .await;
    assert_delivers(&fixture).await;
    let begun = Instant::now();
    fixture.sidestream.signal(Signal::TERM);
    let code = fixture.sidestream.wait_exit(DEADLINE * 3).await;
    assert_eq!(code, 0, "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_closed_standard_error_stops_nothing() {
    let mut fixture = Fixture::start(VERBOSE).await;
    fixture.sidestream.set_output(Output::Closed);
    let dropped = async || {
        fixture
            .sidestream
            .metric("sidestream_log_lines_dropped_total", &[])
            .await
    };
    churn_until(&fixture, "lines are dropped", async || {
        dropped().await > 0.0
    })
    .await;
    assert_delivers(&fixture).await;
    fixture.sidestream.signal(Signal::TERM);
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE * 3).await, 0);
}
