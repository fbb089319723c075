//! Floods of HTTP/2 frames: each is bounded in memory and does not delay other clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::fixture::Fixture;
use testkit::h2::H2Client;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, RECOVERY, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// RFC 9113, section 7: error code for a peer that behaves like an attacker.
const ENHANCE_YOUR_CALM: u32 = 11;

/// 16 MiB: maximum memory that remains after a flood, including the reserves of the allocator.
const LEAKED_MAX: u64 = 16 << 20;

/// 48 MiB: maximum memory at any time during all floods, one after the other.
const HELD_MAX: u64 = 48 << 20;

/// 1 s: maximum latency of other clients meanwhile, with debug code and other tests on two cores.
const LATENCY_MAX: Duration = Duration::from_secs(1);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// GET of `path` in HPACK: three indexed fields of the static table and one literal (RFC 7541,
/// appendix A).
fn get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 0x01, b'x']);
    block
}

/// Reaction of the peer to a flood.
#[derive(Debug, Default)]
struct Taken {
    /// Code of its GOAWAY.
    goaway: Option<u32>,
    /// Codes of its RST_STREAM frames.
    resets: Vec<u32>,
    /// Number of response headers.
    heads: usize,
    /// The peer answered the PING after the flood: the connection continues.
    ponged: bool,
}

/// Opens a connection, sends these bytes and a PING, and reads until its answer or the end.
async fn flood(socket: TcpStream, bytes: &[u8]) -> Taken {
    flood_until(socket, bytes, |taken| taken.ponged).await
}

/// Same as [`flood`], until `enough` returns true.
async fn flood_until(
    mut socket: TcpStream,
    bytes: &[u8],
    enough: impl Fn(&Taken) -> bool,
) -> Taken {
    const MARK: [u8; 8] = *b"the mark";
    let mut all = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    all.extend_from_slice(bytes);
    all.extend(frame(PING, 0, 0, &MARK));
    let (mut from, mut to) = socket.split();
    let mut taken = Taken::default();
    let reading = async {
        let mut header = [0; 9];
        while from.read_exact(&mut header).await.is_ok() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let mut payload = vec![0; length];
            if from.read_exact(&mut payload).await.is_err() {
                return;
            }
            let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match header[3] {
                GOAWAY => taken.goaway = Some(code(4)),
                RST_STREAM => taken.resets.push(code(0)),
                HEADERS => taken.heads += 1,
                PING if payload == MARK => taken.ponged = true,
                _ => {}
            }
            if enough(&taken) {
                return;
            }
        }
    };
    let writing = async {
        // The peer may have closed by now.
        let _closed = to.write_all(&all).await;
        std::future::pending::<()>().await;
    };
    within(RECOVERY * 2, "the flood is answered or ended", async {
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    })
    .await;
    taken
}

#[tokio::test]
async fn floods_of_frames_are_bounded() {
    let fixture = Fixture::start("").await;
    let resident = fixture.sidestream.resident_bytes();
    let request = get("/orders/1");
    let open = |stream: u32| frame(HEADERS, END_STREAM | END_HEADERS, stream, &request);
    let reset = |stream: u32| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let rapid_reset: Vec<u8> = (0..5000)
        .flat_map(|number| [open(2 * number + 1), reset(2 * number + 1)].concat())
        .collect();
    let mut endless = frame(HEADERS, END_STREAM, 1, &request);
    endless.extend((0..10_000).flat_map(|_| {
        frame(
            CONTINUATION,
            0,
            1,
            &[0x00, 0x01, b'a', 0x01, b'b'].repeat(20),
        )
    }));
    let mut silent = frame(HEADERS, END_STREAM, 1, &request);
    silent.extend((0..10_000).flat_map(|_| frame(CONTINUATION, 0, 1, &[])));
    let mut empty = frame(HEADERS, END_HEADERS, 1, &request);
    empty.extend((0..20_000).flat_map(|_| frame(DATA, 0, 1, &[])));
    let settings: Vec<u8> = (0..20_000)
        .flat_map(|_| frame(SETTINGS, 0, 0, &[]))
        .collect();
    let pings: Vec<u8> = (0..20_000)
        .flat_map(|_| frame(PING, 0, 0, &[0; 8]))
        .collect();
    let priorities: Vec<u8> = (0..20_000)
        .flat_map(|number| frame(PRIORITY, 0, 2 * number + 1, &[0; 5]))
        .collect();
    let unknown: Vec<u8> = (0..20_000)
        .flat_map(|_| frame(0xfa, 0xff, 0, &[0; 8]))
        .collect();

    let run = |bytes: Vec<u8>| {
        let socket = fixture.socket();
        async move { flood(socket.await, &bytes).await }
    };
    let rapid_reset = run(rapid_reset).await;
    assert!(
        rapid_reset.goaway == Some(ENHANCE_YOUR_CALM) || rapid_reset.ponged,
        "{rapid_reset:?}"
    );
    let endless = run(endless).await;
    assert!(
        !endless.ponged && endless.heads == 0,
        "CONTINUATION without an end: {endless:?}"
    );
    let silent = run(silent).await;
    assert!(
        !silent.ponged && silent.heads == 0,
        "empty CONTINUATION without an end: {silent:?}"
    );
    let empty = run(empty).await;
    assert!(empty.goaway.is_some() || empty.ponged, "{empty:?}");
    for (name, bytes) in [
        ("settings", settings),
        ("pings", pings),
        ("priorities", priorities),
        ("unknown", unknown),
    ] {
        let taken = run(bytes).await;
        assert!(taken.goaway.is_some() || taken.ponged, "{name}: {taken:?}");
    }
    let left = fixture.sidestream.resident_bytes().saturating_sub(resident);
    assert!(left < LEAKED_MAX, "{left} bytes leak");
    let held = fixture
        .sidestream
        .resident_bytes_peak()
        .saturating_sub(resident);
    assert!(held < HELD_MAX, "{held} bytes were held");
    fixture.finish().await;
}

/// Measures the maximum latency from a publisher to a separate client, until it is stopped.
async fn watch_latency(fixture: &Fixture, stop: Arc<AtomicBool>) -> JoinHandle<Duration> {
    let publisher = fixture.nats.client().await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders/beside"))
        .connect()
        .await;
    client.positioned().await;
    tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            publisher
                .publish("orders.beside.x", "x".into())
                .await
                .unwrap();
            client.next().await;
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        longest
    })
}

#[tokio::test]
async fn windows_that_open_byte_by_byte_delay_no_client_and_use_little_memory() {
    const STREAMS: u32 = 200;
    let fixture = Fixture::start("").await;
    let resident = fixture.sidestream.resident_bytes();
    let stop = Arc::new(AtomicBool::new(false));
    let longest = watch_latency(&fixture, stop.clone()).await;
    // SETTINGS_INITIAL_WINDOW_SIZE of 1, and one more byte for each stream, five hundred times.
    let mut bytes = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let streams = || (0..STREAMS).map(|number| 2 * number + 1);
    bytes.extend(
        streams().flat_map(|id| frame(HEADERS, END_STREAM | END_HEADERS, id, &get("/orders/1"))),
    );
    let opened = fixture.socket().await;
    let updates: Vec<u8> = (0..500)
        .flat_map(|_| streams())
        .flat_map(|id| frame(WINDOW_UPDATE, 0, id, &1_u32.to_be_bytes()))
        .collect();
    let publisher = fixture.nats.client().await;
    let feeding = {
        let stop = stop.clone();
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                publisher
                    .publish("orders.1.x", "x".repeat(1000).into())
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    bytes.extend(updates);
    let began = Instant::now();
    let taken = flood(opened, &bytes).await;
    let lasted = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    feeding.await.unwrap();
    let longest = longest.await.unwrap();
    println!(
        "{} updates in {lasted:?}: another client waited for {longest:?} at most",
        500 * STREAMS
    );
    assert!(taken.ponged && taken.goaway.is_none(), "{taken:?}");
    assert!(taken.heads >= 1, "{taken:?}");
    assert!(
        longest < LATENCY_MAX,
        "another client waited for {longest:?}"
    );
    let held = fixture
        .sidestream
        .resident_bytes_peak()
        .saturating_sub(resident);
    assert!(held < HELD_MAX, "{held} bytes were held");
    fixture.finish().await;
}

#[tokio::test]
async fn invalid_frames_end_their_connection_or_stream() {
    let fixture = Fixture::start("").await;
    let request = get("/orders/1");
    let open = frame(HEADERS, END_STREAM | END_HEADERS, 1, &request);
    let cases = [
        (
            "a window beyond its maximum",
            [
                frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
                frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            ]
            .concat(),
        ),
        (
            "a frame larger than agreed",
            frame(DATA, 0, 1, &[0; 20_000]),
        ),
        (
            "DATA on a stream that was never opened",
            frame(DATA, 0, 1, b"x"),
        ),
        (
            "an even stream",
            frame(HEADERS, END_STREAM | END_HEADERS, 2, &request),
        ),
        (
            "a broken header block",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 50]),
        ),
        (
            "a stream number that goes back",
            [frame(HEADERS, END_STREAM | END_HEADERS, 3, &request), open].concat(),
        ),
        ("SETTINGS of a wrong length", frame(SETTINGS, 0, 0, &[0; 5])),
    ];
    for (name, bytes) in cases {
        let taken = flood(fixture.socket().await, &bytes).await;
        assert!(
            taken.goaway.is_some_and(|code| code != 0),
            "{name}: {taken:?}"
        );
    }
    // A request without a path, or with headers of HTTP/1 only, is rejected by itself.
    for block in [
        vec![0x82, 0x86],
        [&request[..], b"\x00\x0aconnection\x05close"].concat(),
    ] {
        let bytes = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
        let refused =
            |taken: &Taken| taken.ponged && !(taken.resets.is_empty() && taken.heads == 0);
        let taken = flood_until(fixture.socket().await, &bytes, refused).await;
        assert!(
            refused(&taken),
            "the stream ends and the connection goes on: {taken:?}"
        );
    }
    let answer = fixture
        .raw(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n0123456789")
        .await;
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    fixture.finish().await;
}

#[tokio::test]
async fn too_large_headers_and_too_many_streams_are_rejected_by_themselves() {
    let fixture = Fixture::start("").await;
    let publisher = fixture.nats.client().await;
    let mut client = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut first = client.get("/orders/1").await;
    assert_eq!(first.status(), 200);
    let large = "x".repeat(20 * 1024);
    match client
        .try_request("GET", "/orders/1", &[("x", &large)])
        .await
    {
        Ok(answer) => assert_eq!(answer.status(), 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    first.positioned().await;
    publisher
        .publish("orders.1.a", "still here".into())
        .await
        .unwrap();
    assert_eq!(first.next().await.data, "still here");

    let more: Vec<u8> = (1..=300_u32)
        .flat_map(|number| {
            frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                2 * number + 1,
                &get("/orders/1"),
            )
        })
        .collect();
    let taken = flood(fixture.socket().await, &more).await;
    assert!(taken.ponged || taken.goaway.is_some(), "{taken:?}");
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[("protocol", "h2")], |streams| {
            streams <= 257.0
        })
        .await;
    publisher
        .publish("orders.1.a", "and now".into())
        .await
        .unwrap();
    assert_eq!(first.next().await.data, "and now");
    assert!(
        client
            .get("/orders/1")
            .await
            .next_within(Duration::from_millis(50))
            .await
            .is_none()
    );
    drop((first, client));
    fixture.finish().await;
}

#[tokio::test]
async fn invalid_settings_end_the_connection_with_their_error_code() {
    let fixture = Fixture::start("").await;
    let setting =
        |name: u16, value: u32| [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
    // RFC 9113, 6.5.2: FLOW_CONTROL_ERROR for a window above 2^31-1, PROTOCOL_ERROR for the others.
    for (payload, code) in [
        (setting(4, 1 << 31), 3),
        (setting(4, u32::MAX), 3),
        ([setting(3, 100), setting(4, 1 << 31)].concat(), 3),
        (setting(5, 100), 1),
        (setting(2, 7), 1),
    ] {
        let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/orders/1"));
        let bytes = [request, frame(SETTINGS, 0, 0, &payload)].concat();
        let taken = flood_until(fixture.socket().await, &bytes, |_| false).await;
        assert_eq!(taken.goaway, Some(code), "{payload:?}: {taken:?}");
    }
    // The largest valid value.
    let taken = flood(
        fixture.socket().await,
        &frame(SETTINGS, 0, 0, &setting(4, (1 << 31) - 1)),
    )
    .await;
    assert!(taken.ponged && taken.goaway.is_none(), "{taken:?}");
    fixture.finish().await;
}

#[tokio::test]
async fn an_unread_stream_that_uses_up_the_connection_window_is_reset_within_seconds() {
    const ACK: u8 = 1;
    let fixture = Fixture::start("").await;
    let mut socket = fixture.socket().await;
    let open =
        |stream: u32, path: &str| frame(HEADERS, END_STREAM | END_HEADERS, stream, &get(path));
    // Both windows have their default size, and the client returns no credit.
    let begin = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[]),
        &open(1, "/orders/1"),
        &open(3, "/orders/2"),
    ]
    .concat();
    socket.write_all(&begin).await.unwrap();
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[("protocol", "h2")], |streams| {
            streams == 2.0
        })
        .await;
    let publisher = fixture.nats.client().await;
    for _ in 0..100 {
        publisher
            .publish("orders.1.x", "x".repeat(1024).into())
            .await
            .unwrap();
    }
    publisher.flush().await.unwrap();
    let begun = Instant::now();
    // Events are sent until the window is used up; later ones wait for the reset.
    let others = async {
        loop {
            publisher
                .publish("orders.2.x", "x".repeat(100).into())
                .await
                .unwrap();
            publisher.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (mut from, mut to) = socket.split();
    let reset = within(
        DEADLINE * 2,
        "the stream that holds the window is reset",
        async {
            loop {
                let mut header = [0; 9];
                from.read_exact(&mut header).await.unwrap();
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                let mut payload = vec![0; length];
                from.read_exact(&mut payload).await.unwrap();
                match (header[3], header[4]) {
                    // The client still works.
                    (PING, 0) => to.write_all(&frame(PING, ACK, 0, &payload)).await.unwrap(),
                    (RST_STREAM, _) => {
                        return u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
                    }
                    _ => {}
                }
            }
        },
    );
    let reset = tokio::select! {
        stream = reset => stream,
        () = others => unreachable!("it is published until the reset"),
    };
    assert_eq!(reset, 1, "the other one only waits");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    drop(socket);
    fixture.finish().await;
}
