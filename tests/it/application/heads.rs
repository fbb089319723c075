//! Requests that servers read differently never reach the application.

use serde_json::Value;
use testkit::sidestream::Sidestream;
use testkit::wait::{DEADLINE, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Fixture;

/// Sends bytes and returns all that is answered until the connection ends.
pub(super) async fn raw(sidestream: &Sidestream, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(sidestream.address()).await.unwrap();
    let answered = async {
        socket.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is not a failure of the test.
        drop(socket.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    };
    within(2 * DEADLINE, "the connection ends", answered).await
}

#[tokio::test]
async fn ambiguous_requests_are_rejected_before_the_application() {
    let fixture = Fixture::start().await;
    for (request, status, code) in [
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "two_lengths",
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            400,
            "two_lengths",
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
            400,
            "malformed",
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            400,
            "malformed",
        ),
        (
            "GET /echo HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
            400,
            "malformed",
        ),
        (
            "GET /echo HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            400,
            "malformed",
        ),
        (
            "GET /echo HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            400,
            "bare_line_feed",
        ),
        (
            "GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            400,
            "bad_host",
        ),
        ("GET /echo HTTP/1.1\r\n\r\n", 400, "bad_host"),
        (
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            501,
            "method_not_passed",
        ),
        (
            "TRACE /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            501,
            "method_not_passed",
        ),
    ] {
        let answer = fixture.raw(request.as_bytes()).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{request:?}: {answer}");
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{request:?}: {answer}"
        );
    }
    assert_eq!(fixture.application.requests("/echo"), 0);
}

#[tokio::test]
async fn odd_codings_lengths_and_fields_are_rejected_before_the_application() {
    let fixture = Fixture::start().await;
    for (fields, code) in [
        ("Transfer-Encoding: xchunked\r\n", "malformed"),
        ("Transfer-Encoding: chunked, chunked\r\n", "malformed"),
        ("Transfer-Encoding: gzip, chunked\r\n", "malformed"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "malformed",
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            "malformed",
        ),
        ("Transfer-Encoding:\r\n chunked\r\n", "malformed"),
        ("Transfer-Encoding : chunked\r\n", "malformed"),
        ("Transfer-Encoding\t: chunked\r\n", "malformed"),
        (" Transfer-Encoding: chunked\r\n", "malformed"),
        ("Transfer_Encoding\0: chunked\r\n", "malformed"),
        ("Content-Length : 4\r\n", "malformed"),
        ("Content-Length: +4\r\n", "malformed"),
        ("Content-Length: -4\r\n", "malformed"),
        ("Content-Length: 4,4\r\n", "malformed"),
        ("Content-Length: 0x4\r\n", "malformed"),
        ("Content-Length:\r\n", "malformed"),
        ("Content-Length: 18446744073709551616\r\n", "malformed"),
        ("X: a\0b\r\n", "malformed"),
        ("X: a\u{1}b\r\n", "malformed"),
        ("X: a\u{b}b\r\n", "malformed"),
        ("X: a\u{7f}b\r\n", "malformed"),
        ("X: a\r\r\n", "malformed"),
        ("no colon\r\n", "malformed"),
        (": no name\r\n", "malformed"),
        ("X(y): a\r\n", "malformed"),
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\nabcd");
        rejected(&fixture, &request, code).await;
    }
    for (request, code) in [
        (
            "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "malformed",
        ),
        ("GET  /echo HTTP/1.1\r\nHost: a\r\n\r\n", "malformed"),
        ("GET /echo HTTP/1.1 \r\nHost: a\r\n\r\n", "malformed"),
        ("GET /e\0cho HTTP/1.1\r\nHost: a\r\n\r\n", "malformed"),
        ("GET http://b/echo HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host"),
        (
            "GET http://user@a/echo HTTP/1.1\r\nHost: a\r\n\r\n",
            "bad_host",
        ),
        ("GET /echo HTTP/1.1\r\nHost: a/b\r\n\r\n", "bad_host"),
    ] {
        rejected(&fixture, request, code).await;
    }
    assert_eq!(fixture.application.requests("/echo"), 0);
}

/// Checks that a request is rejected with 400 and this code.
async fn rejected(fixture: &Fixture, request: &str, code: &str) {
    let answer = fixture.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
    assert!(
        answer.contains(&format!("\"code\":\"{code}\"")),
        "{request:?}: {answer}"
    );
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn malformed_chunks_end_the_request_and_the_connection() {
    let fixture = Fixture::start().await;
    let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(64 * 1024));
    for body in [
        &*long,
        "FFFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "1\nx\r\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "\r\nx\r\n0\r\n\r\n",
    ] {
        let next = "GET /second HTTP/1.1\r\nHost: a\r\n\r\n";
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        rejected(&fixture, &format!("{head}{body}{next}"), "malformed").await;
    }
    assert_eq!(fixture.application.requests("/second"), 0);
    let complete = |report: &Value| report["url"] == "/echo" && report["complete"] == true;
    assert!(!fixture.application.reports().iter().any(complete));
}

/// Answer to an HTTP/2 request: the first byte of the response's head, or the error code of its
/// reset or of the connection's end.
#[derive(Debug, PartialEq, Eq)]
enum H2Answer {
    Head(u8),
    Error(u8),
}

const PROTOCOL_ERROR: H2Answer = H2Answer::Error(1);
/// `:status` 400 and 404 in the static table (RFC 7541, appendix A).
const STATUS_400: H2Answer = H2Answer::Head(0x8c);
const STATUS_404: H2Answer = H2Answer::Head(0x8d);

/// Sends a request of these fields on a new HTTP/2 connection, as they are.
async fn h2_raw(sidestream: &Sidestream, fields: &[(&str, &str)]) -> H2Answer {
    let mut block = Vec::new();
    for (name, value) in fields {
        // Literal without indexing, without Huffman coding (RFC 7541, 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let size = u8::try_from(block.len()).unwrap();
    bytes.extend([0, 0, size, 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    let mut socket = TcpStream::connect(sidestream.address()).await.unwrap();
    let answered = async {
        socket.write_all(&bytes).await.unwrap();
        loop {
            let mut head = [0; 9];
            socket.read_exact(&mut head).await.unwrap();
            let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut frame = vec![0; size.try_into().unwrap()];
            socket.read_exact(&mut frame).await.unwrap();
            match head[3] {
                1 => {
                    // A change of the table's size may be first.
                    let mut bytes = frame.into_iter();
                    break H2Answer::Head(bytes.find(|byte| byte & 0xe0 != 0x20).unwrap());
                }
                3 => break H2Answer::Error(frame[3]),
                7 if frame[7] != 0 => break H2Answer::Error(frame[7]),
                _ => {}
            }
        }
    };
    within(2 * DEADLINE, "the request is answered", answered).await
}

#[tokio::test]
async fn ambiguous_http2_requests_are_rejected_before_the_application() {
    let fixture = Fixture::start().await;
    let request = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/echo"),
    ];
    for (added, expected) in [
        (("connection", "close"), PROTOCOL_ERROR),
        (("connection", "x-forwarded-for"), PROTOCOL_ERROR),
        (("keep-alive", "timeout=5"), PROTOCOL_ERROR),
        (("proxy-connection", "keep-alive"), PROTOCOL_ERROR),
        (("transfer-encoding", "chunked"), PROTOCOL_ERROR),
        (("upgrade", "h2c"), PROTOCOL_ERROR),
        (("te", "gzip"), PROTOCOL_ERROR),
        (("content-length", "4"), PROTOCOL_ERROR),
        (("X-Upper", "a"), PROTOCOL_ERROR),
        (("x y", "a"), PROTOCOL_ERROR),
        (("x", "a\r\nhost: b"), PROTOCOL_ERROR),
        (("x", "a\nb"), PROTOCOL_ERROR),
        (("x", "a\0b"), PROTOCOL_ERROR),
        ((":path", "/echo"), PROTOCOL_ERROR),
        ((":unknown", "a"), PROTOCOL_ERROR),
        (("host", "b"), STATUS_400),
    ] {
        let fields = [&request[..], &[added]].concat();
        let answer = h2_raw(&fixture.sidestream, &fields).await;
        assert_eq!(answer, expected, "{added:?}");
    }
    for (path, expected) in [
        ("echo", PROTOCOL_ERROR),
        ("*", STATUS_404),
        ("", PROTOCOL_ERROR),
        ("/echo HTTP/1.1\r\nx: y", PROTOCOL_ERROR),
    ] {
        let mut fields = request;
        fields[3].1 = path;
        let answer = h2_raw(&fixture.sidestream, &fields).await;
        assert_eq!(answer, expected, "{path:?}");
    }
    let reports = fixture.application.reports();
    assert!(
        !reports.iter().any(|report| report["kind"] == "request"),
        "{reports:?}"
    );
}

#[tokio::test]
async fn second_request_after_a_body_is_checked_too() {
    let fixture = Fixture::start().await;
    let request = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\na\nb\nGET /second HTTP/1.1\r\nHost: a\nX: b\r\n\r\n";
    let answer = fixture.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("bare_line_feed"), "{answer}");
    assert_eq!(fixture.application.requests("/second"), 0);
    // The end of a chunked body is unknown to the check: the connection ends.
    let request = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\nGET /second HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = fixture.raw(request.as_bytes()).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(fixture.application.requests("/second"), 0);
}

#[tokio::test]
async fn absolute_targets_and_upgrades_are_normalised() {
    let fixture = Fixture::start().await;
    for request in [
        "GET http://shop.example/echo/x?a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
        "GET /echo/x?a HTTP/1.1\r\nHost: shop.example\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    ] {
        let answer = fixture.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\"url\":\"/echo/x?a\""), "{answer}");
        assert!(answer.contains("\"host\",\"shop.example\""), "{answer}");
        assert!(!answer.to_lowercase().contains("h2c"), "{answer}");
    }
}

#[tokio::test]
async fn routes_stay_routes() {
    let fixture = Fixture::start().await;
    let answer = fixture
        .raw(b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.contains("method_not_allowed"), "{answer}");
    assert_eq!(fixture.application.requests("/events"), 0);
}
