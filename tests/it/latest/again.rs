//! A connected client that misses events, or falls out of memory, receives the state again.

use super::{Fixture, Folded, configuration, create_stream, fill, fold, put, stored};
use testkit::sidestream::Sidestream;
use testkit::sse::{Event, SseClient};
use testkit::wait::{RECOVERY, within};

/// Enough for ten megabytes, more than sockets hold.
const KEYS: u64 = 5000;

/// Reads until this key is in a complete state; returns the state and the number of snapshots.
async fn follow(client: &mut SseClient, key: &str) -> (Folded, usize) {
    let (mut state, mut snapshots, mut is_synced) = (Folded::new(), 0, true);
    let reading = async {
        while !is_synced || !state.contains_key(key) {
            let event: Event = client.next().await;
            fold(&mut state, &event);
            match event.name.as_str() {
                "sidestream.snapshot" => (snapshots, is_synced) = (snapshots + 1, false),
                "sidestream.synced" => is_synced = true,
                _ => {}
            }
        }
    };
    within(RECOVERY, "the state has the key", reading).await;
    (state, snapshots)
}

async fn again(sidestream: &Sidestream, cause: &str) -> f64 {
    let cause = [("cause", cause)];
    sidestream.metric("sidestream_states_total", &cause).await
}

#[tokio::test]
async fn client_beyond_memory_receives_the_state_and_no_purged_key() {
    let fixture = Fixture::with(|nats| {
        // The client is slow, and nothing else happens to it.
        let slow = "window: { events: 500 }, slow: { lag: 1000000, stall_timeout: 60s }";
        configuration(nats).replace("window: { events: 500 }", slow)
    })
    .await;
    fill(&fixture, 10, 1).await;
    let client = SseClient::get(fixture.sidestream.url("/state")).receive_buffer(4096);
    let mut client = client.connect().await;
    client
        .until(|event| event.name == "sidestream.synced")
        .await;
    // It reads from memory, and stalls until all of this is over.
    put(&fixture.jetstream, 3, None).await;
    assert_eq!(client.next().await.name, "sidestream.removed");
    // Other keys: nothing is replaced, so that the pod receives every message.
    let large = "x".repeat(2000);
    let publish = async |keys: std::ops::Range<u64>| {
        for key in keys {
            let (subject, payload) = (format!("s.{key}"), format!("s.{key}={large}"));
            let stored = fixture.jetstream.publish(subject, payload.into());
            stored.await.unwrap();
        }
    };
    publish(20..4000).await;
    put(&fixture.jetstream, 4, None).await;
    let stream = fixture.jetstream.get_stream("STATE").await.unwrap();
    for subject in ["s.3", "s.4"] {
        stream.purge().filter(subject).await.unwrap();
    }
    publish(4000..KEYS).await;
    put(&fixture.jetstream, 11, Some(1)).await;
    let (state, snapshots) = follow(&mut client, "s.11").await;
    assert!(snapshots >= 1);
    assert!(state == stored(&fixture.jetstream, KEYS).await);
    assert!(again(&fixture.sidestream, "lag").await >= 1.0);
    // It follows the changes after the state, as any other client.
    put(&fixture.jetstream, 5, None).await;
    assert_eq!(client.next().await.name, "sidestream.removed");
    assert!(!client.last_event_id().is_empty());
}

#[tokio::test]
async fn client_of_a_stream_that_is_created_again_receives_the_new_state_without_a_gap() {
    let fixture = Fixture::start().await;
    fill(&fixture, 10, 1).await;
    let mut client = fixture.open("").await;
    client
        .until(|event| event.name == "sidestream.synced")
        .await;
    fixture.jetstream.delete_stream("STATE").await.unwrap();
    create_stream(&fixture.jetstream).await;
    for key in 5..15 {
        put(&fixture.jetstream, key, Some(2)).await;
    }
    let (state, snapshots) = follow(&mut client, "s.14").await;
    assert_eq!(state, stored(&fixture.jetstream, 20).await);
    assert!(snapshots >= 1);
    let gaps = fixture.sidestream.metric("sidestream_gaps_total", &[]);
    assert_eq!(gaps.await, 0.0);
    assert!(again(&fixture.sidestream, "gap").await >= 1.0);
    // A position of the new stream continues.
    put(&fixture.jetstream, 1, Some(3)).await;
    assert_eq!(client.next().await.data, "s.1=3");
    let mut resumed = fixture.open(client.last_event_id()).await;
    put(&fixture.jetstream, 1, Some(4)).await;
    assert_eq!(resumed.next().await.data, "s.1=4");
}
