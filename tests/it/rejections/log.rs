//! A standard error that accepts nothing, because a log collector hangs or has left, stops nothing.

use std::time::Instant;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

use super::scene::Scene;
use testkit::http1;
use testkit::process::Output;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually, within};

/// Every client that comes and goes writes lines; this filter makes more of them.
const TALKATIVE: &str = "log: { filter: debug }\n";

/// Connects clients until this holds: each writes some lines to the log.
async fn churn_until(scene: &Scene, fact: &str, mut holds: impl AsyncFnMut() -> bool) {
    within(DEADLINE * 4, fact, async {
        while !holds().await {
            for _ in 0..200 {
                let mut client = scene.socket().await;
                client
                    .write_all(b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
                    .unwrap();
            }
        }
    })
    .await;
}

/// A new client gets an event.
async fn assert_delivers(scene: &Scene) {
    let publisher = scene.nats.client().await;
    let mut client = SseClient::get(scene.sidestream.url("/orders/beside"))
        .connect()
        .await;
    client
        .until_seen("its position", |parser| parser.positions() > 0)
        .await;
    publisher
        .publish("orders.beside.x", "x".into())
        .await
        .unwrap();
    assert_eq!(client.next().await.data, "x");
}

#[tokio::test]
async fn stuck_standard_error_stops_nothing_and_dropped_lines_are_counted_and_reported() {
    let mut scene = Scene::start(TALKATIVE).await;
    let dropped = async || {
        scene
            .sidestream
            .metric("sidestream_log_lines_dropped_total", &[])
            .await
    };
    assert_eq!(dropped().await, 0.0);
    scene.sidestream.set_output(Output::Left);
    churn_until(&scene, "lines are dropped", async || dropped().await > 0.0).await;
    let live = http1::get(&scene.sidestream.url_admin("/health/live"))
        .await
        .unwrap();
    assert_eq!(live.status, 200);

    scene.sidestream.set_output(Output::Read);
    let report = eventually(
        DEADLINE,
        "dropped lines are reported when writing works again",
        || async {
            let lines = scene.sidestream.output();
            let lines = lines
                .iter()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines.into_iter().find(|line| {
                line["message"] == "standard error did not accept log lines; they were dropped"
            })
        },
    )
    .await;
    assert!(
        report["lines"].as_f64().is_some_and(|lines| lines > 0.0),
        "{report}"
    );

    scene.sidestream.set_output(Output::Left);
    let before = dropped().await;
    churn_until(&scene, "lines are dropped again", async || {
        dropped().await > before
    })
    .await;
    assert_delivers(&scene).await;
    let begun = Instant::now();
    scene.sidestream.signal(Signal::TERM);
    let code = scene.sidestream.wait_exit(DEADLINE * 3).await;
    assert_eq!(code, 0, "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn closed_standard_error_stops_nothing() {
    let mut scene = Scene::start(TALKATIVE).await;
    scene.sidestream.set_output(Output::Closed);
    let dropped = async || {
        scene
            .sidestream
            .metric("sidestream_log_lines_dropped_total", &[])
            .await
    };
    churn_until(&scene, "lines are dropped", async || dropped().await > 0.0).await;
    assert_delivers(&scene).await;
    scene.sidestream.signal(Signal::TERM);
    assert_eq!(scene.sidestream.wait_exit(DEADLINE * 3).await, 0);
}
