//! Slow clients over TLS: treated as in clear text, with bounded TLS buffers.

use super::fixture::Fixture;
use super::policies::{
    assert_closed_with_event, assert_reset_alone, assert_shed_like_a_socket, assert_shed_with_gaps,
    is_reset,
};

#[tokio::test]
async fn a_slow_client_over_tls_is_shed_with_exact_gaps() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy_tls("/shed").await;
    assert_shed_with_gaps(fixture, client).await;
}

#[tokio::test]
async fn a_slow_client_over_tls_above_the_lag_limit_is_closed_regularly() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy_tls("/strict").await;
    assert_closed_with_event(fixture, client).await;
}

#[tokio::test]
async fn a_client_that_never_reads_over_tls_is_reset_a_second_after_its_close() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy_tls("/strict").await;
    is_reset(fixture, client).await;
}

#[tokio::test]
async fn one_stalled_stream_of_http_2_over_tls_is_reset_and_the_others_continue() {
    let fixture = Fixture::start().await;
    let connection = fixture.http2_tls().await;
    assert_reset_alone(fixture, connection).await;
}

#[tokio::test]
async fn a_slow_stream_of_http_2_over_tls_is_shed_with_gaps() {
    let fixture = Fixture::start().await;
    let connection = fixture.http2_tls().await;
    assert_shed_like_a_socket(fixture, connection).await;
}

#[tokio::test]
async fn tls_buffers_of_a_client_that_stalls_in_a_large_event_are_bounded() {
    const CLIENTS: u64 = 60;
    /// docs/slow-clients.md: one encrypted record of 16 KiB is pending; the rest is the cost of
    /// waiting for it.
    const EACH_MAX: u64 = 32 * 1024;
    let mut fixture = Fixture::start().await;
    // Measure first what such events cost when they are received, independent of readers.
    fixture.publish(4, 900_000).await;
    let mut sleepers = Vec::new();
    for _ in 0..CLIENTS {
        sleepers.push(fixture.lazy_tls("/usual").await);
    }
    let held = fixture
        .sidestream
        .metric("sidestream_window_bytes", &[])
        .await as u64;
    let resident = fixture.sidestream.resident_bytes_at_rest().await;
    fixture.publish(2, 900_000).await;
    let route = [("route", "/usual")];
    fixture
        .sidestream
        .until_metric("sidestream_slow_clients", &route, |slow| {
            slow == CLIENTS as f64
        })
        .await;
    let held = fixture
        .sidestream
        .metric("sidestream_window_bytes", &[])
        .await as u64
        - held;
    let each = fixture
        .sidestream
        .resident_bytes()
        .saturating_sub(resident + held)
        / CLIENTS;
    println!("{each} bytes for each client that stalls");
    assert!(each < EACH_MAX, "{each} bytes for each client that stalls");
}
