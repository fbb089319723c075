//! Tests of reviews while other pods hold the connections of the webhook.

use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::{Injector, injector, recorded};
use testkit::wait::{DEADLINE, eventually};

/// 4 s: after 5 s the API server gives up, and the pod starts without a sidecar.
const REVIEW_MAX: Duration = Duration::from_secs(4);

async fn assert_reviews(injector: &Injector) {
    let asked = Instant::now();
    let answer = injector.review(&recorded("create")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(asked.elapsed() < REVIEW_MAX, "{:?}", asked.elapsed());
    assert_eq!(injector.get("/health/ready").await.0, 200);
}

async fn refused(injector: &Injector, code: &str) -> f64 {
    let sample = format!("sidestream_injector_refusals_total{{code=\"{code}\",port=\"webhook\"}} ");
    let metrics = injector.get("/metrics").await.1;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap_or_else(|| panic!("{sample} in {metrics}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn reviews_are_answered_while_a_thousand_connections_are_silent() {
    let (injector, _authority) = injector().await;
    let silent: Vec<_> = (0..1_024)
        .map(|_| TcpStream::connect(&injector.webhook).unwrap())
        .collect();
    assert_reviews(&injector).await;
    assert!(refused(&injector, "evicted").await > 500.0);
    drop(silent);
}

/// Sends a large body slowly, from an address of its own.
fn slow_body(injector: &Injector, file: &std::path::Path) -> Child {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--insecure",
        "--interface",
        "127.0.0.2",
        "--limit-rate",
        "1000",
    ]);
    command
        .arg("--data-binary")
        .arg(format!("@{}", file.display()));
    command.arg(format!("https://{}/inject", injector.webhook));
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn reviews_are_answered_while_another_pod_sends_bodies_slowly() {
    let (injector, _authority) = injector().await;
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), " ".repeat(1 << 20)).unwrap();
    let slow: Vec<_> = (0..24).map(|_| slow_body(&injector, body.path())).collect();
    let port = injector
        .webhook
        .rsplit_once(':')
        .unwrap()
        .1
        .parse::<u16>()
        .unwrap();
    eventually(DEADLINE, "the slow ones are connected", || async {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let from = "0200007F:".to_owned();
        let to = format!("0100007F:{port:04X} 01 ");
        sockets
            .lines()
            .filter(|line| line.contains(&from) && line.contains(&to))
            .count()
            >= 16
    })
    .await;
    assert_reviews(&injector).await;
    drop(slow);
}
