//! Limits of connections, feeds, event streams, filter sets and connects, and cleanup after
//! clients.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::fixture::{Fixture, socket};
use super::table::assert_passing;
use testkit::h2::H2Client;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

#[tokio::test]
async fn a_connection_above_the_limit_gets_retry_after_and_is_served_later() {
    // One connection is the witness.
    let fixture = Fixture::start("limits: { connections: 4 }").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = SseClient::get(fixture.sidestream.url("/orders/1"))
            .connect()
            .await;
        assert_eq!(client.status(), 200);
        clients.push(client);
    }
    assert_passing(
        &fixture.sidestream,
        "/orders/1",
        "too_many_connections",
        "overload",
    )
    .await;
    // Permanent rejections do not depend on free connections.
    let wrong = SseClient::get(fixture.sidestream.url("/nowhere"))
        .connect()
        .await;
    assert_eq!(wrong.status(), 404);
    let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut refused = h2.get("/orders/1").await;
    assert_eq!(
        (refused.status(), refused.header("connection")),
        (503, None)
    );
    assert!(refused.body().await.contains("too_many_connections"));
    drop((wrong, refused, h2));

    clients.pop();
    eventually(DEADLINE, "a closed connection frees its permit", || async {
        SseClient::get(fixture.sidestream.url("/orders/1"))
            .connect()
            .await
            .status()
            == 200
    })
    .await;
    drop(clients);
    fixture.finish().await;
}

#[tokio::test]
async fn a_feed_above_the_limit_is_rejected_while_existing_feeds_accept_clients() {
    // One feed is the witness's.
    let fixture = Fixture::start("limits: { feeds: 3, per_client: { filter_sets: null } }").await;
    let get = |target: &str| SseClient::get(fixture.sidestream.url(target)).connect();
    let (one, two) = (get("/orders/1").await, get("/orders/2").await);
    assert_eq!((one.status(), two.status()), (200, 200));
    assert_passing(
        &fixture.sidestream,
        "/orders/3",
        "too_many_feeds",
        "overload",
    )
    .await;
    let again = get("/orders/2").await;
    assert_eq!(again.status(), 200, "a feed that is there takes any number");
    drop((one, two, again));
    fixture.finish().await;
}

/// Route with a client name in its path.
const NAMED: &str = "
  - path: /named/{id}
    client: \"{query.client}\"
    sources: [{ subjects: [\"orders.{id}.>\"] }]
";

#[tokio::test]
async fn the_limit_of_event_streams_per_client_does_not_depend_on_other_clients() {
    let fixture = Fixture::start(&format!(
        "{NAMED}limits: {{ per_client: {{ connections: 2 }} }}"
    ))
    .await;
    let get = |client: &str| {
        SseClient::get(fixture.sidestream.url(&format!("/named/1?client={client}"))).connect()
    };
    let (one, two) = (get("a").await, get("a").await);
    assert_eq!((one.status(), two.status()), (200, 200));
    assert_passing(
        &fixture.sidestream,
        "/named/1?client=a",
        "too_many_connections_of_client",
        "overload",
    )
    .await;
    let other = get("b").await;
    assert_eq!(other.status(), 200);
    // An HTTP/2 stream counts as well, and a rejection does not affect other streams of its
    // connection.
    let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
    let memory = "sidestream_connections_memory_bytes";
    let before = fixture
        .sidestream
        .until_metric(memory, &[], |bytes| bytes >= 22.0 * 1024.0)
        .await;
    let mut mine = h2.get("/named/1?client=b").await;
    assert_eq!(mine.status(), 200);
    let after = fixture.sidestream.metric(memory, &[]).await;
    assert!(
        after > before,
        "the connection, and its event stream: {before}, {after}"
    );
    mine.positioned().await;
    assert_eq!(h2.get("/named/1?client=a").await.status(), 503);
    let publisher = fixture.nats.client().await;
    publisher
        .publish("orders.1.a", "still here".into())
        .await
        .unwrap();
    assert_eq!(mine.next().await.data, "still here");
    let throttled = fixture
        .sidestream
        .metric("sidestream_throttled_total", &[("limit", "connections")])
        .await;
    assert_eq!(throttled, 7.0);
    let is_told = |line: &Value| line["message"] == "client throttled" && line["client"] == "a";
    assert_eq!(
        fixture.sidestream.log().into_iter().filter(is_told).count(),
        1,
        "logged once, not each time"
    );
    drop((one, mine));
    eventually(
        DEADLINE,
        "a closed event stream frees its permit",
        || async { get("a").await.status() == 200 },
    )
    .await;
    drop((two, other, h2));
    fixture.finish().await;
}

#[tokio::test]
async fn the_limit_of_filter_sets_is_per_client() {
    let fixture = Fixture::start(&format!(
        "{NAMED}limits: {{ per_client: {{ filter_sets: 2 }} }}"
    ))
    .await;
    let url = |client: &str, id: u32| {
        fixture
            .sidestream
            .url(&format!("/named/{id}?client={client}"))
    };
    let get = async |client: &str, id| SseClient::get(url(client, id)).connect().await;
    let (one, two, again) = (get("a", 1).await, get("a", 2).await, get("a", 2).await);
    assert_eq!(
        (one.status(), two.status(), again.status()),
        (200, 200, 200),
        "the same set costs nothing more"
    );
    let mut refused = get("a", 3).await;
    assert_eq!(
        (refused.status(), refused.header("connection").as_deref()),
        (429, Some("close"))
    );
    assert!(refused.header("retry-after").is_some());
    assert!(
        refused
            .body()
            .await
            .contains("too_many_filter_sets_of_client")
    );
    let mut browser = SseClient::get(url("a", 3)).browser().connect().await;
    assert_eq!(browser.status(), 200);
    assert_eq!(browser.next().await.name, "sidestream.close");
    let other = get("b", 3).await;
    assert_eq!(other.status(), 200);
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_throttled_total", &[("limit", "filter_sets")])
            .await,
        2.0
    );
    drop(one);
    eventually(
        DEADLINE,
        "a set that is not read any longer does not count",
        || async { get("a", 3).await.status() == 200 },
    )
    .await;
    drop((two, again, other));
    fixture.finish().await;
}

#[tokio::test]
async fn one_client_cannot_use_all_feeds_by_default() {
    // A quarter of the feeds per client, and one for the witness.
    let fixture = Fixture::start(&format!("{NAMED}limits: {{ feeds: 8 }}")).await;
    let get = async |client: &str, id: u32| {
        SseClient::get(
            fixture
                .sidestream
                .url(&format!("/named/{id}?client={client}")),
        )
        .connect()
        .await
    };
    let greedy = [get("a", 1).await, get("a", 2).await, get("a", 3).await];
    assert_eq!(greedy.each_ref().map(SseClient::status), [200, 200, 429]);
    let others = [get("b", 4).await, get("c", 5).await];
    assert_eq!(others.each_ref().map(SseClient::status), [200, 200]);
    drop((greedy, others));
    fixture.finish().await;
}

#[tokio::test]
async fn feeds_that_were_closed_at_once_are_removed_at_once() {
    let fixture = Fixture::start("").await;
    let core = [("source", "core")];
    for round in 0..3 {
        let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
        let mut streams = Vec::new();
        for number in 0..100 {
            streams.push(h2.get(&format!("/orders/{round}-{number}")).await);
        }
        drop((streams, h2));
    }
    // Well before the maximum linger time of 30 s.
    eventually(DEADLINE, "no feed lingers", || async {
        fixture.sidestream.metric("sidestream_feeds", &core).await == 0.0
    })
    .await;
    fixture.finish().await;
}

#[tokio::test]
async fn a_client_above_the_connect_rate_gets_retry_after() {
    let limits = "limits: { per_client: { connects: { rate: 1, burst: 5 } } }";
    let fixture = Fixture::start(&format!("{NAMED}{limits}")).await;
    let url = |client: &str| fixture.sidestream.url(&format!("/named/1?client={client}"));
    // Requests that open no event stream do not count.
    for _ in 0..10 {
        assert_eq!(
            SseClient::get(url("a")).head().connect().await.status(),
            200
        );
    }
    let mut refused = None;
    for _ in 0..20 {
        let answer = SseClient::get(url("a")).connect().await;
        if answer.status() != 200 {
            refused = Some(answer);
            break;
        }
    }
    let mut refused = refused.expect("a burst of five ends");
    assert_eq!(
        (refused.status(), refused.header("connection").as_deref()),
        (429, Some("close"))
    );
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    assert!(refused.body().await.contains("too_many_connects"));
    assert_eq!(
        SseClient::get(url("b")).connect().await.status(),
        200,
        "others have their own tokens"
    );
    let mut browser = SseClient::get(url("a")).browser().connect().await;
    assert_eq!(browser.status(), 200);
    let event = browser.next().await;
    assert!(
        event.name == "sidestream.close" && event.data.contains("overload"),
        "{event:?}"
    );
    assert!(browser.retry().is_some_and(|retry| retry >= 2_000));
    eventually(DEADLINE, "a token comes each second", || async {
        SseClient::get(url("a")).connect().await.status() == 200
    })
    .await;
    assert!(
        fixture
            .sidestream
            .metric("sidestream_throttled_total", &[("limit", "connects")])
            .await
            >= 2.0
    );
    fixture.finish().await;
}

/// Actions of one of the thousand clients.
async fn visit(url: String, number: usize) {
    let target = format!("{url}/streams/{}", number % 40);
    let stay = Duration::from_millis(fastrand::u64(0..30));
    match number % 8 {
        0 => drop(socket(&url).await),
        1 => {
            let mut half = socket(&url).await;
            half.write_all(b"GET /streams/1 HT").await.unwrap();
        }
        2 => {
            let mut hurried = socket(&url).await;
            hurried
                .write_all(b"GET /streams/1 HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
        }
        3 => {
            let mut h2 = H2Client::connect(&url).await;
            let streams = [
                h2.get("/streams/1").await,
                h2.get("/streams/2").await,
                h2.get("/streams/3").await,
            ];
            tokio::time::sleep(stay).await;
            let [one, ..] = streams;
            one.reset();
        }
        4 => {
            let client = SseClient::get(target).connect().await;
            tokio::time::sleep(stay).await;
            client.reset();
        }
        5 => drop(SseClient::get(target).http10().connect().await),
        _ => {
            let mut client = SseClient::get(target).connect().await;
            client.positioned().await;
            tokio::time::sleep(stay).await;
        }
    }
}

#[tokio::test]
async fn a_thousand_short_clients_leave_no_descriptor_feed_or_registration() {
    let routes = "
  - path: /streams/{id}
    sources: [{ stream: WITNESS, subjects: [\"witness.of.{id}\"] }]";
    let fixture = Fixture::start(routes).await;
    let url = fixture.sidestream.url("");
    // 50 at a time, on a machine that also runs other tests.
    let places = Arc::new(Semaphore::new(50));
    let visits = (0..1000).map(|number| {
        let (url, places) = (url.clone(), Arc::clone(&places));
        tokio::spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            visit(url, number).await;
        })
    });
    for visited in futures_util::future::join_all(visits).await {
        visited.unwrap();
    }
    let feeds = [("source", "WITNESS")];
    fixture
        .sidestream
        .until_metric("sidestream_feeds", &feeds, |feeds| feeds == 1.0)
        .await;
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[], |streams| streams == 1.0)
        .await;
    let connections = fixture.sidestream.admin_json("/connections").await;
    let routes: Vec<_> = connections["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["route"])
        .collect();
    assert_eq!(routes, ["/witness"]);
    let opened = fixture
        .sidestream
        .metric("sidestream_streams_opened_total", &[])
        .await;
    let closed = fixture
        .sidestream
        .metric("sidestream_streams_closed_total", &[])
        .await;
    assert_eq!(opened, closed + 1.0, "each end is counted once");
    fixture.finish().await;
}

/// Opens `count` different subjects one after the other over one connection, and closes each event
/// stream at once.
async fn open_many_subjects(count: usize) {
    let routes = "
  - path: /streams/{id}
    sources: [{ stream: WITNESS, subjects: [\"witness.of.{id}\"] }]";
    let fixture = Fixture::start(routes).await;
    let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
    let ask = async |h2: &mut H2Client, from: usize, to: usize| {
        for number in from..to {
            let client = h2.get(&format!("/streams/{number}")).await;
            assert_eq!(client.status(), 200);
            client.reset();
        }
    };
    // Memory that the allocator keeps after the first ones is not a leak.
    ask(&mut h2, 0, count / 10).await;
    let resident = fixture.sidestream.resident_bytes();
    ask(&mut h2, count / 10, count).await;
    fixture
        .sidestream
        .until_metric("sidestream_feeds", &[("source", "WITNESS")], |feeds| {
            feeds == 1.0
        })
        .await;
    let grown = fixture.sidestream.resident_bytes().saturating_sub(resident);
    assert!(grown < 16 << 20, "{grown} bytes leak");
    drop(h2);
    fixture.finish().await;
}

#[tokio::test]
async fn five_thousand_subjects_of_one_client_leak_nothing() {
    open_many_subjects(5_000).await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn a_hundred_thousand_subjects_of_one_client_leak_nothing() {
    open_many_subjects(100_000).await;
}

#[tokio::test]
async fn core_subjects_are_limited_by_the_number_of_feeds_and_release_their_memory() {
    let fixture = Fixture::start("limits: { feeds: 500, per_client: { filter_sets: null } }").await;
    let resident = fixture.sidestream.resident_bytes();
    let (mut clients, mut connections) = (Vec::new(), Vec::new());
    for number in 0..499 {
        if number % 100 == 0 {
            connections.push(H2Client::connect(fixture.sidestream.url("/")).await);
        }
        let client = connections
            .last_mut()
            .unwrap()
            .get(&format!("/orders/{number}"))
            .await;
        assert_eq!(
            client.status(),
            200,
            "one is the witness's, number {number} is not too many"
        );
        clients.push(client);
    }
    for number in 499..510 {
        let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
        assert_eq!(h2.get(&format!("/orders/{number}")).await.status(), 503);
    }
    assert_eq!(fixture.refused("too_many_feeds").await, 11.0);
    let grown = fixture.sidestream.resident_bytes().saturating_sub(resident);
    assert!(grown < 32 << 20, "{grown} bytes for 499 feeds");
    drop((clients, connections));
    eventually(DEADLINE * 4, "feeds end", || async {
        fixture
            .sidestream
            .metric("sidestream_feeds", &[("source", "core")])
            .await
            == 0.0
    })
    .await;
    fixture.finish().await;
}
