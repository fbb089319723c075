//! Recreated streams: an id of the old stream is never used in the new one.

use super::reader::Via;
use super::{Fixture, fill};
use testkit::nats::create_stream;
use testkit::wait::{RECOVERY, eventually};

/// Recreates the stream with `count` messages while one sidecar is disconnected. Returns the ids of
/// the old stream once the sidecar has reached the end of the new one.
pub(crate) async fn recreate_stream(fixture: &Fixture, count: u64) -> Vec<String> {
    let ids = fixture.ids().await;
    let tag = ids[0].split('-').next().unwrap().to_owned();
    fixture.jetstream.delete_stream("A").await.unwrap();
    let again = create_stream(&fixture.jetstream, "A", &["a.>"]).await;
    fill(&fixture.nats, &again, 1, count).await;
    let end = count.to_string();
    eventually(
        RECOVERY,
        "the sidecar has come to the end of the new one",
        || async {
            let ready = fixture.sidestream.admin("/health/ready").await.0 == 200;
            let position = if ready {
                fixture.position().await
            } else {
                String::new()
            };
            !position.starts_with(&tag) && position.split('-').nth(1) == Some(&*end)
        },
    )
    .await;
    ids
}

async fn assert_old_ids_get_a_gap(count: u64) {
    let fixture = Fixture::with(100).await;
    let ids = recreate_stream(&fixture, count).await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        for number in [1, 50, 90, 100] {
            let reader = fixture.resume(via, "/all", &ids[number - 1]).await;
            assert_eq!(reader.status(), 200);
            readers.push((via, number, reader));
        }
    }
    fixture.publish("a.end", "end").await;
    for (via, number, mut reader) in readers {
        assert_eq!(
            reader.until("end").await,
            ["gap:recreated:live"],
            "{number} over {via:?}"
        );
    }
}

#[tokio::test]
async fn a_recreated_stream_with_fewer_messages_is_a_gap() {
    assert_old_ids_get_a_gap(30).await;
}

#[tokio::test]
async fn a_recreated_stream_with_more_messages_is_a_gap() {
    assert_old_ids_get_a_gap(200).await;
}
