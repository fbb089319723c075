//! The tailer of a JetStream stream, with faults of the stream, the consumer and the server.

use std::time::Duration;

use crate::upstream::{Reader, Seen, Upstream, filter_set};
use async_nats::jetstream::stream;
use futures_util::TryStreamExt as _;
use sidestream::feed::{GapReason, Limits, Source as _};
use sidestream::lifecycle::health::Status;
use sidestream::nats::StreamConfig;
use testkit::nats::{Cluster, Nats, create_stream, free_port, publish, publish_raw, version};
use testkit::proxy::Proxy;
use testkit::wait::{RECOVERY, eventually};
use time::OffsetDateTime;

fn numbered(range: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = String> {
    range.map(|number| number.to_string())
}

#[tokio::test]
async fn messages_are_read_in_order_with_their_stream_sequences() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.x.*", "a.y"]);
    upstream.until_ok("stream:A").await;
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    publish(&jetstream, "a.x.1", ["1".into()]).await;
    publish(&jetstream, "a.other", ["2".into()]).await;
    publish(&jetstream, "a.y", ["3".into()]).await;
    let seen = reader.until_seen(2).await;
    assert_eq!(seen[0], Seen::Event(1, "message".into(), "1".into()));
    assert_eq!(seen[1], Seen::Event(3, "message".into(), "3".into()));
    assert_eq!(upstream.metrics.consumers_created_total.get(), 1);
    assert_eq!(
        upstream.nats.stream_state("A", 0).await.unwrap().last_seq,
        3
    );
    assert!(
        upstream
            .nats
            .message_fingerprint("A", 3)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(
        upstream.nats.message_fingerprint("A", 9).await.unwrap(),
        None
    );

    // A regular shutdown leaves no consumer on the server.
    let stream = jetstream.get_stream("A").await.unwrap();
    assert_eq!(stream.get_info().await.unwrap().state.consumer_count, 1);
    upstream.shut_down().await;
    assert_eq!(stream.get_info().await.unwrap().state.consumer_count, 0);
}

#[tokio::test]
async fn a_tailer_begins_with_the_recent_messages() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(1..=20)).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let config = |window| StreamConfig {
        name: "A".into(),
        filters: filter_set(&["a.>"]),
        bucket: None,
        identity: None,
        window,
    };
    let log = upstream.tail_with(config(Limits {
        events: 5,
        ..Limits::default()
    }));
    let mut reader = Reader::of_log_after(&log, &["a.>"], 15).await;
    assert_eq!(reader.until_seen(5).await.len(), 5);
    assert_eq!(reader.sequences(), [16, 17, 18, 19, 20]);

    // By time: messages older than the window are not requested.
    let age = Duration::from_millis(1500);
    tokio::time::sleep(age).await; // their age is the fact, and nothing else can bring it about
    publish(&jetstream, "a.x", numbered(21..=22)).await;
    let log = upstream.tail_with(config(Limits {
        age,
        ..Limits::default()
    }));
    eventually(RECOVERY, "the log holds the two recent events", || {
        std::future::ready(log.size().events == 2)
    })
    .await;
}

#[tokio::test]
async fn a_server_crash_while_following_loses_and_repeats_no_event() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    // Synchronous writes: acknowledged messages survive a crash.
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    let publisher = tokio::spawn({
        let jetstream = jetstream.clone();
        async move { publish(&jetstream, "a.x", numbered(1..=600)).await }
    });
    for seen in [100, 300] {
        reader.until_seen(seen).await;
        nats.kill9();
        nats.restart().await;
    }
    reader
        .until(
            "the last event is read",
            |seen| matches!(seen.last(), Some(Seen::Event(_, _, data)) if data == "600"),
        )
        .await;
    publisher.await.unwrap();
    let expected: Vec<String> = numbered(1..=600).collect();
    assert_eq!(reader.data(), expected);
    assert_eq!(reader.gaps(), []);
    assert!(upstream.metrics.nats_reconnects_total.get() >= 6);
    upstream.until_ok("nats").await;
}

#[tokio::test]
async fn a_deleted_consumer_is_recreated() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let stream = create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    upstream.until_ok("stream:A").await;
    for round in 1..=3 {
        publish(&jetstream, "a.x", numbered(round..=round)).await;
        reader.until_seen(usize::try_from(round).unwrap()).await;
        let names: Vec<String> = {
            use futures_util::TryStreamExt as _;
            stream.consumer_names().try_collect().await.unwrap()
        };
        for name in names {
            stream.delete_consumer(&name).await.unwrap();
        }
    }
    publish(&jetstream, "a.x", numbered(4..=4)).await;
    reader.until_seen(4).await;
    assert_eq!(reader.sequences(), [1, 2, 3, 4]);
    assert_eq!(reader.gaps(), []);
}

#[tokio::test]
async fn a_recreated_stream_is_a_gap_and_followed_from_its_beginning() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(1..=3)).await;
    reader.until_seen(3).await;
    let before = log.tag();
    jetstream.delete_stream("A").await.unwrap();
    upstream
        .until_reported("stream:A", &["stream A", "no such stream", "waiting"])
        .await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    publish(&jetstream, "a.x", ["new".into()]).await;
    let seen = reader.until_seen(5).await;
    assert_eq!(seen[3], Seen::Gap(GapReason::Recreated, None));
    assert_eq!(seen[4], Seen::Event(1, "message".into(), "new".into()));
    assert_ne!(log.tag(), before);
    upstream.until_ok("stream:A").await;
}

#[tokio::test]
async fn a_purge_while_following_is_no_gap_and_a_purge_while_disconnected_is_one() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let stream = create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(1..=3)).await;
    reader.until_seen(3).await;
    stream.purge().await.unwrap();
    publish(&jetstream, "a.x", numbered(4..=4)).await;
    reader.until_seen(4).await;
    assert_eq!(reader.gaps(), []);

    // Disconnected: the connection is reset and no server responds for a while.
    let proxy = Proxy::to_port(nats.port()).await;
    let away = Upstream::connect(&format!("nats://{}", proxy.address())).await;
    let log = away.tail("A", &["a.>"]);
    away.until_ok("stream:A").await;
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    proxy.forward_to(([127, 0, 0, 1], free_port()).into());
    proxy.cut();
    publish(&jetstream, "a.x", numbered(5..=9)).await;
    stream.purge().await.unwrap();
    publish(&jetstream, "a.x", numbered(10..=10)).await;
    proxy.forward_to(([127, 0, 0, 1], nats.port()).into());
    let seen = reader.until_seen(2).await;
    assert_eq!(
        seen,
        [
            Seen::Gap(GapReason::Expired, Some(5)),
            Seen::Event(10, "message".into(), "10".into())
        ]
    );
}

#[tokio::test]
async fn a_stream_restored_from_an_older_snapshot_is_a_gap_even_after_it_has_grown() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(1..=3)).await;
    nats.snapshot().await;
    let proxy = Proxy::to_port(nats.port()).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let away = Upstream::connect(&format!("nats://{}", proxy.address())).await;
    let (log, log_away) = (upstream.tail("A", &["a.>"]), away.tail("A", &["a.>"]));
    upstream.until_ok("stream:A").await;
    away.until_ok("stream:A").await;
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    let mut reader_away = Reader::of_log(&log_away, &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(4..=6)).await;
    reader.until_seen(3).await;
    reader_away.until_seen(3).await;
    proxy.forward_to(([127, 0, 0, 1], free_port()).into());
    proxy.cut();
    nats.restore().await;

    // Fewer messages than were read: the position is ahead. The next sequence was used before.
    reader.until_seen(4).await;
    assert_eq!(reader.seen[3], Seen::Gap(GapReason::Ahead, None));
    publish(
        &jetstream,
        "a.x",
        ["other 4", "other 5", "other 6", "other 7"].map(String::from),
    )
    .await;
    reader.until_seen(8).await;
    assert_eq!(
        reader.seen[4],
        Seen::Event(4, "message".into(), "other 4".into())
    );

    // The same number of messages, but different ones.
    proxy.forward_to(([127, 0, 0, 1], nats.port()).into());
    reader_away.until_seen(4).await;
    assert_eq!(reader_away.seen[3], Seen::Gap(GapReason::Recreated, None));
    publish(&jetstream, "a.x", ["8".into()]).await;
    reader_away.until_seen(5).await;
    assert_eq!(
        reader_away.seen[4],
        Seen::Event(8, "message".into(), "8".into())
    );
}

#[tokio::test]
async fn a_quiet_stream_that_was_restored_and_written_again_is_a_gap() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(1..=3)).await;
    nats.snapshot().await;
    publish(&jetstream, "a.x", numbered(4..=6)).await;
    let age = Duration::from_millis(1);
    tokio::time::sleep(age * 10).await; // their age is the fact, and nothing else can bring it about
    let proxy = Proxy::to_port(nats.port()).await;
    let upstream = Upstream::connect(&format!("nats://{}", proxy.address())).await;
    let window = Limits {
        age,
        ..Limits::default()
    };
    let log = upstream.tail_with(StreamConfig {
        name: "A".into(),
        filters: filter_set(&["a.>"]),
        bucket: None,
        identity: None,
        window,
    });
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    assert_eq!(log.size().events, 0, "no message is in the window");
    let position = reader.cursor.position();
    assert_eq!(position.seq, 6);
    assert_eq!(
        position.fingerprint,
        upstream.nats.message_fingerprint("A", 6).await.unwrap()
    );
    assert!(position.fingerprint.is_some());

    proxy.forward_to(([127, 0, 0, 1], free_port()).into());
    proxy.cut();
    nats.restore().await;
    let others = ["other 4", "other 5", "other 6", "other 7"].map(String::from);
    publish(&jetstream, "a.x", others).await;
    proxy.forward_to(([127, 0, 0, 1], nats.port()).into());
    reader.until_seen(1).await;
    assert_eq!(reader.seen[0], Seen::Gap(GapReason::Recreated, None));
}

#[tokio::test]
async fn messages_with_invalid_headers_or_subjects_delay_no_others() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    publish(&jetstream, "a.x", numbered(1..=3)).await;
    let poison = b"NATS/1.0\r\nX-Bad: \xff\xfe\r\nSidestream-Event: bad\r\n\r\n";
    publish_raw(nats.port(), b"a.x", poison, b"4").await;
    publish(&jetstream, "a.x", numbered(5..=6)).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log_after(&log, &["a.>"], 0).await;
    reader.until_seen(6).await;
    assert_eq!(reader.data(), ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(reader.seen[3], Seen::Event(4, "bad".into(), "4".into()));
    upstream.until_ok("stream:A").await;

    // Live as well, one of them with a subject that is not UTF-8.
    publish_raw(nats.port(), b"a.x", poison, b"7").await;
    publish_raw(nats.port(), b"a.\xff", b"", b"8").await;
    publish_raw(nats.port(), b"a.x", b"NATS/1.0\r\nno colon\r\n\r\n", b"9").await;
    publish(&jetstream, "a.x", numbered(10..=10)).await;
    reader.until_seen(10).await;
    assert_eq!(reader.sequences(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(upstream.metrics.nats_reconnects_total.get(), 0);
    assert_eq!(reader.gaps(), []);
}

#[tokio::test]
async fn a_missing_stream_is_awaited_and_one_that_deletes_consumed_messages_is_an_error() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    for (name, retention) in [
        ("JOBS", stream::RetentionPolicy::WorkQueue),
        ("NEWS", stream::RetentionPolicy::Interest),
    ] {
        let subjects = vec![format!("{}.>", name.to_lowercase())];
        let config = stream::Config {
            name: name.into(),
            subjects,
            retention,
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
    }
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("LATER", &["later.>"]);
    upstream.tail("JOBS", &["jobs.>"]);
    upstream.tail("NEWS", &["news.>"]);
    upstream
        .until_reported(
            "stream:LATER",
            &["stream LATER", "no such stream", "waiting"],
        )
        .await;
    upstream
        .until_reported("stream:JOBS", &["JOBS", "work-queue", "use a mirror"])
        .await;
    upstream
        .until_reported("stream:NEWS", &["NEWS", "interest", "use a mirror"])
        .await;
    assert!(!upstream.health.is_ready());
    create_stream(&jetstream, "LATER", &["later.>"]).await;
    publish(&jetstream, "later.x", ["1".into()]).await;
    upstream.until_ok("stream:LATER").await;
    eventually(RECOVERY, "the event is in the log", || {
        std::future::ready(log.size().events == 1)
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_running_yet_is_awaited() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    nats.kill9();
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let why = upstream
        .until_reported("nats", &["data", "core", "control", "127.0.0.1"])
        .await;
    assert!(why.to_lowercase().contains("refused"), "{why}");
    assert!(!upstream.health.is_ready() && !upstream.nats.is_connected());
    nats.restart().await;
    upstream.until_ok("nats").await;
    upstream.until_ok("stream:A").await;
    assert!(upstream.health.is_ready() && upstream.nats.is_connected());
    assert!(log.tag().is_ok());
}

#[tokio::test]
async fn large_and_binary_messages_are_delivered_unchanged() {
    let nats = Nats::builder()
        .config("max_payload: 16777216\nmax_pending: 67108864")
        .start()
        .await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    for bytes in [100, 6 << 20, 9 << 20, 100] {
        jetstream
            .publish("a.x", vec![b'x'; bytes].into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    publish_raw(nats.port(), b"a.x", b"", b"\xff\x00").await;
    let seen = reader.until_seen(5).await;
    assert!(matches!(&seen[1], Seen::Event(2, _, data) if data.len() == 6 << 20));
    assert_eq!(seen[2], Seen::Gap(GapReason::Upstream, Some(1)));
    assert!(matches!(&seen[3], Seen::Event(4, _, data) if data.len() == 100));
    assert_eq!(
        seen[4],
        Seen::Event(5, "message;base64".into(), "/wA=".into())
    );
    let oversize = upstream
        .metrics
        .events_rejected_total
        .with_label_values(&["A", "oversize"]);
    assert_eq!(oversize.get(), 1);
}

#[tokio::test]
async fn messages_that_match_no_filter_advance_the_head() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.x"]);
    let mut reader = Reader::of_log(&log, &["a.x"]).await;
    publish(&jetstream, "a.other", numbered(1..=50)).await;
    eventually(
        RECOVERY,
        "the position passes events that match no filter",
        || {
            reader.cursor.checkpoint();
            std::future::ready(reader.cursor.position().seq == 50)
        },
    )
    .await;
    assert_eq!(upstream.health.report()["stream:A"], Status::Ok);
}

#[tokio::test]
async fn losing_the_stream_leader_of_a_cluster_loses_no_event() {
    let mut cluster = Cluster::start().await;
    let jetstream = async_nats::jetstream::new(cluster.client().await);
    let config = stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        num_replicas: 3,
        ..Default::default()
    };
    let stream = eventually(RECOVERY, "the stream is created", || async {
        jetstream.create_stream(config.clone()).await.ok()
    })
    .await;
    let upstream = Upstream::connect(&cluster.urls().join(",")).await;
    let log = upstream.tail("A", &["a.>"]);
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    let publisher = tokio::spawn({
        let jetstream = jetstream.clone();
        async move { publish(&jetstream, "a.x", numbered(1..=400)).await }
    });
    reader.until_seen(100).await;
    let leader = stream
        .get_info()
        .await
        .unwrap()
        .cluster
        .unwrap()
        .leader
        .unwrap();
    let index: usize = leader.rsplit('-').next().unwrap().parse().unwrap();
    cluster.node(index).kill9();
    let is_last =
        |seen: &[Seen]| matches!(seen.last(), Some(Seen::Event(_, _, data)) if data == "400");
    reader.until("the last event is read", is_last).await;
    publisher.await.unwrap();
    let expected: Vec<String> = numbered(1..=400).collect();
    assert_eq!(reader.data(), expected);
    assert_eq!(reader.gaps(), []);
}

#[tokio::test]
async fn limits_of_the_server_and_of_the_stream_are_kept() {
    let store = tempfile::tempdir().unwrap();
    let config = format!(
        "jetstream {{ store_dir: {:?}, limits {{ max_request_batch: 3 }} }}",
        store.path()
    );
    let nats = Nats::builder()
        .without_jetstream()
        .config(&config)
        .start()
        .await;
    let jetstream = nats.jetstream().await;
    let limits = stream::ConsumerLimits {
        inactive_threshold: Duration::from_secs(5),
        max_ack_pending: 1,
    };
    let config = stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        consumer_limits: Some(limits),
        ..stream::Config::default()
    };
    jetstream.create_stream(config).await.unwrap();
    publish(&jetstream, "a.x", numbered(1..=200)).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    upstream.until_ok("stream:A").await;
    let mut reader = Reader::of_log_after(&log, &["a.>"], 0).await;
    publish(&jetstream, "a.x", numbered(201..=300)).await;
    reader.until_seen(300).await;
    assert_eq!(reader.sequences(), (1..=300).collect::<Vec<_>>());
    assert_eq!(upstream.metrics.consumers_created_total.get(), 1);

    let mut pages = upstream
        .nats
        .archive(&StreamConfig::new("A", filter_set(&["a.>"])))
        .read(&filter_set(&["a.>"]), 0);
    let mut read = Vec::new();
    while read.len() < 300 {
        read.extend(
            pages
                .next()
                .await
                .unwrap()
                .events
                .iter()
                .map(|event| event.position.seq),
        );
    }
    assert_eq!(read, (1..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_can_deliver_nothing_fails_its_check_with_a_remedy() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let config = |name: &str, subject: &str| stream::Config {
        name: name.into(),
        subjects: vec![subject.into()],
        ..stream::Config::default()
    };
    jetstream
        .create_stream(config("KV_config", "$KV.config.>"))
        .await
        .unwrap();
    let high = stream::Config {
        first_sequence: Some((1 << 63) + 5),
        ..config("HIGH", "high.>")
    };
    jetstream.create_stream(high).await.unwrap();
    let upstream = Upstream::connect(&nats.url()).await;
    let _logs = [
        upstream.tail("KV_config", &[">"]),
        upstream.tail("HIGH", &["high.>"]),
    ];
    upstream
        .until_reported(
            "stream:KV_config",
            &["$KV.config.>", "never served", "subject transform"],
        )
        .await;
    upstream
        .until_reported("stream:HIGH", &["9223372036854775813", "first_seq"])
        .await;
    assert!(!upstream.health.is_ready());
}

#[tokio::test]
async fn a_paused_consumer_degrades_the_check_until_it_resumes() {
    if version().starts_with("2.10.") {
        return; // It cannot be paused there.
    }
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let stream = create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    upstream.until_ok("stream:A").await;
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
    stream
        .pause_consumer(
            &names[0],
            OffsetDateTime::now_utc() + Duration::from_secs(600),
        )
        .await
        .unwrap();
    publish(&jetstream, "a.x", ["1".into()]).await;
    upstream
        .until_reported("stream:A", &["paused", "nats consumer resume A", &names[0]])
        .await;
    assert!(upstream.health.is_ready());
    stream.resume_consumer(&names[0]).await.unwrap();
    reader.until_seen(1).await;
    upstream.until_ok("stream:A").await;
}

#[tokio::test]
async fn a_delete_marker_is_an_event() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect(&nats.url()).await;
    let log = upstream.tail("A", &["a.>"]);
    upstream.until_ok("stream:A").await;
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    for headers in ["KV-Operation: DEL", "Nats-Marker-Reason: MaxAge", "X: y"] {
        let headers = format!("NATS/1.0\r\n{headers}\r\n\r\n");
        publish_raw(nats.port(), b"a.key", headers.as_bytes(), b"").await;
    }
    let removed = |seq, reason: &str| {
        let data = format!(r#"{{"reason":"{reason}","subject":"a.key"}}"#);
        Seen::Event(seq, "sidestream.removed".into(), data)
    };
    let seen = reader.until_seen(3).await;
    assert_eq!(
        seen,
        [
            removed(1, "DEL"),
            removed(2, "MaxAge"),
            Seen::Event(3, "message".into(), String::new())
        ]
    );
}
