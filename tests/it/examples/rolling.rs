//! Rolling restart of two pods of a shop, with nginx in front of them.

use std::time::Duration;

use rustix::process::Signal;
use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::nats::{Nats, free_port};
use testkit::wait::eventually;

use super::pod::{Language, Pod, script};

/// 60 s: Chromium takes seconds to start, and longer on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_of_two_pods_loses_no_order_and_fails_no_request() {
    let nats = Nats::start().await;
    let ports = [(); 2].map(|()| Ports {
        clients: free_port(),
        admin: free_port(),
    });
    let rest = ports.map(configuration);
    let (first, second) = tokio::join!(
        Pod::with(Language::Node, &nats, &rest[0]),
        Pod::with(Language::Node, &nats, &rest[1])
    );
    let front = Front::start(Kind::Nginx, ports, &Authority::new()).await;
    let mut load = script("load.js", &front.url(""));
    eventually(DEADLINE, "the load has begun", || async {
        load.lines().iter().any(|line| line == "loaded")
    })
    .await;
    let mut moved = 0.0;
    let mut pods = [first, second];
    for pod in &mut pods {
        moved += pod.sidestream.metric("sidestream_streams", &[]).await;
        pod.restart().await;
    }
    load.signal(Signal::TERM);
    let status = load.wait_exit(DEADLINE).await;
    assert!(status.success(), "{:#?}", load.lines());
    assert!(moved >= 1.0, "the page was on a pod that has ended");
}

/// Listeners on fixed ports, and a drain that is scaled down.
fn configuration(ports: Ports) -> String {
    let Ports { clients, admin } = ports;
    format!(
        "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
trusted_proxies: [\"127.0.0.0/8\"]
drain: {{ accept_for: 500ms, spread: 1s, timeout: 10s, retry: {{ min: 100ms, max: 600ms }} }}
"
    )
}
