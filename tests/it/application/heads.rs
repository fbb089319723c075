//! Requests that servers read differently never reach the application.

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
