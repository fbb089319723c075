//! Slow clients over TLS: treated as in clear text, and TLS hoards nothing for them.

use super::fixture::Fixture;
use super::policies::{
    is_reset, is_reset_alone, is_shed_and_told, is_shed_like_a_socket, is_told_of_its_end,
};

#[tokio::test]
async fn a_slow_client_over_tls_is_shed_and_told_exactly_what() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy_tls("/shed").await;
    is_shed_and_told(fixture, client).await;
}

#[tokio::test]
async fn too_much_waiting_for_a_slow_client_over_tls_ends_its_event_stream_in_good_order() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy_tls("/strict").await;
    is_told_of_its_end(fixture, client).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_over_tls_is_reset_a_second_after_its_end() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy_tls("/strict").await;
    is_reset(fixture, client).await;
}

#[tokio::test]
async fn one_stalled_stream_of_http_2_over_tls_is_reset_and_the_others_go_on() {
    let fixture = Fixture::start().await;
    let connection = fixture.http2_tls().await;
    is_reset_alone(fixture, connection).await;
}

#[tokio::test]
async fn a_slow_stream_of_http_2_over_tls_is_shed_and_told() {
    let fixture = Fixture::start().await;
    let connection = fixture.http2_tls().await;
    is_shed_like_a_socket(fixture, connection).await;
}

#[tokio::test]
async fn what_tls_holds_for_a_client_that_stalls_in_a_large_event_is_bounded() {
    const CLIENTS: u64 = 60;
    /// docs/slow-clients.md: one record of 16 KiB is encrypted and not taken; the rest is what waiting for it costs.
    const EACH_MAX: u64 = 32 * 1024;
    let mut fixture = Fixture::start().await;
    // What such events cost on their way in, whoever reads them, is known before.
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
