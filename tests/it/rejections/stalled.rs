//! Idle and slow handshakes and requests: closed at their documented deadlines, all at the same
//! time.

use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::fixture::{Fixture, socket};
use testkit::certs::Authority;
use testkit::transport::Connector;
use testkit::wait::within;

/// Margin for a busy machine.
const GRACE: Duration = Duration::from_secs(4);

/// Sends the first bytes at once, then one byte per second from `rest`; returns when the peer has
/// closed.
async fn drip<T: AsyncRead + AsyncWrite>(
    socket: T,
    first: &[u8],
    rest: &[u8],
) -> (Duration, String) {
    let began = Instant::now();
    let (mut from, mut to) = tokio::io::split(socket);
    to.write_all(first).await.unwrap();
    to.flush().await.unwrap();
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..read]);
        }
    };
    let writing = async {
        for byte in rest.iter().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if rest.is_empty() || to.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        // The reader detects the close.
        std::future::pending::<()>().await;
    };
    within(
        Duration::from_secs(30),
        "a stalled connection is closed",
        async {
            tokio::select! {
                () = reading => {}
                () = writing => {}
            }
        },
    )
    .await;
    (
        began.elapsed(),
        String::from_utf8_lossy(&answer).into_owned(),
    )
}

#[tokio::test]
async fn a_client_that_stalls_is_closed_at_its_deadline() {
    let authority = Authority::new();
    let server = authority.server("server");
    let listen = format!(
        "  - address: 127.0.0.1:0\n  - address: 127.0.0.1:0\n    tls: {{ certificate: {:?}, key: {:?} }}",
        server.certificate, server.key
    );
    let fixture = Fixture::listening(&listen, "").await;
    let (clear, tls) = (
        fixture.sidestream.url("/"),
        fixture.sidestream.url_tls("/").replace("https", "http"),
    );
    let hello = client_hello(&authority);
    let head = b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Listener, first bytes, bytes that follow one by one, deadline in seconds, metric.
    type Case<'a> = (&'a str, &'a [u8], &'a [u8], u64, &'a str);
    let cases: [Case<'_>; 10] = [
        (&clear, b"", b"", 5, "no_request"),
        (&clear, b"P", b"", 15, "request_timeout"),
        (&clear, b"G", b"", 10, "request_timeout"),
        (
            &clear,
            b"GET /x HTTP/1.1\r\nX: ",
            b"x",
            10,
            "request_timeout",
        ),
        (&clear, head, b"", 10, "request_timeout"),
        (&clear, &preface[..12], b"", 10, "request_timeout"),
        (&clear, &preface[..3], b"x", 10, "request_timeout"),
        (&tls, b"", b"", 5, "tls_handshake_timeout"),
        (
            &tls,
            &hello[..hello.len() / 2],
            b"",
            5,
            "tls_handshake_timeout",
        ),
        (&tls, b"\x16", b"\x03", 5, "tls_handshake"),
    ];
    let ends = futures_util::future::join_all(
        cases
            .iter()
            .map(|(url, first, rest, ..)| async { drip(socket(url).await, first, rest).await }),
    );
    // After the handshake, the deadlines of the negotiated protocol begin.
    let behind: [(&str, &[u8], &[u8]); 4] = [
        ("http/1.1", b"", b""),
        ("http/1.1", b"GET /x HTTP/1.1\r\nX: ", b"x"),
        ("h2", b"", b""),
        ("h2", &preface[..12], b""),
    ];
    let url = fixture.sidestream.url_tls("/").parse().unwrap();
    let ends_behind =
        futures_util::future::join_all(behind.iter().map(|(protocol, first, rest)| async {
            let connector = Connector::default().tls(authority.trusting(&[*protocol]));
            drip(connector.connect(&url).await.unwrap(), first, rest).await
        }));
    let (ends, ends_behind) = tokio::join!(ends, ends_behind);
    for ((protocol, first, rest), (lasted, answer)) in behind.iter().zip(ends_behind) {
        let case = format!(
            "{protocol} {:?} {:?}",
            String::from_utf8_lossy(first),
            String::from_utf8_lossy(rest)
        );
        assert!(
            lasted < Duration::from_secs(10) + GRACE,
            "{case}: closed after {lasted:?}"
        );
        assert!(!answer.starts_with("HTTP/1.1 200"), "{case}: {answer}");
    }
    for ((_, first, rest, seconds, _), (lasted, answer)) in cases.iter().zip(ends) {
        let case = format!(
            "{:?} {:?}",
            String::from_utf8_lossy(first),
            String::from_utf8_lossy(rest)
        );
        let most = Duration::from_secs(*seconds) + GRACE;
        assert!(lasted < most, "{case}: closed after {lasted:?}");
        assert!(
            answer.is_empty() || answer.get(9..12) == Some("408") || !answer.starts_with("HTTP"),
            "{case}: {answer}"
        );
    }
    for code in ["no_request", "request_timeout", "tls_handshake_timeout"] {
        fixture.until_refused(code, 0.0).await;
    }
    fixture.finish().await;
}

/// First flight of a TLS client.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(authority.trusting(&["h2"]), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}
