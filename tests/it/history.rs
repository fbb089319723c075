//! History of a JetStream stream: read completely, once and in order, with faults of stream,
//! consumer and server.

use std::sync::Arc;
use std::time::Duration;

use crate::upstream::{Upstream, filter_set};
use async_nats::jetstream::{self, stream};
use sidestream::feed::Archive;
use sidestream::feed::archive::{Page, Pages, Unavailable};
use sidestream::nats::StreamConfig;
use testkit::nats::{Nats, create_stream, publish, publish_raw};
use testkit::wait::{RECOVERY, eventually, within};

/// One server, a stream `A` with the subjects `a.>`, and its archive.
struct Fixture {
    server: Nats,
    jetstream: jetstream::Context,
    stream: stream::Stream,
    upstream: Upstream,
    archive: Arc<dyn Archive>,
}

/// Reader of the archive, with the pages that it has read.
struct Reader {
    pages: Box<dyn Pages>,
    /// End of the contiguous pages.
    through: u64,
    /// Gaps between pages: the begin of a page and the end of the previous one.
    jumps: Vec<(u64, u64)>,
    events: Vec<(u64, String)>,
}

impl Fixture {
    async fn start() -> Self {
        let server = Nats::start().await;
        let jetstream = server.jetstream().await;
        let stream = create_stream(&jetstream, "A", &["a.>"]).await;
        let upstream = Upstream::connect(&server.url()).await;
        let archive = upstream
            .nats
            .archive(&StreamConfig::new("A", filter_set(&["a.>"])));
        upstream.until_ok("nats").await;
        Self {
            server,
            jetstream,
            stream,
            upstream,
            archive,
        }
    }

    /// Publishes `count` messages to `subject`, numbered from `first` on, and waits until all are
    /// stored.
    async fn fill(&self, subject: &str, first: u64, count: u64) {
        let before = self.last().await;
        let client = self.server.client().await;
        for number in first..first + count {
            client
                .publish(subject.to_owned(), number.to_string().into())
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
        eventually(RECOVERY, "all messages are stored", || async {
            self.last().await == before + count
        })
        .await;
    }

    async fn last(&self) -> u64 {
        self.stream.get_info().await.unwrap().state.last_sequence
    }

    async fn consumers(&self) -> usize {
        self.stream.get_info().await.unwrap().state.consumer_count
    }

    fn read(&self, filters: &[impl AsRef<str>], after: u64) -> Reader {
        let pages = self.archive.read(&filter_set(filters), after);
        Reader {
            pages,
            through: after,
            jumps: Vec::new(),
            events: Vec::new(),
        }
    }
}

impl Reader {
    async fn next(&mut self) -> Result<(), Unavailable> {
        let Page {
            after,
            events,
            through,
            ..
        } = within(RECOVERY, "a page comes", self.pages.next()).await?;
        assert!(
            after >= self.through && through >= after,
            "{after} to {through} after {}",
            self.through
        );
        assert!(events.len() <= 256);
        if after > self.through {
            self.jumps.push((self.through, after));
        }
        let mut last = after;
        for event in events {
            assert!(event.position.seq > last && event.position.fingerprint.is_some());
            last = event.position.seq;
            self.events
                .push((last, String::from_utf8_lossy(&event.data).into_owned()));
        }
        assert!(last <= through);
        self.through = through;
        Ok(())
    }

    async fn until(&mut self, through: u64) -> &mut Self {
        while self.through < through {
            self.next().await.unwrap();
        }
        self
    }

    fn sequences(&self) -> Vec<u64> {
        self.events.iter().map(|(sequence, _)| *sequence).collect()
    }
}

fn range(first: u64, last: u64) -> Vec<u64> {
    (first..=last).collect()
}

#[tokio::test]
async fn ten_thousand_messages_and_later_ones_are_read_without_a_gap() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 10_000).await;
    let mut reader = fixture.read(&["a.>"], 0);
    reader.until(10_000).await;
    assert_eq!(reader.sequences(), range(1, 10_000));
    assert_eq!(reader.events[41].1, "42");
    // At the end, the reader waits.
    assert!(
        tokio::time::timeout(Duration::from_millis(200), reader.pages.next())
            .await
            .is_err()
    );
    fixture.fill("a.y", 10_001, 3).await;
    reader.until(10_003).await;
    assert_eq!(reader.events.len(), 10_003);
    assert!(reader.jumps.is_empty());
    assert_eq!(fixture.upstream.metrics.consumers_created_total.get(), 1);
}

#[tokio::test]
async fn a_filtered_read_of_an_idle_subject_ends_at_the_end_of_the_stream() {
    let fixture = Fixture::start().await;
    for round in 0..20 {
        fixture.fill("a.x", round * 3 + 1, 1).await;
        fixture.fill("a.y.1", round * 3 + 2, 1).await;
        fixture.fill("a.z", round * 3 + 3, 1).await;
    }
    let mut one = fixture.read(&["a.y.*"], 5);
    one.until(60).await;
    assert_eq!(one.sequences(), (8..60).step_by(3).collect::<Vec<u64>>());
    let mut two = fixture.read(&["a.y.1", "a.x"], 50);
    two.until(60).await;
    assert_eq!(two.sequences(), [52, 53, 55, 56, 58, 59]);
    let mut none = fixture.read(&["a.nobody"], 0);
    none.until(60).await;
    assert!(none.events.is_empty());
    // More filters than one consumer can have, and one that the stream does not contain.
    let many: Vec<String> = (0..40)
        .map(|number| format!("a.y.{number}"))
        .chain(["b".to_owned()])
        .collect();
    let mut many = fixture.read(&many, 50);
    many.until(60).await;
    assert_eq!(many.sequences(), [53, 56, 59]);
    let mut outside = fixture.read(&["b.c"], 0);
    outside.until(60).await;
    assert!(outside.events.is_empty());
}

#[tokio::test]
async fn deleted_messages_are_skipped_and_purged_ones_are_reported() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 100).await;
    for sequence in [10, 11, 12, 50, 100] {
        fixture.stream.delete_message(sequence).await.unwrap();
    }
    let mut reader = fixture.read(&["a.>"], 5);
    reader.until(100).await;
    let expected: Vec<u64> = range(6, 99)
        .into_iter()
        .filter(|seq| ![10, 11, 12, 50].contains(seq))
        .collect();
    assert_eq!(reader.sequences(), expected);
    assert!(reader.jumps.is_empty());

    fixture.stream.purge().sequence(40).await.unwrap();
    let mut below = fixture.read(&["a.>"], 5);
    below.until(100).await;
    assert_eq!(below.jumps, [(5, 39)]);
    assert_eq!(below.events.len(), 59);
    let mut at_the_edge = fixture.read(&["a.>"], 39);
    at_the_edge.until(100).await;
    assert!(at_the_edge.jumps.is_empty());

    fixture.stream.purge().await.unwrap();
    let mut empty = fixture.read(&["a.>"], 50);
    empty.until(100).await;
    assert_eq!(
        (empty.jumps.as_slice(), empty.events.len()),
        (&[(50, 100)][..], 0)
    );
}

#[tokio::test]
async fn messages_that_expire_before_they_are_read_are_reported() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 5000).await;
    let mut reader = fixture.read(&["a.>"], 0);
    reader.next().await.unwrap();
    fixture.stream.purge().sequence(4901).await.unwrap();
    reader.until(5000).await;
    let [(before, after)] = reader.jumps[..] else {
        panic!("one gap: {:?}", reader.jumps)
    };
    assert_eq!(after, 4900);
    assert_eq!(
        reader.sequences(),
        [range(1, before), range(4901, 5000)].concat()
    );
}

#[tokio::test]
async fn a_server_crash_loses_and_repeats_no_event() {
    let mut fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 5000).await;
    let mut reader = fixture.read(&["a.>"], 0);
    for through in [500, 2000] {
        reader.until(through).await;
        fixture.server.kill9();
        fixture.server.restart().await;
    }
    reader.until(5000).await;
    assert_eq!(reader.sequences(), range(1, 5000));
    assert!(reader.jumps.is_empty());
}

#[tokio::test]
async fn a_lost_consumer_is_recreated_and_the_last_one_is_deleted_with_its_reader() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 10).await;
    let mut reader = fixture.read(&["a.>"], 0);
    for round in 1..=2 {
        reader.until(round * 10).await;
        let names: Vec<String> = {
            use futures_util::TryStreamExt as _;
            fixture.stream.consumer_names().try_collect().await.unwrap()
        };
        assert_eq!(names.len(), 1);
        let identity = &fixture.upstream.identity;
        assert!(
            names[0].starts_with(&format!("sse-{}-A-{}-r", identity.pod, identity.boot)),
            "{names:?}"
        );
        fixture.stream.delete_consumer(&names[0]).await.unwrap();
        fixture.fill("a.x", round * 10 + 1, 10).await;
    }
    reader.until(30).await;
    assert_eq!(reader.sequences(), range(1, 30));
    assert_eq!(fixture.consumers().await, 1);
    drop(reader);
    eventually(RECOVERY, "no consumer is left", || async {
        fixture.consumers().await == 0
    })
    .await;
}

#[tokio::test]
async fn a_message_with_invalid_headers_does_not_stop_the_reader() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 20).await;
    let headers = b"NATS/1.0\r\nX-Bad: \xff\xfe\r\nSidestream-Event: odd\r\n\r\n";
    publish_raw(fixture.server.port(), b"a.x", headers, b"poison").await;
    // JetStream stores a message after it has accepted it.
    eventually(RECOVERY, "the message is stored", || async {
        fixture.last().await == 21
    })
    .await;
    fixture.fill("a.x", 22, 20).await;
    let mut reader = fixture.read(&["a.x"], 0);
    reader.until(41).await;
    assert_eq!(reader.sequences(), range(1, 41));
    assert_eq!(reader.events[20].1, "poison");
    assert_eq!(fixture.upstream.metrics.nats_reconnects_total.get(), 0);
}

#[tokio::test]
async fn a_recreated_stream_is_not_read_with_old_positions() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 20).await;
    let state = fixture.archive.state(0).await.unwrap();
    assert_eq!((state.first_seq, state.last_seq), (1, 20));
    assert!(fixture.archive.fingerprint(20).await.unwrap().is_some());
    assert_eq!(fixture.archive.fingerprint(21).await.unwrap(), None);
    assert_eq!(fixture.archive.fingerprint(0).await.unwrap(), None);
    // The position is ahead of the end: the stream was restored from an older snapshot.
    assert_eq!(
        fixture.read(&["a.>"], 21).next().await,
        Err(Unavailable::Changed)
    );

    let mut reader = fixture.read(&["a.>"], 0);
    reader.until(20).await;
    fixture.jetstream.delete_stream("A").await.unwrap();
    create_stream(&fixture.jetstream, "A", &["a.>"]).await;
    publish(
        &fixture.jetstream,
        "a.x",
        (1..=30).map(|number| number.to_string()),
    )
    .await;
    assert_eq!(reader.next().await, Err(Unavailable::Changed));
    // Requested before the reader knew of the new stream.
    assert_eq!(
        fixture.read(&["a.>"], 3).next().await,
        Err(Unavailable::Changed)
    );
    eventually(RECOVERY, "the other tag is reported", || async {
        fixture
            .archive
            .state(0)
            .await
            .is_ok_and(|now| now.tag != state.tag)
    })
    .await;
    fixture.read(&["a.>"], 0).until(30).await;
}

#[tokio::test]
async fn a_mirror_with_the_identity_of_its_origin_has_the_same_positions() {
    let fixture = Fixture::start().await;
    fixture.fill("a.x", 1, 5).await;
    let origin = stream::Source {
        name: "A".to_owned(),
        ..stream::Source::default()
    };
    let config = stream::Config {
        name: "M".to_owned(),
        mirror: Some(origin),
        ..stream::Config::default()
    };
    let mut mirror = fixture.jetstream.create_stream(config).await.unwrap();
    eventually(RECOVERY, "the mirror has everything", || {
        let info = mirror.get_info();
        async { info.await.unwrap().state.last_sequence == 5 }
    })
    .await;
    assert!(mirror.info().await.is_ok());
    let all = filter_set(&["a.>"]);
    let [one, other] = ["A", "M"].map(|name| {
        fixture.upstream.nats.archive(&StreamConfig {
            identity: Some("orders".to_owned()),
            ..StreamConfig::new(name, all.clone())
        })
    });
    assert_eq!(one.state(0).await.unwrap(), other.state(0).await.unwrap());
    assert_eq!(
        one.fingerprint(5).await.unwrap(),
        other.fingerprint(5).await.unwrap()
    );
    let page = other.read(&all, 2).next().await.unwrap();
    assert_eq!(
        page.events
            .iter()
            .map(|event| event.position.seq)
            .collect::<Vec<_>>(),
        [3, 4, 5]
    );
}

#[tokio::test]
async fn a_missing_stream_is_reported_within_seconds() {
    let fixture = Fixture::start().await;
    let archive = fixture
        .upstream
        .nats
        .archive(&StreamConfig::new("NOBODY", filter_set(&["n.>"])));
    let Err(Unavailable::Temporary(why)) = archive.state(0).await else {
        panic!("a state of nothing")
    };
    assert!(why.contains("NOBODY"), "{why}");
    let mut pages = archive.read(&filter_set(&["n.>"]), 0);
    let told = within(RECOVERY, "the reading gives up", pages.next()).await;
    assert!(matches!(told, Err(Unavailable::Temporary(_))), "{told:?}");
}
