//! The clients of the test kit, against the examples of the HTML standard and hand-written
//! responses.

use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, server};
use hyper::Response;
use testkit::certs::Authority;
use testkit::h2::H2Client;
use testkit::h2_tap::DATA;
use testkit::sse::{End, Event, SseClient};
use testkit::sse_parser::Parser;
use testkit::wait::{DEADLINE, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn parse(bytes: &[u8]) -> (Vec<Event>, Parser) {
    let mut parser = Parser::default();
    let events = parser.feed(bytes);
    (events, parser)
}

fn event(name: &str, data: &str, id: &str) -> Event {
    Event {
        name: name.into(),
        data: data.into(),
        id: id.into(),
    }
}

// === the parser: HTML standard, section 9.2.6 ===

#[test]
fn the_examples_of_the_standard_are_parsed_as_documented() {
    let (events, _) = parse(b"data: YHOO\ndata: +2\ndata: 10\n\n");
    assert_eq!(events, [event("message", "YHOO\n+2\n10", "")]);

    let (events, parser) =
        parse(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n");
    assert_eq!(
        events,
        [
            event("message", "first event", "1"),
            event("message", "second event", ""),
            event("message", " third event", "")
        ]
    );
    assert_eq!(parser.comments(), [" test stream"]);

    let (events, parser) = parse(b"data\n\ndata\ndata\n\ndata:");
    assert_eq!(
        events,
        [event("message", "", ""), event("message", "\n", "")]
    );
    assert!(
        parser.mid_block(),
        "the last block has no end and is never dispatched"
    );

    let (events, _) = parse(b"data:test\n\ndata: test\n\n");
    assert_eq!(
        events,
        [event("message", "test", ""), event("message", "test", "")]
    );
}

#[test]
fn lf_crlf_and_cr_end_lines_wherever_the_bytes_are_split() {
    let text = b"event: a\r\ndata: 1\rdata: 2\n\r\n: c\rid: 7\r\rdata: x\r\n\r\n";
    let whole = parse(text).0;
    assert_eq!(whole, [event("a", "1\n2", ""), event("message", "x", "7")]);
    for cut in 0..text.len() {
        let mut parser = Parser::default();
        let mut events = parser.feed(&text[..cut]);
        events.extend(parser.feed(&text[cut..]));
        assert_eq!(events, whole, "cut at {cut}");
    }
}

#[test]
fn a_byte_order_mark_is_dropped_once_and_only_at_the_beginning() {
    assert_eq!(
        parse(b"\xEF\xBB\xBFdata: 1\n\n").0,
        [event("message", "1", "")]
    );
    assert_eq!(parse(b"\xEF\xBB\xBF\xEF\xBB\xBFdata: 1\n\n").0, []);
    assert_eq!(parse(b"\n\xEF\xBB\xBFdata: 1\n\n").0, []);
}

#[test]
fn an_id_with_nul_is_ignored_and_an_empty_one_resets() {
    let (events, parser) = parse(b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\nid\ndata: c\n\n");
    assert_eq!(
        events,
        [
            event("message", "a", "1"),
            event("message", "b", "1"),
            event("message", "c", "")
        ]
    );
    assert_eq!(parser.last_event_id(), "");
}

#[test]
fn an_id_without_data_advances_the_position_and_dispatches_nothing() {
    let (events, parser) = parse(b"id: 1\n\nevent: lost\n\ndata: a\n\nid: 2");
    assert_eq!(events, [event("message", "a", "1")]);
    assert_eq!(
        parser.last_event_id(),
        "1",
        "an unfinished block moves nothing"
    );
    assert_eq!(parser.positions(), 1);
}

#[test]
fn a_retry_counts_only_if_it_is_digits() {
    assert_eq!(
        parse(b"retry: 3000\nretry: 5s\nretry: -1\nretry\nretry:  7\n")
            .1
            .retry(),
        Some(3000)
    );
    assert_eq!(parse(b"retry: 1\nretry: 2\n").1.retry(), Some(2));
}

#[test]
fn bytes_that_are_not_utf_8_become_the_replacement_character() {
    assert_eq!(
        parse(b"data: a\xFFb\n\n").0,
        [event("message", "a\u{FFFD}b", "")]
    );
    assert_eq!(
        parse(b"data: \xE2\x82\n\n").0,
        [event("message", "\u{FFFD}", "")]
    );
}

#[test]
fn a_resumed_parser_keeps_the_position_until_the_next_id() {
    let mut parser = Parser::resuming("9");
    assert_eq!(
        parser.feed(b"data: a\n\nid: 10\ndata: b\n\n"),
        [event("message", "a", "9"), event("message", "b", "10")]
    );
}

// === HTTP/1 ===

/// Answers one connection with these bytes, then closes it regularly or with a reset.
async fn answering(answer: &'static [u8], reset: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_head(&mut socket).await;
        // Byte by byte: no reader may depend on packet boundaries.
        for byte in answer {
            socket.write_all(&[*byte]).await.unwrap();
        }
        if reset {
            tokio::time::sleep(Duration::from_millis(500)).await; // what was sent arrives before the reset discards it
            socket2::SockRef::from(&socket)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        } else {
            socket.shutdown().await.unwrap();
            let _peer_closed = socket.read(&mut [0; 1]).await;
        }
    });
    url
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn a_chunked_response_with_its_last_chunk_is_terminated() {
    let answer =
        format!("{HEAD}5\r\ndata:\r\nb;x=y\r\n 1\nid: 7\n\n:\r\n4\r\n hb\n\r\n0\r\n\r\n").leak();
    let mut client = SseClient::get(answering(answer.as_bytes(), false).await)
        .connect()
        .await;
    assert_eq!(
        (client.status(), client.header("content-type").as_deref()),
        (200, Some("text/event-stream"))
    );
    assert_eq!(client.next().await, event("message", "1", "7"));
    assert_eq!(client.closed().await, End::Terminated);
    assert!(client.fin().await);
    assert_eq!((client.last_event_id(), client.comments()), ("7", 1));
    assert_eq!(client.wire(), b"data: 1\nid: 7\n\n: hb\n");
}

#[tokio::test]
async fn a_chunked_response_without_its_last_chunk_is_truncated() {
    let answer = format!("{HEAD}9\r\ndata: 1\n\n\r\n").leak();
    let mut client = SseClient::get(answering(answer.as_bytes(), false).await)
        .connect()
        .await;
    assert_eq!(client.closed().await, End::Truncated);
    assert_eq!(client.rest(), [event("message", "1", "")]);
}

#[tokio::test]
async fn a_reset_is_distinguished_from_a_regular_end() {
    let answer = format!("{HEAD}9\r\ndata: 1\n\n\r\n").leak();
    let mut client = SseClient::get(answering(answer.as_bytes(), true).await)
        .connect()
        .await;
    client.next().await;
    assert_eq!(client.closed().await, End::Reset);
}

#[tokio::test]
async fn a_response_of_http_1_0_ends_with_the_connection() {
    let answer = b"HTTP/1.0 200 OK\r\n\r\ndata: 1\n\n";
    let mut client = SseClient::get(answering(answer, false).await)
        .http10()
        .connect()
        .await;
    assert_eq!(client.closed().await, End::Closed);
    assert_eq!(client.rest(), [event("message", "1", "")]);
}

#[tokio::test]
async fn a_rejection_is_read_by_its_content_length() {
    let answer =
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\n{}";
    let mut client = SseClient::get(answering(answer, false).await)
        .connect()
        .await;
    assert_eq!(
        (client.status(), client.header("retry-after").as_deref()),
        (503, Some("1"))
    );
    assert_eq!(client.body().await, "{}");
}

// === HTTP/2 ===

/// Server that sends the target of each stream as an event, then ends the stream as the target
/// says.
async fn serve_h2<T>(socket: T)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut connection = server::handshake(socket).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let target = request.uri().path().to_owned();
        if target == "/goaway" {
            connection.graceful_shutdown();
        }
        tokio::spawn(async move {
            let head = Response::builder()
                .header("content-type", "text/event-stream")
                .body(())
                .unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            let first = Bytes::from(format!("data: {target}\nid: 1\n\n"));
            body.send_data(first, target == "/end").unwrap();
            match target.as_str() {
                "/end" => {}
                "/reset" => {
                    tokio::time::sleep(Duration::from_millis(500)).await; // a reset discards what is not sent yet
                    body.send_reset(Reason::INTERNAL_ERROR);
                }
                "/flood" => {
                    body.send_data(Bytes::from(vec![b'x'; 1 << 20]), false)
                        .unwrap();
                    std::future::pending::<()>().await;
                }
                _ => {
                    let _gone = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
                }
            }
        });
    }
}

async fn h2_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve_h2(socket));
        }
    });
    url
}

#[tokio::test]
async fn streams_of_one_connection_end_independently() {
    let mut client = H2Client::connect(h2_server().await).await;
    let mut open = client.get("/open").await;
    let mut reset = client.get("/reset").await;
    let mut end = client.get("/end").await;
    assert_eq!(
        (open.status(), open.header("content-type")),
        (200, Some("text/event-stream"))
    );
    assert_eq!(open.next().await, event("message", "/open", "1"));
    assert_eq!(end.closed().await, End::Terminated);
    assert_eq!(end.rest(), [event("message", "/end", "1")]);
    assert_eq!(reset.closed().await, End::StreamReset(2));
    open.reset();
    assert_eq!(client.get("/after").await.next().await.data, "/after");
}

#[tokio::test]
async fn an_unread_stream_blocks_only_itself() {
    let mut client = H2Client::connect(h2_server().await).await;
    let stalled = client.get("/flood").await;
    let mut other = client.get("/other").await;
    assert_eq!(other.next().await.data, "/other");
    let bytes = || -> usize {
        let frames = client.frames();
        frames
            .iter()
            .filter(|frame| frame.kind == DATA && frame.id == stalled.id())
            .map(|frame| frame.length)
            .sum()
    };
    testkit::wait::eventually(
        DEADLINE,
        "the window of the stalled stream is full",
        || async { bytes() == 65_535 },
    )
    .await;
}

#[tokio::test]
async fn goaway_is_detected_while_streams_continue() {
    let mut client = H2Client::connect(h2_server().await).await;
    let mut stream = client.get("/goaway").await;
    client.goaway().await;
    assert_eq!(stream.next().await.data, "/goaway");
    let refused = client.try_request("GET", "/late", &[]).await;
    assert!(
        refused.is_err(),
        "a connection after GOAWAY accepts no new stream"
    );
}

// === TLS ===

#[tokio::test]
async fn tls_clients_negotiate_by_alpn_and_trust_only_their_authority() {
    let authority = Authority::new();
    let identity = authority.server("server");
    let config = testkit::certs::server_config(&identity, &["h2", "http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else {
                    return;
                };
                if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                    serve_h2(tls).await;
                } else {
                    tls.write_all(b"HTTP/1.0 200 OK\r\n\r\ndata: one\n\n")
                        .await
                        .unwrap();
                    tls.shutdown().await.unwrap();
                }
            });
        }
    });

    let mut two = H2Client::builder()
        .tls(authority.trusting(&["h2"]))
        .connect(&url)
        .await;
    assert_eq!(two.get("/two").await.next().await.data, "/two");
    let mut one = SseClient::get(&url)
        .tls(authority.trusting(&["http/1.1"]))
        .connect()
        .await;
    assert_eq!(one.next().await.data, "one");
    let stranger = Authority::new();
    let refused = SseClient::get(&url)
        .tls(stranger.trusting(&[]))
        .try_connect();
    assert!(
        within(DEADLINE, "the stranger has decided", refused)
            .await
            .is_err()
    );
}
