//! Bytes between the sidecar and an application: every request has one form, whatever
//! form the client chose, and odd responses of an application reach no other request.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::h2::H2Client;
use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::wait::{DEADLINE, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::heads::raw;

/// Application that keeps the bytes of its connections, and sends the same response to each.
struct RawApplication {
    sidestream: Sidestream,
    received: Arc<Mutex<Vec<String>>>,
    _nats: Nats,
}

impl RawApplication {
    async fn start(response: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&received);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    let read =
                        async { while matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {} };
                    // The whole of a short request.
                    drop(tokio::time::timeout(Duration::from_millis(100), read).await);
                    if bytes.is_empty() {
                        return; // the check of the address
                    }
                    kept.lock().unwrap().push(String::from_utf8(bytes).unwrap());
                    drop(socket.write_all(response.as_bytes()).await);
                });
            }
        });
        let nats = Nats::start().await;
        let text = format!(
            "application: {{ address: \"http://127.0.0.1:{port}\" }}
routes: [{{ path: /events, sources: [{{ subjects: [events] }}] }}]
"
        );
        Self {
            sidestream: Sidestream::start(config(&nats, &text)).await,
            received,
            _nats: nats,
        }
    }

    /// Sends a request as it is, and returns the bytes that the application received for it.
    async fn received(&self, request: &str) -> String {
        let answer = raw(&self.sidestream, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{request:?}: {answer}");
        eventually(DEADLINE, "the application has the request", async || {
            self.received.lock().unwrap().pop()
        })
        .await
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn requests_reach_the_application_in_one_unambiguous_form() {
    let application = RawApplication::start(OK).await;
    for (request, body) in [
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ChunKed\r\n\r\n4;ext=\"\r\n\r\nabcd\r\n0;last\r\n\r\n",
            None,
        ),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n004;a=b;c\r\nabcd\r\n000\r\nX-End: 1\r\n\r\n",
            Some("4\r\nabcd\r\n0\r\n\r\n"),
        ),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \tchunked \t\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
            Some("4\r\nabcd\r\n0\r\n\r\n"),
        ),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nConnection: Content-Length, close\r\nContent-Length: 4\r\n\r\nabcd",
            Some("abcd"),
        ),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nConnection: Host, close\r\nContent-Length: 4\r\n\r\nabcd",
            Some("abcd"),
        ),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nConnection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
            Some("4\r\nabcd\r\n0\r\n\r\n"),
        ),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
            Some("abcd"),
        ),
        (
            "POST http://a/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nabcd",
            Some("abcd"),
        ),
    ] {
        let Some(body) = body else {
            // A quoted extension may not have a line end.
            let answer = raw(&application.sidestream, request.as_bytes()).await;
            assert!(answer.contains("malformed"), "{answer}");
            application.received.lock().unwrap().clear();
            continue;
        };
        let received = application.received(request).await;
        let (head, sent) = received.split_once("\r\n\r\n").unwrap();
        assert_eq!(sent, body, "{request:?}: {received:?}");
        let mut lines = head.split("\r\n");
        assert_eq!(lines.next(), Some("POST /x HTTP/1.1"), "{received}");
        let lengths = lines.clone().filter(|line| {
            line.starts_with("content-length: 4") || *line == "transfer-encoding: chunked"
        });
        assert_eq!(lengths.count(), 1, "{received}");
        let hosts = lines.clone().filter(|line| line.starts_with("host: "));
        assert_eq!(hosts.collect::<Vec<_>>(), ["host: a"], "{received}");
        assert!(!head.contains("connection:"), "{received}");
    }
}

#[tokio::test]
async fn fields_that_look_like_those_of_proxies_are_not_trusted() {
    let application = RawApplication::start(OK).await;
    let request = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close, X-Forwarded-For, X-Request-Id, Via\r\nX-Forwarded-For: 192.0.2.1\r\nX_Forwarded_For: 192.0.2.1\r\nX_Real_IP: 192.0.2.1\r\nSidestream_Client: alice\r\nX-Forwarded-Host: b\r\nX-Request-Id: 1\r\n\r\n";
    let received = application.received(request).await;
    assert!(!received.contains("192.0.2.1"), "{received}");
    assert!(!received.contains("alice"), "{received}");
    assert!(received.contains("x-forwarded-for: 127.0.0.1\r\n"));
    assert!(received.contains("x-forwarded-host: a\r\n"), "{received}");
}

#[tokio::test]
async fn responses_with_two_lengths_have_one_for_the_client() {
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let application = RawApplication::start(response).await;
    let url = application.sidestream.url("/x");
    let answer = http1::get(&url).await.unwrap();
    assert_eq!(answer.body, "hello");
    assert_eq!(answer.header("content-length"), None);
    let mut client = H2Client::connect(application.sidestream.url("/")).await;
    let mut answer = client.request("GET", "/x", &[]).await;
    assert_eq!(answer.body().await, "hello");
}

#[tokio::test]
async fn switch_of_protocols_that_nothing_asked_for_is_a_failure() {
    let response = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbytes";
    let application = RawApplication::start(response).await;
    let url = application.sidestream.url("/x");
    let answer = http1::get(&url).await.unwrap();
    assert_eq!(answer.status, 502, "{answer:?}");
    let mut client = H2Client::connect(application.sidestream.url("/")).await;
    let mut answer = client.request("GET", "/x", &[]).await;
    assert_eq!(answer.status(), 502);
    assert!(answer.body().await.contains("application_invalid"));
}

#[tokio::test]
async fn bytes_after_a_response_reach_no_other_request() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret";
    let application = RawApplication::start(response).await;
    for _ in 0..20 {
        let url = application.sidestream.url("/x");
        let answer = http1::get(&url).await.unwrap();
        assert_eq!(answer.body, "ok");
    }
}
