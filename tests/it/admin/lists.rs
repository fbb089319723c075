//! `/connections` with many event streams: written as it is read, at most two responses at a time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::json;
use sidestream::presence::Protocol;

use super::{DEADLINE, Operator};

const LIST: &[u8] = b"GET /connections?limit=10000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

#[test]
fn unread_lists_are_not_buffered_and_a_third_is_rejected_until_one_ends() {
    let operator = Operator::start();
    let route = "/r".repeat(2_000);
    let clients: Vec<_> = (0..5_000)
        .map(|n| operator.connect(Protocol::H2, &n.to_string(), &route))
        .collect();
    let described = || {
        clients
            .iter()
            .map(|(client, _)| client.described.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    let mut unread: Vec<_> = (0..2)
        .map(|_| {
            let mut socket = TcpStream::connect(operator.address()).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.write_all(LIST).unwrap();
            // The headers have arrived: the list is being written.
            socket.read_exact(&mut [0; 16]).unwrap();
            socket
        })
        .collect();
    let third = operator.get("/connections");
    assert_eq!(third.status(), 503);
    assert_eq!(third.json()["error"]["code"], json!("too_many_lists"));
    assert_eq!(third.header("retry-after"), Some("1"));
    assert_eq!(operator.get("/health/live").status(), 200);
    let metrics = operator.get("/metrics").body;
    let sample = "sidestream_admin_refusals_total{code=\"too_many_lists\",port=\"admin\"} 1";
    assert!(metrics.lines().any(|line| line == sample), "{metrics}");
    // The lists have 40 MB; the sockets buffer a few megabytes.
    assert!(
        described() < 4_000,
        "{} of 10,000 entries were written and not read",
        described()
    );

    let mut rest = String::new();
    unread.remove(0).read_to_string(&mut rest).unwrap();
    assert!(
        rest.ends_with("],\"total\":5000}\n\r\n0\r\n\r\n"),
        "read to its end: {}",
        &rest[rest.len() - 100..]
    );
    let begun = Instant::now();
    while operator.get("/connections?limit=1").status() != 200 {
        assert!(
            begun.elapsed() < DEADLINE,
            "a list that has been read makes room"
        );
    }
    assert_eq!(
        operator.get("/connections?limit=10000").json()["connections"]
            .as_array()
            .unwrap()
            .len(),
        5_000
    );
}
