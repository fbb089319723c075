//! Malformed requests: not HTTP, too large, with a body, or with trailing bytes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{Fixture, exchange};
use super::table::assert_explained;
use testkit::h2::H2Client;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, within};

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or_default()
}

#[tokio::test]
async fn bytes_that_are_not_http_are_rejected_or_closed_and_counted() {
    let fixture = Fixture::start("").await;
    let before = fixture.refused("malformed").await;
    let cases: [(&[u8], &[&str]); 15] = [
        (b"\x00\x01\x02\x03\r\n\r\n", &["400", ""]),
        (b"GET\r\n\r\n", &["400"]),
        // HTTP/0.9: its client would read any bytes as the document.
        (b"GET /witness\r\n\r\n", &["400"]),
        (b"GET /witness HTTP/9.9\r\nHost: x\r\n\r\n", &["400"]),
        (b"GET /wit ness HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        (b"GET /witness HTTP/1.1\r\nHost x\r\n\r\n", &["400"]),
        (b"GET /witness HTTP/1.1\r\nBad\x00Name: x\r\n\r\n", &["400"]),
        (b"GET /witness HTTP/1.1\r\nX: a\x00b\r\n\r\n", &["400"]),
        (b"GET /witness HTTP/1.1\r\n folded: x\r\n\r\n", &["400"]),
        (
            b"GET /witness HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            &["400"],
        ),
        (
            b"GET /witness HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            &["400"],
        ),
        (
            b"GET /witness HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
            &["400"],
        ),
        (b"GE(T /witness HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        (
            b"POST /witness HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &["400", "405"],
        ),
        (b"\r\n\r\n\r\n\xff\xff\xff\xff\r\n\r\n", &["400", ""]),
    ];
    for (bytes, statuses) in cases {
        let answer = fixture.raw(bytes).await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(statuses.contains(&status(&answer)), "{shown:?}: {answer:?}");
        assert!(
            !answer.contains("text/event-stream"),
            "{shown:?}: {answer:?}"
        );
    }
    fixture.until_refused("malformed", before + 10.0).await;
    fixture.finish().await;
}

#[tokio::test]
async fn too_large_requests_are_rejected_without_buffering() {
    let fixture = Fixture::start("").await;
    let resident = fixture.sidestream.resident_bytes();
    let long = "x".repeat(17 * 1024);
    let huge = "x".repeat(10 << 20);
    let many: String = (0..1000)
        .map(|number| format!("X-{number}: {number}\r\n"))
        .collect();
    for (request, statuses) in [
        (
            format!("GET /witness HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"),
            ["431", "431"],
        ),
        (
            format!("GET /witness HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
            ["431", "431"],
        ),
        (
            format!("GET /events?subject={huge} HTTP/1.1\r\nHost: x\r\n\r\n"),
            ["414", "431"],
        ),
        (
            format!("GET /{huge} HTTP/1.1\r\nHost: x\r\n\r\n"),
            ["414", "431"],
        ),
        (huge.clone(), ["400", "431"]),
    ] {
        let answer = fixture.raw(request.as_bytes()).await;
        // The reset that unread bytes cause may discard the response; a rejection is the only valid
        // one.
        let shown = &request[..30];
        assert!(
            answer.is_empty() || statuses.contains(&status(&answer)),
            "{shown:?}: {answer:?}"
        );
    }
    let answer = fixture
        .raw(format!("GET /witness HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n").as_bytes())
        .await;
    assert_eq!(
        status(&answer),
        "431",
        "a head that is a little too large hears why: {answer}"
    );
    assert_explained(
        answer.split_once("\r\n\r\n").unwrap().1,
        "head_too_large",
        &answer,
    );
    assert!(
        answer.contains("content-type: application/json\r\n"),
        "{answer}"
    );
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut refused = connection.request("GET", "/witness", &[("x", &long)]).await;
    assert_eq!(
        (refused.status(), refused.header("content-type")),
        (431, Some("application/json"))
    );
    assert_explained(&refused.body().await, "head_too_large", "over HTTP/2");
    assert_eq!(
        connection.get("/nowhere").await.status(),
        404,
        "the connection goes on"
    );
    drop(connection);
    let malformed = fixture
        .raw(b"GET /witness HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n")
        .await;
    assert_explained(
        malformed.split_once("\r\n\r\n").unwrap().1,
        "malformed",
        &malformed,
    );
    assert!(
        fixture.sidestream.resident_bytes() < resident + (8 << 20),
        "nothing of 30 MB is kept"
    );
    // The maximum size.
    let fits = "x".repeat(12 * 1024);
    let client = SseClient::get(fixture.sidestream.url("/orders/1"))
        .header("X", &fits)
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    drop(client);
    fixture.finish().await;
}

#[tokio::test]
async fn a_get_with_a_body_is_rejected_and_its_connection_ends() {
    let fixture = Fixture::start("").await;
    let before = fixture.refused("unexpected_body").await;
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Content-Length: 5\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ] {
        let answer = fixture
            .raw(format!("GET /orders/1 HTTP/1.1\r\nHost: x\r\n{body}").as_bytes())
            .await;
        assert_eq!(status(&answer), "400", "{body:?}: {answer}");
        assert!(answer.contains("unexpected_body"), "{body:?}: {answer}");
    }
    assert_eq!(fixture.refused("unexpected_body").await, before + 4.0);
    // An empty body is not a body.
    for headers in [
        &[("Content-Length", "0")][..],
        &[("Expect", "100-continue")],
    ] {
        let mut builder = SseClient::get(fixture.sidestream.url("/orders/1"));
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let client = builder.connect().await;
        assert_eq!(client.status(), 200, "{headers:?}");
    }
    fixture.finish().await;
}

#[tokio::test]
async fn proxy_tunnel_and_absolute_requests_get_a_response() {
    let fixture = Fixture::start("").await;
    for (request, expected) in [
        (
            "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n",
            "404 405",
        ),
        ("TRACE /orders/1 HTTP/1.1\r\nHost: x\r\n", "405"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n", "204 404"),
        (
            "GET http://elsewhere.example/nowhere HTTP/1.1\r\nHost: x\r\n",
            "404",
        ),
        (
            "HEAD http://elsewhere.example/orders/1 HTTP/1.1\r\nHost: x\r\n",
            "200",
        ),
        ("GET /orders/a.b HTTP/1.1\r\n", "400"),
        ("GET /orders/a.b#fragment HTTP/1.1\r\nHost: x\r\n", "400"),
        (
            "GET /orders/1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nAccept: none/none\r\n",
            "406",
        ),
        ("GET //orders/1 HTTP/1.1\r\nHost: x\r\n", "404"),
        ("GET /x/../orders/1 HTTP/1.1\r\nHost: x\r\n", "404"),
    ] {
        let answer = fixture
            .raw(format!("{request}Connection: close\r\n\r\n").as_bytes())
            .await;
        assert!(
            expected.contains(status(&answer)) && !answer.is_empty(),
            "{request:?}: {answer:?}"
        );
    }
    let absolute = format!(
        "GET {} HTTP/1.1\r\nHost: other\r\n\r\n",
        fixture.sidestream.url("/orders/1")
    );
    let mut socket = fixture.socket().await;
    socket.write_all(absolute.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    within(
        DEADLINE,
        "an absolute target is served",
        socket.read_exact(&mut head),
    )
    .await
    .unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    drop(socket);
    fixture.finish().await;
}

#[tokio::test]
async fn bytes_after_the_request_change_nothing_and_too_many_end_it() {
    let fixture = Fixture::start("").await;
    let publisher = fixture.nats.client().await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders/1"))
        .connect()
        .await;
    client
        .response()
        .transport()
        .write_all(b"GET /orders/2 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    client.positioned().await;
    publisher.publish("orders.1.a", "one".into()).await.unwrap();
    publisher.publish("orders.2.a", "two".into()).await.unwrap();
    publisher
        .publish("orders.1.a", "three".into())
        .await
        .unwrap();
    assert_eq!(
        [client.next().await.data, client.next().await.data],
        ["one", "three"]
    );
    drop(client);

    // Pipelined in one packet: the second gets no response.
    let twice =
        "GET /orders/a.b HTTP/1.1\r\nHost: x\r\n\r\nGET /witness HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut socket = fixture.socket().await;
    socket.write_all(twice.as_bytes()).await.unwrap();
    let mut start = vec![0; 15];
    within(
        DEADLINE,
        "the first is answered",
        socket.read_exact(&mut start),
    )
    .await
    .unwrap();
    assert_eq!(start, b"HTTP/1.1 400 Ba");
    drop(socket);

    let flood = format!(
        "GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n{}",
        "x".repeat(1 << 20)
    );
    let answer = exchange(fixture.socket().await, flood.as_bytes()).await;
    assert!(
        !answer.contains("400"),
        "its end is the connection's: {answer}"
    );
    fixture.finish().await;
}

#[tokio::test]
async fn http_1_0_is_served_until_the_close_with_and_without_a_host() {
    let fixture = Fixture::start("").await;
    let publisher = fixture.nats.client().await;
    let mut socket = fixture.socket().await;
    socket
        .write_all(b"GET /orders/1 HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = |text: &'static str| text;
    within(DEADLINE, "the opening comes", async {
        while !String::from_utf8_lossy(&answer).contains("id: ") {
            socket.read_buf(&mut answer).await.unwrap();
        }
    })
    .await;
    publisher.publish("orders.1.a", "old".into()).await.unwrap();
    within(DEADLINE, "the event comes", async {
        while !String::from_utf8_lossy(&answer).contains("data: old") {
            socket.read_buf(&mut answer).await.unwrap();
        }
    })
    .await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.starts_with(read("HTTP/1.0 200 OK")), "{text}");
    assert!(!text.to_ascii_lowercase().contains("chunked"), "{text}");
    drop(socket);
    fixture.finish().await;
}
