//! Tabs with the client library that reload while pods restart in turn, on a finite event stream: each
//! receives the whole text once, and then 204.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};
use testkit::http1;
use testkit::node::Tabs;
use testkit::sidestream::metric;
use testkit::wait::{RECOVERY, eventually};

use super::two_pods::TwoPods;

const TABS: usize = 5;

/// 50 events per second.
const PERIOD: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_tabs_that_reload_while_each_pod_restarts_have_one_text_and_one_204_each() {
    tabs_have_one_text(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: `make test-long`"]
async fn five_tabs_that_reload_during_three_rolling_restarts_have_one_text_and_one_204_each() {
    tabs_have_one_text(3).await;
}

/// Reloads five tabs every second during this many restarts of both pods, and until each has received
/// 204 after the end.
async fn tabs_have_one_text(rolling_restarts: usize) {
    let mut pods = TwoPods::start().await;
    let client = pods.nats.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let publishing = tokio::spawn(async move {
        let (mut texts, mut period) = (Vec::new(), tokio::time::interval(PERIOD));
        while !stopped.load(Ordering::Relaxed) {
            period.tick().await;
            let text = texts.len().to_string();
            client
                .publish("orders.run", text.clone().into())
                .await
                .unwrap();
            texts.push(text);
        }
        let mut headers = HeaderMap::new();
        headers.insert("Sidestream-End", "true");
        client
            .publish_with_headers("orders.run", headers, "END".into())
            .await
            .unwrap();
        client.flush().await.unwrap();
        texts.push("END".to_owned());
        texts
    });
    let mut steps = vec!["open"; TABS];
    steps.push("finish");
    let options = json!({ "keepPosition": true, "heartbeatMs": 1000 });
    let tabs = Tabs::start(&pods.front.url("/run"), &options, &steps);
    tabs.until_done(TABS - 1).await;

    for _ in 0..rolling_restarts {
        for pod in [0, 1] {
            tokio::time::sleep(Duration::from_secs(2)).await;
            pods.restart(pod).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut expected = publishing.await.unwrap();
    expected.push("sidestream.end".to_owned());
    tabs.until_done(TABS).await;

    let reports = tabs.reports();
    let logs: Vec<&Value> = reports.iter().filter(|one| one["kind"] == "log").collect();
    assert_eq!(logs.len(), TABS);
    for log in logs {
        let loads = log["loads"].as_u64().unwrap();
        let texts: Vec<String> = serde_json::from_value(log["events"].clone()).unwrap();
        assert_eq!(texts, expected, "tab {} after {loads} loads", log["tab"]);
        assert!(
            loads as usize >= 4 * rolling_restarts,
            "tab {}: {loads} loads",
            log["tab"]
        );
    }
    assert!(reports.iter().all(|one| one["kind"] != "exception"));
    let finished = eventually(RECOVERY, "both pods report", || async {
        let mut finished = 0.0;
        for pod in &pods.pods {
            let answer = http1::get(&pod.sidestream.url_admin("/metrics"))
                .await
                .ok()?;
            let labels = [("route", "/run")];
            finished += metric(&answer.body, "sidestream_finished_total", &labels);
        }
        Some(finished)
    })
    .await;
    assert_eq!(finished, TABS as f64, "one 204 for each tab");
}
