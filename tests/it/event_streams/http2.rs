//! Many event streams on one HTTP/2 connection.

use super::Fixture;
use testkit::h2::H2Client;
use testkit::h2_tap::DATA;

#[tokio::test]
async fn a_hundred_streams_on_one_connection_get_all_events() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut streams = Vec::new();
    for number in 0..100 {
        streams.push(connection.get(&format!("/orders/{number}")).await);
    }
    for number in (0..100).rev() {
        fixture
            .publish(&format!("orders.{number}.paid"), number.to_string())
            .await;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(stream.next().await.data, number.to_string());
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams", &[("protocol", "h2")])
            .await,
        100.0
    );
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_connections", &[])
            .await,
        1.0
    );
    let empty = connection
        .frames()
        .into_iter()
        .filter(|frame| frame.kind == DATA && frame.length == 0)
        .count();
    assert_eq!(empty, 0, "a receiver may take empty frames for a flood");
}

#[tokio::test]
async fn an_unread_stream_delays_no_other_and_loses_nothing() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::builder()
        .stream_window(16 * 1024)
        .connect(fixture.sidestream.url("/"))
        .await;
    let mut stalled = connection.get("/orders").await;
    let mut reading = connection.get("/orders").await;
    for number in 0..300 {
        fixture
            .publish("orders.1.x", format!("{number} {}", "x".repeat(1024)))
            .await;
    }
    for number in 0..300 {
        assert!(reading.next().await.data.starts_with(&format!("{number} ")));
    }
    let lag = fixture
        .sidestream
        .metric("sidestream_lag_events", &[("route", "/orders")])
        .await;
    assert!(
        lag > 200.0,
        "the lag of the stalled stream is reported: {lag}"
    );
    // When it is read at last:
    for number in 0..300 {
        assert!(stalled.next().await.data.starts_with(&format!("{number} ")));
    }
    fixture
        .sidestream
        .until_metric("sidestream_lag_events", &[("route", "/orders")], |lag| {
            lag == 0.0
        })
        .await;
}

#[tokio::test]
async fn rst_stream_releases_a_stalled_stream() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::builder()
        .stream_window(16 * 1024)
        .connect(fixture.sidestream.url("/"))
        .await;
    let stalled = connection.get("/orders").await;
    let mut reading = connection.get("/orders").await;
    for _ in 0..100 {
        fixture.publish("orders.1.x", "x".repeat(1024)).await;
    }
    reading.take(100).await;
    stalled.reset();
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[], |streams| streams == 1.0)
        .await;
    fixture.publish("orders.1.x", "the other goes on").await;
    assert_eq!(reading.next().await.data, "the other goes on");
}
