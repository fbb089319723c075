//! Messages with invalid headers or subjects, too large messages, and floods.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{ROUTES, gap_reason, open, publish, publish_core, summaries, until_ready, with_stream};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, RECOVERY, eventually, within};

/// Publishes with headers that no client library would send; returns when the server has the
/// message.
async fn publish_raw(nats: &Nats, subject: &str, headers: &[u8], payload: &[u8]) {
    publish_raw_to(nats, &[subject.to_owned()], headers, payload).await;
}

/// Same as [`publish_raw`], to several subjects on one connection.
async fn publish_raw_to(nats: &Nats, subjects: &[String], headers: &[u8], payload: &[u8]) {
    let mut socket = BufReader::new(
        TcpStream::connect(("127.0.0.1", nats.port()))
            .await
            .unwrap(),
    );
    let mut bytes = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    for subject in subjects {
        let head = format!(
            "HPUB {subject} {} {}\r\n",
            headers.len(),
            headers.len() + payload.len()
        );
        bytes.extend([head.as_bytes(), headers, payload, b"\r\n"].concat());
    }
    bytes.extend(b"PING\r\n");
    socket.write_all(&bytes).await.unwrap();
    within(DEADLINE, "the server has the message", async {
        let mut line = String::new();
        while !line.starts_with("PONG") {
            line.clear();
            socket.read_line(&mut line).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn messages_with_invalid_headers_arrive_in_order_and_keep_the_connection() {
    let nats = Nats::start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    let mut core = open(&sidestream, "/core").await;
    let damaged: [&[u8]; 6] = [
        b"NATS/1.0\r\nX-Bad: \xff\xfe\r\n\r\n",
        b"NATS/1.0\r\nX-Bad: b\rc\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nodd key: x\r\n\r\n",
        b"NATS/1.0 xyz\r\n\r\n",
        b"nothing that a client would send",
    ];
    let mut expected = Vec::new();
    for (number, headers) in damaged.into_iter().enumerate() {
        publish_raw(
            &nats,
            "a.x",
            headers,
            format!("damaged {number}").as_bytes(),
        )
        .await;
        publish(&context, "a.x", &format!("sound {number}")).await;
        publish_raw(
            &nats,
            "c.x",
            headers,
            format!("damaged {number}").as_bytes(),
        )
        .await;
        publish_raw(
            &nats,
            "c.x",
            b"NATS/1.0\r\n\r\n",
            format!("sound {number}").as_bytes(),
        )
        .await;
        expected.extend([format!("damaged {number}"), format!("sound {number}")]);
    }
    for reader in [&mut client, &mut core] {
        assert_eq!(summaries(&reader.take(expected.len()).await), expected);
    }
    assert_eq!(sidestream.metric("sidestream_gaps_total", &[]).await, 0.0);
    assert_eq!(
        sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await,
        0.0
    );
    until_ready(&sidestream).await;
}

#[tokio::test]
async fn a_message_to_the_inboxes_of_the_sidecar_does_not_break_resumes_and_reconnects() {
    let mut nats = Nats::start().await;
    let context = with_stream(&nats).await;
    for number in 1..=60 {
        publish(&context, "a.x", &number.to_string()).await;
    }
    let routes = "routes:
  - path: /stream
    window: { events: 10 }
    sources: [{ stream: A, subjects: [\"a.>\"] }]
";
    let sidestream = Sidestream::start(config(&nats, routes)).await;
    let mut live = open(&sidestream, "/stream").await;
    let tag = live.last_event_id().split('-').next().unwrap().to_owned();
    let resume = async |sidestream: &Sidestream| {
        let mut client = SseClient::get(sidestream.url("/stream"))
            .last_event_id(&format!("{tag}-5"))
            .connect()
            .await;
        assert_eq!(client.status(), 200, "{}", client.body().await);
        summaries(&client.until(|event| event.data == "60").await)
    };
    let expected: Vec<String> = (6..=60).map(|number| number.to_string()).collect();
    // Any user of the account that may subscribe to the inboxes can read their names.
    let mut spy = nats.client().await.subscribe("_INBOX_sse.>").await.unwrap();
    assert_eq!(resume(&sidestream).await, expected);
    let mut inboxes = BTreeSet::new();
    while let Some(Some(message)) = spy.next().now_or_never() {
        // Messages from JetStream keep the subject of their publisher.
        if message.subject.starts_with("_INBOX_sse.") {
            inboxes.insert(message.subject.to_string());
        }
    }
    assert!(!inboxes.is_empty());
    let inboxes: Vec<String> = inboxes.into_iter().collect();
    publish_raw_to(&nats, &inboxes, b"NATS/1.0\r\nA: b\rc\r\n\r\n", b"x").await;
    until_ready(&sidestream).await;
    eventually(
        RECOVERY,
        "a position outside the window is resumed",
        || async {
            SseClient::get(sidestream.url("/stream"))
                .last_event_id(&format!("{tag}-5"))
                .connect()
                .await
                .status()
                == 200
        },
    )
    .await;
    assert_eq!(resume(&sidestream).await, expected);
    nats.restart().await;
    sidestream
        .until_metric("sidestream_nats_reconnects_total", &[], |count| {
            count >= 4.0
        })
        .await;
    until_ready(&sidestream).await;
    publish(&nats.jetstream().await, "a.x", "after").await;
    assert_eq!(live.next().await.data, "after");
}

#[tokio::test]
async fn payloads_of_the_maximum_size_and_binary_ones_are_delivered() {
    let nats = Nats::builder().config("max_payload: 4MB").start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    let large = "x".repeat(4 * 1000 * 1000);
    publish(&context, "a.x", &large).await;
    context
        .publish("a.x", vec![0xff, 0x00, 0xfe].into())
        .await
        .unwrap()
        .await
        .unwrap();
    context
        .publish("a.x", "".into())
        .await
        .unwrap()
        .await
        .unwrap();
    publish(&context, "a.x", "after").await;
    assert_eq!(
        client
            .next_within(Duration::from_secs(20))
            .await
            .unwrap()
            .data
            .len(),
        large.len()
    );
    let binary = client.next().await;
    assert_eq!(
        (binary.name.as_str(), binary.data.as_str()),
        ("message;base64", "/wD+")
    );
    let last = summaries(&client.until(|event| event.data == "after").await);
    assert!(last.len() <= 2, "{last:?}");
}

#[tokio::test]
async fn a_message_above_the_limit_is_a_gap_and_is_not_buffered() {
    let nats = Nats::builder()
        .config("max_payload: 60MB\nmax_pending: 200MB")
        .start()
        .await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    let mut core = open(&sidestream, "/core").await;
    let before = sidestream.resident_bytes();
    publish_raw(&nats, "c.x", b"NATS/1.0\r\n\r\n", &vec![b'x'; 50 << 20]).await;
    publish_core(&nats, "c.x", "after").await;
    assert_eq!(
        summaries(&core.until(|event| event.data == "after").await),
        ["gap:upstream", "after"]
    );
    // JetStream stores no message above 32 MiB.
    context
        .publish("a.x", vec![b'x'; 30 << 20].into())
        .await
        .unwrap()
        .await
        .unwrap();
    publish(&context, "a.x", "after").await;
    assert_eq!(
        summaries(&client.until(|event| event.data == "after").await),
        ["gap:upstream", "after"]
    );
    let grown = sidestream.resident_bytes_peak().saturating_sub(before);
    assert!(
        grown < 40 << 20,
        "{grown} bytes for messages of 50 MiB and 30 MiB"
    );
    assert_eq!(
        sidestream
            .metric(
                "sidestream_events_rejected_total",
                &[("reason", "oversize")]
            )
            .await,
        2.0
    );
    assert_eq!(
        sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await,
        0.0
    );
}

#[tokio::test]
async fn a_flood_of_large_core_messages_needs_bounded_memory_and_is_delivered_or_a_gap() {
    let nats = Nats::builder()
        .config("max_payload: 8MB\nmax_pending: 256MB")
        .start()
        .await;
    with_stream(&nats).await;
    let routes = "limits: { window_bytes: 32MiB }
routes:
  - path: /core
    window: { bytes: 8MiB }
    sources: [{ subjects: [\"c.>\"] }]
";
    let mut sidestream = Sidestream::start(config(&nats, routes)).await;
    let mut client = open(&sidestream, "/core").await;
    let before = sidestream.resident_bytes();
    let publisher = nats.client().await;
    let payload = bytes::Bytes::from(vec![b'x'; 7 << 20]);
    // The pod is stopped while the messages arrive at its socket.
    sidestream.signal(rustix::process::Signal::STOP);
    for _ in 0..30 {
        publisher.publish("c.x", payload.clone()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    sidestream.signal(rustix::process::Signal::CONT);
    eventually(RECOVERY, "the flood has passed", || async {
        publisher.publish("c.x", "end".into()).await.unwrap();
        publisher.flush().await.unwrap();
        let waits = sidestream
            .metric("sidestream_nats_pending_bytes", &[])
            .await;
        let received = sidestream
            .metric("sidestream_events_received_total", &[("source", "core")])
            .await;
        let dropped = sidestream
            .metric("sidestream_nats_slow_consumer_total", &[])
            .await;
        waits == 0.0 && received + dropped > 30.0
    })
    .await;
    let reading = client.until(|event| event.data == "end");
    let events = summaries(&within(RECOVERY, "the end of the flood arrives", reading).await);
    let complete = events
        .iter()
        .filter(|event| event.len() == payload.len())
        .count();
    assert!(
        complete == 30 || events.iter().any(|event| event.starts_with("gap:")),
        "{complete} of 30, no gap"
    );
    // The queue, the batch from it, and the windows.
    let grown = sidestream.resident_bytes_peak().saturating_sub(before);
    assert!(
        grown < 200 << 20,
        "{} MiB for windows of 32 MiB",
        grown >> 20
    );
}

#[tokio::test]
async fn a_flood_of_core_messages_is_delivered_or_a_gap() {
    let nats = Nats::start().await;
    with_stream(&nats).await;
    let mut sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/core").await;
    let publisher = nats.client().await;
    // While the pod is stopped, more messages arrive than all buffers can hold.
    sidestream.signal(rustix::process::Signal::STOP);
    for number in 0..30_000 {
        publisher
            .publish("c.x", number.to_string().into())
            .await
            .unwrap();
    }
    publisher.flush().await.unwrap();
    sidestream.signal(rustix::process::Signal::CONT);
    // The last message may be lost, too.
    let ending = tokio::spawn(async move {
        loop {
            publisher.publish("c.x", "end".into()).await.unwrap();
            publisher.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let reading = client.until(|event| event.data == "end");
    let events = within(
        Duration::from_secs(30),
        "the end of the flood comes",
        reading,
    )
    .await;
    let told = summaries(&events);
    let numbers: Vec<u32> = told.iter().filter_map(|event| event.parse().ok()).collect();
    assert!(
        numbers.is_sorted_by(|one, next| one < next),
        "in order, and none twice"
    );
    // Messages that were evicted from the window are a `slow` gap with a count; messages that NATS
    // dropped are an `upstream` gap.
    if numbers.len() < 30_000 && !told.iter().any(|event| event.starts_with("gap:")) {
        client
            .until(|event| gap_reason(event).as_deref() == Some("upstream"))
            .await;
        assert!(
            sidestream
                .metric("sidestream_nats_slow_consumer_total", &[])
                .await
                >= 1.0
        );
    }
    ending.abort();
    assert!(sidestream.running());
}
