//! The client library behind a proxy that holds responses back until they end: it changes the
//! framing, and receives every event once while two pods restart in turn.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::http1;
use testkit::nats::free_port;
use testkit::node::{NodeClient, Tabs};
use testkit::process::Process;
use testkit::sidestream::metric;
use testkit::wait::{RECOVERY, eventually};

use super::two_pods::{END, Publisher, TwoPods};

/// HTTP/1.0 to the pods, so that nginx fills its buffers. WebSockets pass.
const NGINX: &str = "
daemon off;
pid nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream pods { server 127.0.0.1:POD0 max_fails=0; server 127.0.0.1:POD1 max_fails=0; }
  proxy_next_upstream error timeout http_503;
  server {
    listen 127.0.0.1:PORT;
    error_page 418 = @websocket;
    location / {
      if ($http_upgrade) { return 418; }
      proxy_pass http://pods;
      proxy_http_version 1.0;
      proxy_buffering on;
      proxy_ignore_headers X-Accel-Buffering;
    }
    location @websocket {
      proxy_pass http://pods;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
    }
  }
}
";

/// Life of a tab.
const STEPS: [&str; 3] = ["open", "events:100", "end"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_buffering_proxy_fall_back_and_receive_every_event_once() {
    let mut pods = TwoPods::start().await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = NGINX
        .replace("PORT", &port.to_string())
        .replace("POD0", &pods.ports[0].clients.to_string())
        .replace("POD1", &pods.ports[1].clients.to_string());
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(folder.path()).arg("-c").arg(file);
    let _nginx = Process::spawn("nginx", &mut nginx);

    let url = format!("http://127.0.0.1:{port}/orders");
    let polling = json!({ "heartbeatMs": 1000, "framings": ["sse", "long_poll"] });
    let tabs = [
        Tabs::start(&url, &json!({ "heartbeatMs": 1000 }), &STEPS),
        Tabs::start(&url, &polling, &STEPS),
    ];
    // Node 20 has no WebSocket.
    let node = NodeClient::source(&url, &json!({ "heartbeatMs": 1000 }));
    let is_silent = |one: &Value| {
        one["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("no byte"))
    };
    let is_open = |one: &Value| one["kind"] == "open";
    let has_fallen_back =
        |reports: &[Value]| reports.iter().any(is_silent) && reports.iter().any(is_open);
    eventually(RECOVERY, "every client has fallen back", || async {
        let all = [tabs[0].reports(), tabs[1].reports(), node.reports()];
        all.iter()
            .all(|reports| has_fallen_back(reports))
            .then_some(())
    })
    .await;
    assert_eq!(opened(&pods, "websocket").await, 1.0);
    assert!(opened(&pods, "long_poll").await >= 2.0);

    let publisher = Publisher::start(&pods.nats).await;
    for pod in [0, 1] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        pods.restart(pod).await;
    }
    let published = publisher.stop().await;
    let expected: Vec<String> = (0..published)
        .map(|number| number.to_string())
        .chain([END.to_owned()])
        .collect();
    for tab in &tabs {
        tab.until_done(STEPS.len() - 1).await;
        let reports = tab.reports();
        let log = reports.iter().find(|one| one["kind"] == "log").unwrap();
        let events: Vec<String> = serde_json::from_value(log["events"].clone()).unwrap();
        assert_eq!(events, expected);
    }
    let has_ended = |reports: &[Value]| reports.iter().any(|one| one["data"] == END);
    node.until("the client in Node has every event", has_ended)
        .await;
    let events: Vec<Value> = node
        .events()
        .iter()
        .map(|one| one["data"].clone())
        .collect();
    assert_eq!(events, expected);
}

/// Number of event streams in this framing that the pods have opened.
async fn opened(pods: &TwoPods, framing: &str) -> f64 {
    let mut sum = 0.0;
    for pod in &pods.pods {
        let answer = http1::get(&pod.sidestream.url_admin("/metrics"))
            .await
            .unwrap();
        sum += metric(
            &answer.body,
            "sidestream_streams_opened_total",
            &[("framing", framing)],
        );
    }
    sum
}
