//! Rolling restarts and crashes of pods behind proxies, with 300 clients and 500 events per second.

use std::time::Duration;

use tokio::sync::Mutex;

use super::crowd::{CLIENTS, Crowd};
use super::fixture::{Fixture, SPREAD};
use super::publisher::Publisher;
use testkit::browser::Page;
use testkit::front::Kind;
use testkit::wait::{RECOVERY, eventually};

/// One crowd at a time, because the test measures the rate of reconnects.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Number of clients that follow all 500 events per second; the others follow a tenth. All of them
/// see each drain.
const EVERYTHING: usize = 10;

/// A third of `SPREAD`: a shorter pause of the machine does not look like a thundering herd.
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_drains_behind_nginx_lose_no_event_and_cause_no_error() {
    drains_cost_nothing(Kind::Nginx, 3, EVERYTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_behind_haproxy_loses_no_event_and_causes_no_error() {
    drains_cost_nothing(Kind::Haproxy, 1, EVERYTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_behind_envoy_loses_no_event_and_causes_no_error() {
    drains_cost_nothing(Kind::Envoy, 1, EVERYTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_behind_caddy_loses_no_event_and_causes_no_error() {
    drains_cost_nothing(Kind::Caddy, 1, EVERYTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "building Traefik takes minutes: `make test-long`"]
async fn drain_behind_traefik_loses_no_event_and_causes_no_error() {
    drains_cost_nothing(Kind::Traefik, 1, EVERYTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_behind_nginx_with_http_1_0_loses_no_event_and_causes_no_error() {
    kills_cost_nothing(Kind::NginxHttp10, 1, EVERYTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: `make test-long`"]
async fn ten_drains_and_ten_crashes_behind_a_proxy_lose_no_event_and_cause_no_error() {
    for kind in Kind::ALL {
        drains_cost_nothing(kind, 10, CLIENTS).await;
        kills_cost_nothing(kind, 10, CLIENTS).await;
    }
}

async fn drains_cost_nothing(kind: Kind, rounds: usize, everything: usize) {
    let _alone = ALONE.lock().await;
    let page = Page::serve().await;
    let mut fixture = Fixture::set(kind, &page.origin()).await;
    // A browser takes seconds to start, and uses HTTP/2 with every proxy.
    let page = (kind == Kind::Nginx).then_some(page);
    let mut crowd = Crowd::gather(&fixture, everything, page).await;
    let publisher = Publisher::start(&fixture.nats).await;
    crowd.until_all_have_an_event().await;
    let mut moved = 0;
    for round in 0..rounds {
        moved += drain(&mut fixture, round % 2).await;
        crowd.assert_no_mistakes();
    }
    let published = publisher.stop().await;
    crowd.until_all_have(published).await;
    assert!(
        crowd.drains() >= moved,
        "{} of {moved} clients were closed by a drain",
        crowd.drains()
    );
    finish(fixture, crowd, moved).await;
}

async fn kills_cost_nothing(kind: Kind, rounds: usize, everything: usize) {
    let _alone = ALONE.lock().await;
    let mut fixture = Fixture::set(kind, "http://page.invalid").await;
    let mut crowd = Crowd::gather(&fixture, everything, None).await;
    let publisher = Publisher::start(&fixture.nats).await;
    crowd.until_all_have_an_event().await;
    let mut moved = 0;
    for round in 0..rounds {
        let pod = round % 2;
        let from = fixture.front.log_length();
        moved += fixture.pods[pod].streams().await;
        fixture.pods[pod].sidestream.kill9();
        every_client_is_back(&fixture).await;
        fixture.pods[pod].restart().await;
        fixture.front.until_health_checked(pod, true, from).await;
        crowd.assert_no_mistakes();
    }
    // The pod that all clients have moved to.
    moved += drain(&mut fixture, rounds % 2).await;
    let published = publisher.stop().await;
    crowd.until_all_have(published).await;
    finish(fixture, crowd, moved).await;
}

/// Drains a pod and restarts it; returns its number of clients once all of them have reconnected.
async fn drain(fixture: &mut Fixture, pod: usize) -> usize {
    let from = fixture.front.log_length();
    let clients = fixture.pods[pod].streams().await;
    assert!(clients > 0, "there is something to drain");
    let before = fixture.pods[1 - pod].opened().len();
    let draining = &mut fixture.pods[pod].sidestream;
    draining.terminate();
    assert_eq!(draining.wait_exit(RECOVERY).await, 0);
    every_client_is_back(fixture).await;
    assert_pace(fixture.pods[1 - pod].opened().split_off(before), clients);
    // Restart only when all have reconnected. nginx has no health checks and would choose a pod
    // that is not ready, whose rejection makes a browser wait.
    fixture.pods[pod].restart().await;
    fixture.front.until_health_checked(pod, true, from).await;
    clients
}

/// Asserts that the clients do not all reconnect within a third of the spread. A busy machine bunches
/// some of them.
fn assert_pace(mut opened: Vec<f64>, clients: usize) {
    opened.sort_by(f64::total_cmp);
    let planned = clients as f64 * PAUSE.div_duration_f64(SPREAD);
    let within = |from: f64| {
        opened
            .iter()
            .filter(|at| (from..from + PAUSE.as_secs_f64()).contains(*at))
            .count()
    };
    let most = opened
        .iter()
        .map(|from| within(*from))
        .max()
        .unwrap_or_default();
    assert!(
        most as f64 <= 2.5 * planned,
        "{most} of {clients} came back within {PAUSE:?}, planned are {planned}"
    );
}

async fn every_client_is_back(fixture: &Fixture) {
    eventually(RECOVERY, "every client is back", || async {
        fixture.streams().await == CLIENTS
    })
    .await;
}

/// Asserts that every request got 200 from the last pod that the proxy chose.
async fn finish(fixture: Fixture, crowd: Crowd, moved: usize) {
    drop(crowd);
    eventually(RECOVERY, "every client has gone", || async {
        fixture.streams().await == 0
    })
    .await;
    let kind = fixture.front.kind();
    let logged = fixture.front.stop().await;
    assert_eq!(logged.failed, [""; 0], "answers that no pod gave");
    // HAProxy drops log lines instead of waiting for the reader.
    let least = if kind == Kind::Haproxy {
        1
    } else {
        CLIENTS + moved
    };
    assert!(
        logged.answered >= least,
        "{logged:?}, {moved} clients were moved"
    );
}
