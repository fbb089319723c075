//! HTTP/2 clients with tiny or closed windows: cheap, detected as slow, without effect on other
//! clients.

use std::time::{Duration, Instant};

use super::fixture::Fixture;
use testkit::h2::{Builder, H2Client, H2Stream};
use testkit::h2_tap::RST_STREAM;
use testkit::http1::End;
use testkit::wait::{DEADLINE, eventually, within};

/// Number of streams that a gateway opens on one connection.
const STREAMS: usize = 200;

/// docs/slow-clients.md: two write batches, one that the window splits and the next one, each of 32
/// KiB plus the event that exceeds them, for which the allocator uses 40.
const EACH_MAX: u64 = 96 * 1024;

async fn connect(fixture: &Fixture, window: u32) -> H2Client {
    Builder::default()
        .stream_window(window)
        .connect(fixture.sidestream.url("/"))
        .await
}

/// Reads twenty bytes per second, with one WINDOW_UPDATE per byte, until the end.
async fn read_by_single_bytes(mut stream: H2Stream) -> End {
    loop {
        if let Err(end) = stream.piece().await {
            return end;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_window_that_opens_byte_by_byte_counts_as_closed() {
    let mut fixture = Fixture::start().await;
    let mut connection = connect(&fixture, 1).await;
    let sipping: Vec<_> = [
        connection.get("/strict").await,
        connection.get("/strict").await,
    ]
    .map(read_by_single_bytes)
    .into();
    let sipping = tokio::spawn(futures_util::future::join_all(sipping));
    let mut other = fixture.http2().await;
    let mut reading = other.get("/usual").await;
    let began = Instant::now();
    fixture.publish(150, 1000).await;
    reading.take(150).await;
    fixture.until_ended("/strict", 2.0).await;
    let ends = within(DEADLINE, "both are reset", sipping).await.unwrap();
    assert_eq!(
        ends,
        [End::StreamReset(8), End::StreamReset(8)],
        "CANCEL, and nothing else of the connection"
    );
    // Stall timeout, up to a second until the next check, a second of close grace period: not the
    // 25 s of a client that reads nothing.
    assert!(
        began.elapsed() < Duration::from_secs(16),
        "{:?}",
        began.elapsed()
    );
    assert!(!connection.going_away());
}

#[tokio::test]
async fn a_client_that_reads_a_little_after_its_close_is_still_reset_a_second_later() {
    let mut fixture = Fixture::start().await;
    let mut connection = connect(&fixture, 1).await;
    let mut stalled = connection.get("/strict").await;
    fixture.publish(150, 1000).await;
    let is_to_end = || async { fixture.connection("/strict").await["state"] == "closed" };
    eventually(DEADLINE, "it is to end", is_to_end).await;
    // The window admits the first bytes and the beginning of the next write batch; the close event
    // is after that.
    for _ in 0..100 {
        // A slow machine reads fewer in the second before the reset.
        if stalled.piece().await.is_err() {
            break;
        }
    }
    let is_reset = || async {
        connection
            .frames()
            .iter()
            .any(|frame| frame.kind == RST_STREAM)
    };
    eventually(DEADLINE, "its stream is reset", is_reset).await;
    assert!(!connection.going_away());
}

#[tokio::test]
#[ignore = "takes a minute and a half"]
async fn an_unread_rejection_does_not_extend_the_lifetime_of_a_connection() {
    let fixture = Fixture::start().await;
    let mut connection = connect(&fixture, 0).await;
    let mut refusals = Vec::new();
    for _ in 0..STREAMS {
        let refused = connection.get("/nowhere").await;
        assert_eq!(refused.status(), 404);
        refusals.push(refused);
    }
    let began = Instant::now();
    // Idle for 30 s to 60 s, then GOAWAY, then half a minute for unread bytes.
    let most = Duration::from_secs(100);
    fixture
        .sidestream
        .until_metric_within(most, "sidestream_connections", &[], |open| open == 0.0)
        .await;
    println!("closed after {:?}", began.elapsed());
    assert!(connection.going_away(), "GOAWAY was sent before");
}

#[tokio::test]
#[ignore = "takes half a minute"]
async fn a_closed_window_is_detected_even_with_few_pending_bytes() {
    let fixture = Fixture::start().await;
    let mut connections = [connect(&fixture, 0).await, connect(&fixture, 1).await];
    let mut stalled = Vec::new();
    for connection in &mut connections {
        stalled.push(connection.get("/quiet").await);
    }
    let began = Instant::now();
    let open = async |wanted: f64, most: u64| {
        let most = Duration::from_secs(most);
        fixture
            .sidestream
            .until_metric_within(most, "sidestream_streams", &[], |open| open == wanted)
            .await;
    };
    open(2.0, 1).await;
    // docs/slow-clients.md: 25 s, plus a heartbeat interval (2 s here) if a write was accepted and
    // the next one is not.
    open(0.0, 25 + 2 + 8).await;
    println!("both closed after {:?}", began.elapsed());
    assert!(
        began.elapsed() > Duration::from_secs(20),
        "the stall timeout alone closes no client"
    );
    assert!(
        connections
            .iter()
            .all(|connection| !connection.going_away())
    );
}

/// Opens all streams of a connection with such windows; returns the memory per stalled stream, in
/// bytes.
async fn stall(fixture: &mut Fixture, window: u32) -> u64 {
    let mut connection = connect(fixture, window).await;
    let mut stalled = Vec::new();
    for _ in 0..STREAMS {
        stalled.push(connection.get("/disconnect").await);
    }
    let mut other = fixture.http2().await;
    let mut reading = other.get("/usual").await;
    let (resident, streams) = (
        fixture.sidestream.resident_bytes_at_rest().await,
        STREAMS as f64,
    );
    let first = fixture.published;
    fixture.publish(100, 4000).await;
    reading.take(100).await;
    let route = [("route", "/disconnect")];
    fixture
        .sidestream
        .until_metric("sidestream_slow_clients", &route, |slow| slow == streams)
        .await;
    let held = (fixture.published - first) * 4000;
    let each = fixture
        .sidestream
        .resident_bytes()
        .saturating_sub(resident + held)
        / STREAMS as u64;
    println!("windows of {window}: {each} bytes for each of {STREAMS} that stall");
    assert!(!connection.going_away());
    each
}

#[tokio::test]
async fn two_hundred_streams_with_tiny_windows_use_bounded_memory_each() {
    let mut fixture = Fixture::start().await;
    for window in [0, 1, 100] {
        let each = stall(&mut fixture, window).await;
        let route = [("route", "/disconnect")];
        fixture
            .sidestream
            .until_metric("sidestream_streams", &route, |streams| streams == 0.0)
            .await;
        assert!(
            each < EACH_MAX,
            "{each} bytes for each stream with a window of {window}"
        );
    }
}
