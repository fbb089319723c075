//! Peers that are stalled or vanished: detected and closed within the documented time on every
//! protocol.

use std::time::{Duration, Instant};

use super::fixture::Fixture;
use testkit::h2::{Builder, H2Client};
use testkit::sse::SseClient;
use testkit::wait::eventually;

/// docs/slow-clients.md: limit without an acknowledgement, or without an accepted write.
const STUCK: Duration = Duration::from_secs(25);

/// docs/slow-clients.md: limit of HTTP/2 PING frames.
const PINGS: Duration = Duration::from_secs(30);

/// Margin for a busy machine and a pending retransmission.
const GRACE: Duration = Duration::from_secs(8);

/// Drops all packets of this socket, as if its machine had lost power.
fn drop_all_packets(client: &mut SseClient) {
    // `ret #0`: drop every packet, even for acknowledgements.
    let nothing = [socket2::SockFilter::new(0x06, 0, 0, 0)];
    let tcp = client.response().transport().tcp();
    socket2::SockRef::from(tcp).attach_filter(&nothing).unwrap();
}

async fn until_closed(fixture: &Fixture, route: &str, most: Duration) -> Duration {
    let began = Instant::now();
    eventually(most + GRACE, &format!("{route} is closed"), || async {
        fixture
            .sidestream
            .metric("sidestream_streams", &[("route", route)])
            .await
            == 0.0
    })
    .await;
    began.elapsed()
}

#[tokio::test]
#[ignore = "takes half a minute"]
async fn a_vanished_peer_is_detected_by_heartbeats_on_http_1() {
    let fixture = Fixture::start().await;
    let mut client = SseClient::get(fixture.sidestream.url("/quiet"))
        .connect()
        .await;
    client
        .until_seen("a heartbeat", |parser| !parser.comments().is_empty())
        .await;
    drop_all_packets(&mut client);
    // A heartbeat of 2 s, then the timeout of the kernel.
    let lasted = until_closed(&fixture, "/quiet", Duration::from_secs(2) + STUCK).await;
    println!("found after {lasted:?}");
    assert!(
        lasted > Duration::from_secs(20),
        "it was the vanishing that ended it: {lasted:?}"
    );
    fixture
        .sidestream
        .until_metric_within(GRACE, "sidestream_connections", &[], |open| open == 0.0)
        .await;
}

#[tokio::test]
#[ignore = "takes half a minute"]
async fn a_vanished_peer_is_detected_by_pings_on_http_2() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut stream = connection.get("/quiet").await;
    stream
        .until_seen("a heartbeat", |parser| !parser.comments().is_empty())
        .await;
    connection.freeze();
    let lasted = until_closed(&fixture, "/quiet", PINGS).await;
    println!("found after {lasted:?}");
    fixture
        .sidestream
        .until_metric_within(GRACE, "sidestream_connections", &[], |open| open == 0.0)
        .await;
}

#[tokio::test]
#[ignore = "takes half a minute"]
async fn a_stalled_client_is_closed_even_with_few_pending_bytes() {
    let mut fixture = Fixture::start().await;
    let _stuck = fixture.lazy("/usual").await;
    fixture.publish_until_waiting("/usual", 20, 4000).await;
    let mut connection = Builder::default()
        .connect(fixture.sidestream.url("/"))
        .await;
    let mut stalled = connection.get("/disconnect").await;
    let mut reading = connection.get("/past").await;
    for _ in 0..8 {
        fixture.publish(10, 4000).await;
        reading.take(10).await;
    }
    let began = Instant::now();
    until_closed(&fixture, "/usual", STUCK).await;
    until_closed(&fixture, "/disconnect", STUCK).await;
    println!("both closed after {:?}", began.elapsed());
    assert!(
        began.elapsed() > Duration::from_secs(15),
        "the stall timeout alone closes no client"
    );
    stalled.closed().await;
    assert!(!connection.going_away(), "the connection is not at fault");
    fixture.publish(1, 10).await;
    reading.next().await;
}
