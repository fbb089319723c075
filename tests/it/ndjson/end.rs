//! The last line of an event stream, and its clean end.

use super::{Fixture, Via};

#[tokio::test]
async fn drain_ends_with_a_close_line_and_a_clean_end_on_every_transport() {
    let mut fixture = Fixture::start().await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        for path in ["/orders?user=1", "/both"] {
            let mut reader = fixture.open(via, path, "").await;
            reader.until_control("position").await;
            readers.push((via, reader));
        }
    }
    fixture.publish("orders.1.x", "1").await;
    fixture.sidestream.terminate();
    for (via, reader) in &mut readers {
        let (lines, end) = reader.read_to_end().await;
        assert_eq!(end, via.proper_end(), "{via:?}");
        let [event, close] = &lines[..] else {
            panic!("an event and the end: {lines:?}");
        };
        assert_eq!(event["data"], 1);
        assert_eq!(close["control"], "close");
        assert_eq!(close["reason"], "drain");
        let retry = close["retry"].as_u64().unwrap();
        assert!((600..=900).contains(&retry), "{retry}");
        assert_eq!(close["id"], reader.last_event_id());
    }
    assert_eq!(
        fixture.sidestream.wait_exit(testkit::wait::DEADLINE).await,
        0
    );
}
