//! A stream restored from an older snapshot: its sequences are used again for other messages.

use super::reader::{Via, summary};
use super::{Fixture, chromium, last, texts};
use testkit::browser::Page;
use testkit::wait::{RECOVERY, eventually};

/// Fixture with a stream that had 300 messages, was restored to 200 of them and has grown to 350
/// with others. Also returns the ids that its clients had.
async fn restored(mut fixture: Fixture) -> (Fixture, Vec<String>) {
    fixture.nats.snapshot().await;
    fixture.ready().await;
    fixture.fill(100).await;
    let ids = fixture.ids().await;
    let mut live = fixture.resume(Via::Http1, "/all", &ids[299]).await;
    fixture.nats.restore().await;
    eventually(RECOVERY, "the stream is back", || async {
        fixture.stream.get_info().await.is_ok()
    })
    .await;
    assert_eq!(last(&fixture.stream).await, 200);
    // Connected clients get a gap and continue.
    assert_eq!(summary(&live.next().await), "gap:ahead:live");
    fixture.publish("a.other", "other 201").await;
    assert_eq!(summary(&live.next().await), "other 201");
    for number in 202..=350 {
        fixture.publish("a.other", &format!("other {number}")).await;
    }
    fixture.ready().await;
    (fixture, ids)
}

/// Events after a number before the snapshot.
fn after(number: u64) -> Vec<String> {
    let others = (201..=350).map(|number| format!("other {number}"));
    texts(number + 1, 200).into_iter().chain(others).collect()
}

#[tokio::test]
async fn an_id_before_the_snapshot_resumes_and_an_id_after_it_is_a_gap() {
    let (fixture, ids) = restored(Fixture::with(200).await).await;
    let gap = |reason: &str| vec![format!("gap:{reason}:live")];
    let cases = [
        ("in the archive", ids[149].clone(), after(150)),
        ("the newest of the snapshot", ids[199].clone(), after(200)),
        ("a number given again", ids[200].clone(), gap("recreated")),
        (
            "the newest that was lost",
            ids[299].clone(),
            gap("recreated"),
        ),
        (
            "ahead still",
            ids[299].replace("-300-", "-400-"),
            gap("ahead"),
        ),
    ];
    let mut readers = Vec::new();
    for (what, id, expected) in &cases {
        for via in Via::ALL {
            let reader = fixture.resume(via, "/all", id).await;
            assert_eq!(reader.status(), 200, "{what} over {via:?}");
            readers.push((what, via, reader, expected));
        }
    }
    fixture.publish("a.end", "end").await;
    for (what, via, mut reader, expected) in readers {
        assert_eq!(reader.until("end").await, *expected, "{what} over {via:?}");
    }
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn chromium_resumes_on_a_restored_stream() {
    let page = Page::serve().await;
    let (fixture, ids) = restored(chromium::fixture(&page, 200).await).await;
    let gap = vec!["gap:recreated".to_owned()];
    let cases = [(ids[149].clone(), after(150)), (ids[299].clone(), gap)];
    chromium::show(&fixture, page, &cases).await;
}
