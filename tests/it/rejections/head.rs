//! Ambiguous request headers, and response headers against content sniffing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::Fixture;
use testkit::h2::H2Client;
use testkit::http1;
use testkit::wait::{DEADLINE, within};

#[tokio::test]
async fn a_request_has_one_host_and_its_lines_end_with_crlf() {
    let fixture = Fixture::start("").await;
    let before = (
        fixture.refused("bad_host").await,
        fixture.refused("bare_line_feed").await,
    );
    for (head, code) in [
        ("GET /orders/1 HTTP/1.1\r\n\r\n", "bad_host"),
        (
            "GET /orders/1 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "bad_host",
        ),
        (
            "GET /orders/1 HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n",
            "bad_host",
        ),
        ("GET /orders/1 HTTP/1.1\r\nHost: a@b\r\n\r\n", "bad_host"),
        ("OPTIONS /orders/1 HTTP/1.1\r\n\r\n", "bad_host"),
        ("GET /nowhere HTTP/1.1\r\n\r\n", "bad_host"),
        ("GET /orders/1 HTTP/1.1\nHost: a\n\n", "bare_line_feed"),
        (
            "GET /orders/1 HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            "bare_line_feed",
        ),
        ("GET /orders/1 HTTP/1.1\r\nHost: a\r\n\n", "bare_line_feed"),
        (
            "\nGET /orders/1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "bare_line_feed",
        ),
        ("POST /orders/1 HTTP/1.1\nHost: a\r\n\r\n", "bare_line_feed"),
    ] {
        let answer = fixture.raw(head.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{head:?}: {answer}"
        );
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{head:?}: {answer}"
        );
    }
    assert_eq!(fixture.refused("bad_host").await, before.0 + 6.0);
    assert_eq!(fixture.refused("bare_line_feed").await, before.1 + 5.0);
    fixture.finish().await;
}

#[tokio::test]
async fn a_bare_line_feed_rejects_only_its_own_request_and_content_is_not_parsed_as_headers() {
    let fixture = Fixture::start("").await;
    // Pipelined: the first is answered, the second is rejected, the third is not read.
    let pipelined = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\n\r\n\
                     GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = fixture.raw(pipelined.as_bytes()).await;
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["404", "400"], "{answer}");
    // Line by line, byte by byte.
    let mut socket = fixture.socket().await;
    for byte in b"GET /orders/1 HTTP/1.1\r\nHost: x\n\r\n" {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    within(
        DEADLINE,
        "the connection ends",
        socket.read_to_string(&mut answer),
    )
    .await
    .unwrap();
    assert!(answer.contains("bare_line_feed"), "{answer}");
    // A request with content ends its connection, so that the content is never parsed as headers.
    for request in ["POST /orders/1", "OPTIONS /orders/1", "POST /nowhere"] {
        let content =
            format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\na\n\nb\n\n");
        let answer = fixture.raw(content.as_bytes()).await;
        assert!(!answer.contains("bare_line_feed"), "{request}: {answer}");
        assert!(
            answer.to_ascii_lowercase().contains("connection: close"),
            "{request}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{request}: {answer}"
        );
    }
    fixture.finish().await;
}

#[tokio::test]
async fn every_response_forbids_content_sniffing() {
    let fixture = Fixture::start("").await;
    for (method, path) in [
        ("HEAD", "/orders/1"),
        ("OPTIONS", "/orders/1"),
        ("GET", "/nowhere"),
        ("POST", "/orders/1"),
    ] {
        let answer = http1::request(method, &fixture.sidestream.url(path), &[])
            .await
            .unwrap();
        assert_eq!(
            answer.header("x-content-type-options").as_deref(),
            Some("nosniff"),
            "{method} {path}"
        );
    }
    let mut socket = fixture.socket().await;
    socket
        .write_all(b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    within(DEADLINE, "the head of an event stream", async {
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            socket.read_buf(&mut head).await.unwrap();
        }
    })
    .await;
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200") && head.contains("x-content-type-options: nosniff\r\n"),
        "{head}"
    );
    drop(socket);
    let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
    for target in ["/orders/1", "/nowhere"] {
        assert_eq!(
            h2.get(target).await.header("x-content-type-options"),
            Some("nosniff"),
            "{target}"
        );
    }
    drop(h2);
    fixture.finish().await;
}
