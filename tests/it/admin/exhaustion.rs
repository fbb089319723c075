//! Probes under connection exhaustion of the admin port and the control socket.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sidestream::presence::Protocol;
use socket2::{Domain, Socket, Type};

use super::{Answer, DEADLINE, Operator, exchange};

/// 3 s: without connection slots, hundreds of idle connections blocked a probe for that long.
const PROBE_MAX: Duration = Duration::from_secs(3);

fn probe(operator: &Operator) -> Answer {
    let asked = Instant::now();
    let answer = operator.get("/health/live");
    assert!(asked.elapsed() < PROBE_MAX, "{:?}", asked.elapsed());
    answer
}

/// Connection that has sent these bytes and has a tiny receive buffer.
fn connect(address: SocketAddr, sent: &[u8]) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    // The connection may be evicted by now.
    let _reset = socket.write_all(sent);
    socket
}

fn refused(operator: &Operator, code: &str) -> f64 {
    let sample = format!("sidestream_admin_refusals_total{{code=\"{code}\",port=\"admin\"}} ");
    let metrics = operator.get("/metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap_or_else(|| panic!("{sample} in {metrics}"))
        .parse()
        .unwrap()
}

/// Waits until the server has closed the connection.
fn until_closed(mut socket: &TcpStream) {
    match socket.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("not closed: {other:?}"),
    }
}

#[test]
fn probes_are_answered_while_hundreds_of_connections_are_silent() {
    let operator = Operator::start();
    assert_eq!(refused(&operator, "evicted"), 0.0);
    let silent: Vec<_> = (0..512).map(|_| connect(operator.address(), b"")).collect();
    assert_eq!(probe(&operator).status(), 200);
    assert!(
        refused(&operator, "evicted") > 400.0,
        "the oldest are closed for the newest"
    );
    silent[..400].iter().for_each(until_closed);
    assert_eq!(probe(&operator).status(), 200);
    until_closed(&silent[511]);
    assert!(
        refused(&operator, "no_first_byte") > 0.0,
        "the last one at its deadline"
    );
}

#[test]
fn probes_are_answered_while_hundreds_of_requests_are_unfinished() {
    let operator = Operator::start();
    let unfinished: Vec<_> = (0..512)
        .map(|_| connect(operator.address(), b"GET /health/live HT"))
        .collect();
    assert_eq!(probe(&operator).status(), 200);
    assert_eq!(operator.get("/metrics").status(), 200);
    unfinished[..300].iter().for_each(until_closed);
}

#[test]
fn probes_are_answered_in_a_storm_of_connections_from_their_own_address() {
    let operator = Operator::start();
    let address = operator.address();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = Vec::new();
            while !over.load(Ordering::Relaxed) {
                // Each wave evicts the previous one.
                held = (0..512)
                    .map(|_| connect(address, b"GET /health/live HT"))
                    .collect();
            }
            drop(held);
        });
        let answered = (0..20).filter(|_| {
            let asked = Instant::now();
            // It may be evicted: its address has more connections than any other.
            operator
                .try_get("/health/live")
                .is_some_and(|answer| answer.status() == 200)
                && asked.elapsed() < PROBE_MAX
        });
        let answered = answered.count();
        over.store(true, Ordering::Relaxed);
        // The kubelet, from another address, needs one of three. Without slots, no probe was
        // answered.
        assert!(answered >= 10, "{answered} of 20");
    });
}

#[test]
fn an_address_with_too_many_open_requests_gets_503_except_for_probes() {
    let operator = Operator::start();
    // A route is a label: this one makes the metrics larger than any socket buffer.
    let (_client, _registration) = operator.connect(Protocol::H2, "1", &"/r".repeat(500_000));
    let unread: Vec<_> = (0..8)
        .map(|_| {
            connect(
                operator.address(),
                b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            )
        })
        .collect();
    let begun = Instant::now();
    let rejected = loop {
        let answer = exchange(
            operator.address(),
            b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        );
        if answer.status() == 503 {
            break answer;
        }
        assert!(begun.elapsed() < DEADLINE, "never rejected");
    };
    assert_eq!(
        (
            &rejected.json()["error"]["code"],
            rejected.header("retry-after")
        ),
        (&json!("busy"), Some("1"))
    );
    assert_eq!(probe(&operator).status(), 200);
    drop(unread);
    let begun = Instant::now();
    while operator.get("/config").status() != 200 {
        assert!(begun.elapsed() < DEADLINE, "still rejected");
    }
    assert!(refused(&operator, "busy") > 0.0);
}

#[test]
fn the_control_socket_answers_while_idle_connections_use_every_slot() {
    let operator = Operator::start();
    let silent: Vec<_> = (0..40)
        .map(|_| UnixStream::connect(&operator.control).unwrap())
        .collect();
    let asked = Instant::now();
    assert_eq!(operator.command("status\n")["ok"], true);
    let unfinished: Vec<_> = (0..40)
        .map(|_| {
            let mut socket = UnixStream::connect(&operator.control).unwrap();
            let _closed = socket.write_all(b"dra");
            socket
        })
        .collect();
    assert_eq!(operator.command("status\n")["ok"], true);
    assert!(asked.elapsed() < PROBE_MAX * 2, "{:?}", asked.elapsed());
    drop((silent, unfinished));
}
