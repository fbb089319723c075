//! Thundering herd: many clients resume at once, and the server crashes meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::reader::summary;
use super::{Fixture, replaying, subject};
use testkit::nats::publish;
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually, within};

const CLIENTS: u64 = 300;

#[tokio::test]
async fn three_hundred_clients_resume_at_once_with_four_replays() {
    const ROUNDS: u64 = 20;
    let fixture = Fixture::with(0).await;
    // One subject per client: number `n` belongs to client `n % CLIENTS`.
    let nats = fixture.nats.client().await;
    for number in 1..=CLIENTS * ROUNDS {
        nats.publish(
            format!("a.c{}", number % CLIENTS),
            number.to_string().into(),
        )
        .await
        .unwrap();
    }
    nats.flush().await.unwrap();
    eventually(RECOVERY, "all messages are stored", || async {
        fixture.last().await == CLIENTS * ROUNDS
    })
    .await;
    let tag = fixture.tag().await;

    let stop = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn({
        let (jetstream, stop) = (fixture.nats.jetstream().await, Arc::clone(&stop));
        async move {
            let stream = jetstream.get_stream("A").await.unwrap();
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = most.max(replaying(&stream).await);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            most
        }
    });
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let url = fixture.sidestream.url(&format!("/one/c{client}"));
        // Each at another distance before the window.
        let after = client * 7;
        let id = format!("{tag}-{after}");
        clients.push(tokio::spawn(async move {
            let expected: Vec<u64> = (after + 1..=CLIENTS * ROUNDS)
                .filter(|number| number % CLIENTS == client)
                .collect();
            let mut reader = SseClient::get(url).last_event_id(&id).connect().await;
            assert_eq!(reader.status(), 200);
            for number in expected {
                assert_eq!(
                    summary(&reader.next().await),
                    number.to_string(),
                    "client {client}"
                );
            }
            reader
        }));
    }
    let mut readers = Vec::new();
    for client in clients {
        readers.push(client.await.unwrap());
    }
    fixture.until_no_replay_runs().await;
    stop.store(true, Ordering::Relaxed);
    let most = watch.await.unwrap();
    assert!(
        (1..=4).contains(&most),
        "{most} consumers of replays at a time"
    );
    // All are live now.
    for client in 0..CLIENTS {
        nats.publish(format!("a.c{client}"), format!("live {client}").into())
            .await
            .unwrap();
    }
    nats.flush().await.unwrap();
    for (client, mut reader) in readers.into_iter().enumerate() {
        assert_eq!(summary(&reader.next().await), format!("live {client}"));
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        0.0
    );
}

#[tokio::test]
async fn three_server_crashes_during_replays_and_live_delivery_lose_nothing() {
    kills_cost_nothing(3).await;
}

#[tokio::test]
#[ignore = "takes a minute or two: `make test-long`"]
async fn twenty_server_crashes_during_replays_and_live_delivery_lose_nothing() {
    kills_cost_nothing(20).await;
}

async fn kills_cost_nothing(kills: u64) {
    const STORED: u64 = 10_000;
    let mut fixture = Fixture::with(STORED).await;
    let tag = fixture.tag().await;
    let stop = Arc::new(AtomicBool::new(false));
    let last = Arc::new(AtomicU64::new(0));
    let publishing = tokio::spawn({
        let (jetstream, stop) = (fixture.nats.jetstream().await, Arc::clone(&stop));
        async move {
            let mut last = STORED;
            while !stop.load(Ordering::Relaxed) {
                last += 1;
                publish(&jetstream, &subject(last), [last.to_string()]).await;
            }
            last
        }
    });
    let mut readers = Vec::new();
    for round in 0..kills {
        let before = fixture
            .sidestream
            .metric("sidestream_replayed_events_total", &[])
            .await;
        for client in 0..12 {
            // One of them reads everything; clients of earlier rounds are live.
            let target = if client == 0 {
                "/all".to_owned()
            } else {
                format!("/one/{client}")
            };
            let after = round % 5 * 1000;
            let id = format!("{tag}-{after}");
            let reader = SseClient::get(fixture.sidestream.url(&target))
                .last_event_id(&id)
                .connect()
                .await;
            assert_eq!(reader.status(), 200);
            readers.push(tokio::spawn(all_of(
                reader,
                client,
                after,
                Arc::clone(&last),
            )));
        }
        let replayed = |value: f64| value > before;
        fixture
            .sidestream
            .until_metric("sidestream_replayed_events_total", &[], replayed)
            .await;
        fixture.nats.kill9();
        let running = fixture
            .sidestream
            .metric("sidestream_replays_running", &[])
            .await;
        assert!(running >= 1.0, "it died in the middle of a replay");
        fixture.nats.restart().await;
        fixture
            .sidestream
            .until_metric("sidestream_nats_connected", &[], |up| up == 1.0)
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    last.store(publishing.await.unwrap(), Ordering::Relaxed);
    for reader in readers {
        within(RECOVERY, "every client has everything", reader)
            .await
            .unwrap();
    }
    for metric in ["sidestream_replays_running", "sidestream_replays_queued"] {
        fixture
            .sidestream
            .until_metric(metric, &[], |value| value == 0.0)
            .await;
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        0.0
    );
}

/// Reads the numbers after this one, up to `last` once it is set: all numbers as client 0,
/// otherwise those of one subject.
async fn all_of(mut reader: SseClient, client: u64, after: u64, last: Arc<AtomicU64>) {
    let mut ids = HashSet::new();
    for number in
        (after + 1..).filter(|number| client == 0 || subject(*number) == format!("a.{client}"))
    {
        let event = loop {
            let last = last.load(Ordering::Relaxed);
            if last != 0 && number > last {
                return;
            }
            if let Some(event) = reader.next_within(Duration::from_millis(200)).await {
                break event;
            }
        };
        assert_eq!(
            summary(&event),
            number.to_string(),
            "client {client} after {after}"
        );
        assert!(ids.insert(event.id), "an id came twice");
    }
}
