//! Shared subscriptions and consumers: their number does not grow with the number of clients.

use super::reader::Via;
use super::{Fixture, Setting};
use testkit::h2::H2Client;
use testkit::http1;
use testkit::nats::free_port;

#[tokio::test]
async fn clients_of_one_core_filter_share_one_subscription() {
    let monitor = free_port();
    let nats = format!("http: \"127.0.0.1:{monitor}\"");
    let fixture = Fixture::with(Setting {
        nats: &nats,
        ..Setting::default()
    })
    .await;
    let mut readers = Vec::new();
    for via in [Via::Http11, Via::H2, Via::TlsH2, Via::Http10, Via::Tls11] {
        for _ in 0..3 {
            readers.push(fixture.open(via, "/news").await);
        }
    }
    let seen = http1::get(&format!("http://127.0.0.1:{monitor}/connz?subs=1"))
        .await
        .unwrap()
        .json();
    let lists = seen["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|connection| &connection["subscriptions_list"]);
    let count = lists
        .filter_map(|list| list.as_array())
        .flatten()
        .filter(|subject| *subject == "news.>")
        .count();
    assert_eq!(count, 1, "{seen:#}");
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_feeds", &[("source", "core")])
            .await,
        1.0
    );
    fixture.publish_core("news.today", "to all of them").await;
    for reader in &mut readers {
        assert_eq!(reader.next().await.data, "to all of them");
    }
}

#[tokio::test]
async fn two_hundred_clients_of_a_stream_share_one_consumer() {
    let fixture = Fixture::start().await;
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for client in 0..2 {
        let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
        for number in 0..100 {
            streams.push(connection.get(&format!("/orders/{client}-{number}")).await);
        }
        connections.push(connection);
    }
    assert_eq!(fixture.connections().await, 200);
    let stream = fixture.jetstream.get_stream("ORDERS").await.unwrap();
    assert_eq!(stream.cached_info().state.consumer_count, 1);
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_consumers_created_total", &[])
            .await,
        1.0
    );
    fixture.publish("orders.1-42.paid", "for one of them").await;
    assert_eq!(streams[142].next().await.data, "for one of them");
}
