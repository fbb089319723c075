//! Messages that are poison, too large, or more than anybody can take.

use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::nats::Nats;
use crate::support::sidestream::{Sidestream, config};
use crate::support::wait::{DEADLINE, within};
use crate::{ROUTES, gap_reason, open, publish, publish_core, told, until_ready, with_stream};

/// Publishes with headers that no client library would send; returns when the server has it.
async fn publish_raw(nats: &Nats, subject: &str, headers: &[u8], payload: &[u8]) {
    let mut socket = BufReader::new(TcpStream::connect(("127.0.0.1", nats.port())).await.unwrap());
    let total = headers.len() + payload.len();
    let head =
        format!("CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {subject} {} {total}\r\n", headers.len());
    let bytes = [head.as_bytes(), headers, payload, b"\r\nPING\r\n"].concat();
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
async fn a_poison_message_delays_nobody_for_long_and_loses_nothing_else() {
    let nats = Nats::start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    let mut core = open(&sidestream, "/core").await;
    publish(&context, "a.x", "1").await;
    let began = Instant::now();
    publish_raw(&nats, "a.x", b"NATS/1.0\r\nX-Bad: \xff\xfe\r\n\r\n", b"poison").await;
    publish(&context, "a.x", "3").await;
    publish_core(&nats, "c.x", "core").await;
    assert_eq!(core.next().await.data, "core", "the core connection is another one");
    let events = told(&client.until(|event| event.data == "3").await);
    assert_eq!(events, ["1", "poison", "3"]);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(sidestream.metric("sidestream_poison_messages_total", &[]).await, 1.0);
    assert_eq!(sidestream.metric("sidestream_gaps_total", &[]).await, 0.0);
    until_ready(&sidestream).await;
}

#[tokio::test]
async fn a_payload_of_the_servers_largest_size_and_one_that_is_no_text_pass() {
    let nats = Nats::builder().config("max_payload: 4MB").start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    let large = "x".repeat(4 * 1000 * 1000);
    publish(&context, "a.x", &large).await;
    context.publish("a.x", vec![0xff, 0x00, 0xfe].into()).await.unwrap().await.unwrap();
    context.publish("a.x", "".into()).await.unwrap().await.unwrap();
    publish(&context, "a.x", "after").await;
    assert_eq!(client.next_within(Duration::from_secs(20)).await.unwrap().data.len(), large.len());
    let binary = client.next().await;
    assert_eq!((binary.name.as_str(), binary.data.as_str()), ("message;base64", "/wD+"));
    let last = told(&client.until(|event| event.data == "after").await);
    assert!(last.len() <= 2, "{last:?}");
}

#[tokio::test]
async fn a_flood_of_core_messages_is_delivered_or_told() {
    let nats = Nats::start().await;
    with_stream(&nats).await;
    let mut sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/core").await;
    let publisher = nats.client().await;
    // While the whole pod stands still, more comes than any buffer between holds in messages.
    sidestream.signal(rustix::process::Signal::STOP);
    for number in 0..30_000 {
        publisher.publish("c.x", number.to_string().into()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    sidestream.signal(rustix::process::Signal::CONT);
    // The end may be among what is lost, too.
    let ending = tokio::spawn(async move {
        loop {
            publisher.publish("c.x", "end".into()).await.unwrap();
            publisher.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let reading = client.until(|event| event.data == "end");
    let events = within(Duration::from_secs(30), "the end of the flood comes", reading).await;
    let told = told(&events);
    let numbers: Vec<u32> = told.iter().filter_map(|event| event.parse().ok()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "in order, and none twice");
    // What overran the window is told as `slow` with its number; what NATS dropped, as `upstream`.
    if numbers.len() < 30_000 && !told.iter().any(|event| event.starts_with("gap:")) {
        client.until(|event| gap_reason(event).as_deref() == Some("upstream")).await;
        assert!(sidestream.metric("sidestream_nats_slow_consumer_total", &[]).await >= 1.0);
    }
    ending.abort();
    assert!(sidestream.running());
}
