//! Collectors that do not answer: clients, the admin port and the drain do not notice.

use super::*;

/// Publishes events and checks that each arrives soon.
async fn deliver(sidestream: &Sidestream, nats: &Nats, count: usize) {
    let mut client = SseClient::get(sidestream.url("/news")).connect().await;
    client.positioned().await;
    let publisher = nats.client().await;
    for number in 0..count {
        publisher
            .publish("news.a", number.to_string().into())
            .await
            .unwrap();
        publisher.flush().await.unwrap();
        assert_eq!(client.next().await.data, number.to_string());
    }
    let (status, _) = sidestream.admin("/health/ready").await;
    assert_eq!(status, 200);
}

async fn with_orders(nats: &Nats) {
    create_stream(&nats.jetstream().await, "ORDERS", &["orders.>"]).await;
}

#[tokio::test]
async fn collector_that_is_away_costs_nothing_but_its_spans() {
    let nats = Nats::start().await;
    with_orders(&nats).await;
    let closed = format!("http://127.0.0.1:{}", testkit::nats::free_port());
    let mut sidestream = Sidestream::start(traced(&nats, &closed, 1.0)).await;
    deliver(&sidestream, &nats, 200).await;
    let failed = [("result", "failed")];
    sidestream
        .until_metric("sidestream_trace_spans_total", &failed, |count| {
            count >= 200.0
        })
        .await;
    let line = sidestream
        .until_message("traces not exported; they are dropped")
        .await;
    assert_eq!(line["level"], "WARN");
    let begun = Instant::now();
    sidestream.terminate();
    assert_eq!(sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    let warnings = sidestream.log();
    let warnings = warnings
        .iter()
        .filter(|line| line["message"] == "traces not exported; they are dropped");
    assert_eq!(warnings.count(), 1, "one line until an export succeeds");
}

#[tokio::test]
async fn collector_that_hangs_delays_neither_events_nor_the_end_and_spans_beyond_the_bound_are_counted()
 {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    with_orders(&nats).await;
    collector.set(Behaviour::Hangs);
    let mut sidestream = Sidestream::start(traced(&nats, &collector.url(), 1.0)).await;
    deliver(&sidestream, &nats, 50).await;
    // More than may wait, while the exporter waits for its first batch.
    let publisher = nats.client().await;
    let mut client = SseClient::get(sidestream.url("/news")).connect().await;
    client.positioned().await;
    for _ in 0..6_000 {
        publisher.publish("news.a", "x".into()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    client.take(6_000).await;
    let of = |result| [("result", result)];
    sidestream
        .until_metric("sidestream_trace_spans_total", &of("dropped"), |count| {
            count > 0.0
        })
        .await;
    let begun = Instant::now();
    sidestream.terminate();
    assert_eq!(sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(7),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn export_continues_when_the_collector_recovers() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    with_orders(&nats).await;
    collector.set(Behaviour::Rejects(400));
    let sidestream = Sidestream::start(traced(&nats, &collector.url(), 1.0)).await;
    deliver(&sidestream, &nats, 1).await;
    let failed = [("result", "failed")];
    sidestream
        .until_metric("sidestream_trace_spans_total", &failed, |count| {
            count >= 1.0
        })
        .await;
    assert!(collector.spans().is_empty());
    collector.set(Behaviour::Accepts);
    deliver(&sidestream, &nats, 1).await;
    collector.until("deliver", 1).await;
    sidestream.until_message("traces are exported again").await;
}
