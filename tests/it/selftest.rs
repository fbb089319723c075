//! Tests of the test kit itself, so that a failing test means a failing product.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::browser::Page;
use testkit::nats::{Cluster, Nats};
use testkit::node::NodeClient;
use testkit::proxy::{Fault, Proxy};
use testkit::sidestream::metric;
use testkit::wait::{DEADLINE, eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_crashed_and_restarted_nats_server_keeps_its_port_and_its_messages() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let stream = async_nats::jetstream::stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        ..Default::default()
    };
    jetstream.create_stream(stream).await.unwrap();
    jetstream
        .publish("a.1", "one".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let url = nats.url();

    nats.kill9();
    nats.restart().await;

    assert_eq!(nats.url(), url);
    let stream = nats.jetstream().await.get_stream("A").await.unwrap();
    assert_eq!(stream.get_raw_message(1).await.unwrap().payload, "one");
}

#[tokio::test]
async fn a_nats_server_has_the_configuration_of_the_test() {
    let nats = Nats::builder()
        .config("max_payload: 100\nauthorization { token: secret }")
        .without_jetstream()
        .start()
        .await;
    let refused = async_nats::connect(nats.url()).await;
    assert!(refused.is_err(), "without the token");
    let client = nats
        .client_with(async_nats::ConnectOptions::with_token("secret".into()))
        .await;
    assert_eq!(client.server_info().max_payload, 100);
    assert!(!client.server_info().jetstream);
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_notifies_its_clients() {
    let mut nats = Nats::start().await;
    let (told, mut events) = tokio::sync::mpsc::channel(16);
    let options = async_nats::ConnectOptions::new().event_callback(move |event| {
        let told = told.clone();
        async move {
            let _full = told.try_send(event);
        }
    });
    let _client = nats.client_with(options).await;
    nats.lame_duck();
    within(DEADLINE, "the client hears of lame duck mode", async {
        while events.recv().await != Some(async_nats::Event::LameDuckMode) {}
    })
    .await;
}

#[tokio::test]
async fn a_cluster_keeps_a_replicated_stream_when_one_server_crashes() {
    let mut cluster = Cluster::start().await;
    let jetstream = async_nats::jetstream::new(cluster.client().await);
    let stream = async_nats::jetstream::stream::Config {
        name: "A".into(),
        subjects: vec!["a".into()],
        num_replicas: 3,
        ..Default::default()
    };
    eventually(
        Duration::from_secs(30),
        "the cluster places a stream",
        || async { jetstream.create_stream(stream.clone()).await.is_ok() },
    )
    .await;
    let takes = |text: &'static str| {
        let jetstream = &jetstream;
        async move {
            match jetstream.publish("a", text.into()).await {
                Ok(ack) => ack.await.is_ok(),
                Err(_) => false,
            }
        }
    };
    eventually(Duration::from_secs(30), "the three take a message", || {
        takes("one")
    })
    .await;
    cluster.node(1).kill9();
    eventually(
        Duration::from_secs(30),
        "two of three take a message",
        || takes("two"),
    )
    .await;
}

/// Echo server behind a proxy, with the number of bytes that it has received.
async fn proxied_echo() -> (Proxy, TcpStream, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await;
    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = socket.read(&mut buffer).await {
                    counted.fetch_add(read, Ordering::Relaxed);
                    if socket.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    echo(&mut client, b"hello").await;
    (proxy, client, received)
}

async fn echo(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).await.unwrap();
    let mut answer = vec![0; bytes.len()];
    within(
        DEADLINE,
        "the echo comes back",
        client.read_exact(&mut answer),
    )
    .await
    .unwrap();
    assert_eq!(answer, bytes);
}

#[tokio::test]
async fn a_cut_resets_open_connections_and_accepts_new_ones() {
    let (proxy, mut client, _) = proxied_echo().await;
    assert_eq!(proxy.open(), 1);
    proxy.cut();
    let error = within(DEADLINE, "the client is cut off", client.read_u8())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    echo(
        &mut TcpStream::connect(proxy.address()).await.unwrap(),
        b"again",
    )
    .await;
    proxy.set(Fault {
        refuse: true,
        ..Fault::default()
    });
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(
        within(DEADLINE, "the client is rejected", refused.read_u8())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn discarded_bytes_are_lost_and_the_connection_stays_open() {
    let (proxy, mut client, received) = proxied_echo().await;
    proxy.set(Fault {
        swallow: true,
        ..Fault::default()
    });
    client.write_all(&[0; 300_000]).await.unwrap();
    // The proxy accepts more than it can buffer, so the bytes are really discarded.
    eventually(DEADLINE, "nothing waits in the socket", || async {
        unsent(&client) == 0
    })
    .await;
    proxy.set(Fault::default());
    echo(&mut client, b"healed").await;
    assert_eq!(received.load(Ordering::Relaxed), 5 + 6);
}

#[tokio::test]
async fn a_stalled_connection_exerts_backpressure_and_loses_nothing() {
    let (proxy, client, received) = proxied_echo().await;
    proxy.set(Fault {
        stall: true,
        ..Fault::default()
    });
    let (mut reader, mut writer) = client.into_split();
    let sending = tokio::spawn(async move { writer.write_all(&vec![1; 16 << 20]).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!sending.is_finished(), "16 MiB fit into no buffer");
    assert_eq!(received.load(Ordering::Relaxed), 5);
    proxy.set(Fault::default());
    let mut sink = vec![0; 16 << 20];
    within(
        DEADLINE,
        "everything comes back",
        reader.read_exact(&mut sink),
    )
    .await
    .unwrap();
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn delay_and_throttle_slow_down_the_connection() {
    let (proxy, mut client, _) = proxied_echo().await;
    proxy.set(Fault {
        delay: Duration::from_millis(50),
        ..Fault::default()
    });
    let start = Instant::now();
    echo(&mut client, b"x").await;
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "once on the way there, once on the way back"
    );
    proxy.set(Fault {
        bytes_per_second: 10_000,
        ..Fault::default()
    });
    let start = Instant::now();
    echo(&mut client, &[0; 1000]).await;
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "0.1 s each way"
    );
}

/// Server that answers every connection with retry, an event `round` with the request's
/// Last-Event-ID, and an end.
async fn event_source() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut round = 0;
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = socket.read_u8().await else {
                    break;
                };
                head.push(byte);
            }
            round += 1;
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let resumed = head
                .lines()
                .find_map(|line| line.strip_prefix("last-event-id: "))
                .unwrap_or("none");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nAccess-Control-Allow-Origin: *\r\n\
                 Connection: close\r\n\r\nretry: 50\n\nevent: round\ndata: {resumed}\nid: {round}\n\n"
            );
            let _left = socket.write_all(answer.as_bytes()).await;
        }
    });
    url
}

/// Returns true after two rounds: the second resumes after the first.
fn two_rounds(reports: &[Value]) -> bool {
    let rounds: Vec<&Value> = reports
        .iter()
        .filter(|report| report["name"] == "round")
        .collect();
    rounds.len() >= 2
        && rounds[0]["data"] == "none"
        && rounds[1]["data"] == "1"
        && rounds[1]["id"] == "2"
}

#[tokio::test]
async fn chromium_receives_events_and_reconnects_with_the_last_id() {
    let page = Page::serve().await;
    let browser = page.open(&[&event_source().await], &["round"]);
    let reports = browser
        .until("Chromium has seen two rounds", two_rounds)
        .await;
    assert_eq!(reports[0]["kind"], "open");
}

#[tokio::test]
async fn the_npm_package_eventsource_receives_events_and_reconnects_with_the_last_id() {
    let client = NodeClient::eventsource(&event_source().await, &["round"]);
    client
        .until("eventsource has seen two rounds", two_rounds)
        .await;
}

#[tokio::test]
async fn the_npm_package_fetch_event_source_stops_at_a_clean_end() {
    let client = NodeClient::fetch_event_source(&event_source().await);
    let reports = client
        .until("fetch-event-source is done", |reports| {
            reports.iter().any(|r| r["kind"] == "done")
        })
        .await;
    assert_eq!(
        reports
            .iter()
            .filter(|report| report["name"] == "round")
            .count(),
        1
    );
}

/// Bytes in the send buffer of the kernel: `tx_queue` of /proc/net/tcp.
fn unsent(socket: &TcpStream) -> u64 {
    let (local, peer) = (
        socket.local_addr().unwrap().port(),
        socket.peer_addr().unwrap().port(),
    );
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ports = |row: &str| -> Option<(u16, u16, u64)> {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let port = |column: &str| u16::from_str_radix(column.split_once(':')?.1, 16).ok();
        let queued = u64::from_str_radix(columns.get(4)?.split_once(':')?.0, 16).ok()?;
        Some((port(columns.get(1)?)?, port(columns.get(2)?)?, queued))
    };
    table
        .lines()
        .filter_map(ports)
        .find(|row| (row.0, row.1) == (local, peer))
        .expect("the socket is in the table")
        .2
}

#[test]
fn metrics_are_summed_over_the_series_with_the_given_labels() {
    let text = "# HELP a x\n# TYPE a counter\na{k=\"1\",l=\"x\"} 2\na{k=\"2\",l=\"q\\\"}{\"} 3\na_total 9\nb 1e3\n";
    assert_eq!(metric(text, "a", &[]), 5.0);
    assert_eq!(metric(text, "a", &[("l", "q\"}{")]), 3.0);
    assert_eq!(metric(text, "a", &[("k", "3")]), 0.0);
    assert_eq!(metric(text, "b", &[]), 1000.0);
}
