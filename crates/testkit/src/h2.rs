//! HTTP/2 client of Server-Sent Events with many streams on one connection.
//!
//! Each stream is read, stalled or reset on its own.
//!
//! A task per connection drives the `h2` library. A stream whose test does not read it keeps its
//! flow control window closed, so the server sees a slow client on that stream only.
//! [`crate::h2_tap`] records the frames below the library.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder as Handshake, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use hyper::{Request, Uri, Version};
use rustls::ClientConfig;
use tokio::task::JoinHandle;

use crate::h2_tap::{Frame, GOAWAY, Tap, Wire};
use crate::http1::End;
use crate::sse_parser::{Event, Parser};
use crate::transport::Connector;
use crate::wait::{DEADLINE, eventually, within};

/// 16 MiB for the connection, so that only the window of a stream limits that stream.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Options of a connection.
#[derive(Clone)]
pub struct Builder {
    connector: Connector,
    stream_window: u32,
}

/// One connection. Dropping it closes the connection and all its streams.
pub struct H2Client {
    base: Uri,
    requests: SendRequest<Bytes>,
    wire: Arc<Wire>,
    driver: JoinHandle<()>,
}

/// Response of one request. While it is not read, its window fills and the server must stop writing
/// to it.
pub struct H2Stream {
    status: u16,
    headers: Vec<(String, String)>,
    body: RecvStream,
    request: SendStream<Bytes>,
    parser: Parser,
    ready: VecDeque<Event>,
    sizes: Vec<usize>,
}

// === impl Builder ===

impl Default for Builder {
    fn default() -> Self {
        Self {
            connector: Connector::default(),
            stream_window: 65_535,
        }
    }
}

impl Builder {
    /// Uses TLS; the configuration must offer `h2` by ALPN.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.connector = self.connector.tls(config);
        self
    }

    /// Window of each stream, in bytes: the amount that a stalled stream still accepts.
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes;
        self
    }

    /// Size of the receive buffer; small for connections that stop reading altogether.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.connector = self.connector.receive_buffer(bytes);
        self
    }

    /// Connects to the host and port of `url`: by prior knowledge, or by ALPN for `https`.
    pub async fn connect(self, url: impl AsRef<str>) -> H2Client {
        let url = url.as_ref();
        self.try_connect(url)
            .await
            .unwrap_or_else(|error| panic!("HTTP/2 to {url}: {error}"))
    }

    /// Same as [`Builder::connect`], for servers that may not be running.
    pub async fn try_connect(self, url: &str) -> io::Result<H2Client> {
        let base: Uri = url.parse().unwrap();
        within(DEADLINE, "the HTTP/2 connection is open", async {
            let transport = self.connector.connect(&base).await?;
            if base.scheme_str() == Some("https") {
                assert_eq!(
                    transport.alpn(),
                    Some(&b"h2"[..]),
                    "the server chooses HTTP/2 by ALPN"
                );
            }
            let wire = Arc::new(Wire::default());
            let tap = Tap::new(transport, &wire);
            let (requests, connection) = Handshake::new()
                .initial_window_size(self.stream_window)
                .initial_connection_window_size(CONNECTION_WINDOW)
                // A stalled stream buffers many small frames; the default budget would close the
                // connection.
                .data_frame_budget(CONNECTION_WINDOW as usize)
                .handshake(tap)
                .await
                .map_err(io::Error::other)?;
            let ended = Arc::clone(&wire);
            let driver = tokio::spawn(async move {
                let end = connection
                    .await
                    .map_or_else(|error| error.to_string(), |()| "closed".to_owned());
                ended.end(end);
            });
            Ok(H2Client {
                base,
                requests,
                wire,
                driver,
            })
        })
        .await
    }
}

// === impl H2Client ===

impl H2Client {
    /// Connects with the default windows.
    pub async fn connect(url: impl AsRef<str>) -> Self {
        Builder::default().connect(url).await
    }

    /// Starts with default options; [`Builder::connect`] opens the connection.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Sends GET for an event stream; returns when the response headers have arrived, with any
    /// status.
    pub async fn get(&mut self, target: &str) -> H2Stream {
        self.request("GET", target, &[("accept", "text/event-stream")])
            .await
    }

    /// Sends a request with these headers, in lower case.
    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> H2Stream {
        self.try_request(method, target, headers)
            .await
            .unwrap_or_else(|error| panic!("{method} {target} over HTTP/2: {error}"))
    }

    /// Same as [`H2Client::request`], for connections that may reject new streams.
    pub async fn try_request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<H2Stream, h2::Error> {
        let (scheme, authority) = (
            self.base.scheme_str().unwrap(),
            self.base.authority().unwrap(),
        );
        let mut request = Request::builder()
            .version(Version::HTTP_2)
            .method(method)
            .uri(format!("{scheme}://{authority}{target}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let resumed = headers
            .iter()
            .find(|(name, _)| *name == "last-event-id")
            .map_or("", |(_, id)| *id);
        within(
            DEADLINE,
            &format!("{method} {target} has a head of an answer"),
            async {
                let mut requests = self.requests.clone().ready().await?;
                let (answer, request) = requests.send_request(request, true)?;
                let (head, body) = answer.await?.into_parts();
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                let headers = head
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                    .collect();
                Ok(H2Stream {
                    status: head.status.as_u16(),
                    headers,
                    body,
                    request,
                    parser: Parser::resuming(resumed),
                    ready: VecDeque::new(),
                    sizes: Vec::new(),
                })
            },
        )
        .await
    }

    /// All frames from the server, in order.
    pub fn frames(&self) -> Vec<Frame> {
        self.wire.frames()
    }

    /// Returns true if the server has sent GOAWAY.
    pub fn going_away(&self) -> bool {
        self.wire.frames().iter().any(|frame| frame.kind == GOAWAY)
    }

    /// Waits for GOAWAY; open streams continue.
    pub async fn goaway(&self) {
        eventually(DEADLINE, "the server has sent GOAWAY", || async {
            self.going_away()
        })
        .await;
    }

    /// Waits until the connection has ended; returns `closed`, or the error of the library.
    pub async fn ended(&self) -> String {
        eventually(DEADLINE, "the HTTP/2 connection is over", || async {
            self.wire.ended()
        })
        .await
    }

    /// Stops reading the socket permanently, PING frames included: a peer that disappeared without
    /// a FIN.
    pub fn freeze(&self) {
        self.wire.freeze();
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

// === impl H2Stream ===

impl H2Stream {
    /// Status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Response headers.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Stream identifier, as in [`Frame::id`].
    pub fn id(&self) -> u32 {
        self.request.stream_id().as_u32()
    }

    /// Next event. Panics if none arrives within [`DEADLINE`] or if the stream ends.
    pub async fn next(&mut self) -> Event {
        match within(DEADLINE, "the client has another event", self.advance()).await {
            Ok(event) => event,
            Err(end) => panic!("the stream ended ({end:?}) before another event"),
        }
    }

    /// Next event without a deadline, or the end of the stream.
    pub async fn advance(&mut self) -> Result<Event, End> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.read().await?;
        }
    }

    /// Next event within `deadline`, if any.
    pub async fn next_within(&mut self, deadline: Duration) -> Option<Event> {
        tokio::time::timeout(deadline, self.advance())
            .await
            .ok()?
            .ok()
    }

    /// Next `count` events.
    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.next().await);
        }
        events
    }

    /// Reads until `wanted` returns true for an event; returns all events, that one last.
    pub async fn until(&mut self, mut wanted: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            let last = wanted(&event);
            events.push(event);
            if last {
                return events;
            }
        }
    }

    /// Reads until `seen` returns true for the parser. Events are kept for [`H2Stream::next`].
    pub async fn until_seen(&mut self, fact: &str, seen: impl Fn(&Parser) -> bool) {
        within(DEADLINE, fact, async {
            while !seen(&self.parser) {
                if let Err(end) = self.read().await {
                    panic!("the stream ended ({end:?}) before {fact}");
                }
            }
        })
        .await;
    }

    /// Reads until the client has a position.
    pub async fn positioned(&mut self) {
        self.until_seen("its position", |parser| parser.positions() > 0)
            .await;
    }

    /// Reads until the stream has ended and returns how. Earlier events are kept for
    /// [`H2Stream::rest`].
    pub async fn closed(&mut self) -> End {
        self.closed_within(DEADLINE).await
    }

    /// Same as [`H2Stream::closed`], with another deadline.
    pub async fn closed_within(&mut self, deadline: Duration) -> End {
        within(deadline, "the server has ended the stream", async {
            loop {
                if let Err(end) = self.read().await {
                    return end;
                }
            }
        })
        .await
    }

    /// Reads one DATA frame and returns its bytes to the window.
    pub async fn piece(&mut self) -> Result<(), End> {
        self.read().await
    }

    /// Events that were read and not returned yet.
    pub fn rest(&mut self) -> Vec<Event> {
        self.ready.drain(..).collect()
    }

    /// Rest of a response that is not an event stream.
    pub async fn body(&mut self) -> String {
        let mut body = Vec::new();
        while let Ok(bytes) = within(DEADLINE, "the answer is complete", self.chunk()).await {
            body.extend_from_slice(&bytes);
        }
        String::from_utf8_lossy(&body).into_owned()
    }

    /// Value of `Last-Event-ID` for a reconnect.
    pub fn last_event_id(&self) -> &str {
        self.parser.last_event_id()
    }

    /// Reconnect delay from the server, in milliseconds.
    pub fn retry(&self) -> Option<u64> {
        self.parser.retry()
    }

    /// Number of comments (heartbeats) until now.
    pub fn comments(&self) -> usize {
        self.parser.comments().len()
    }

    /// Sizes of the DATA frames that were read.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Sends RST_STREAM(CANCEL), as a browser does when its page closes an EventSource.
    pub fn reset(mut self) {
        self.request.send_reset(Reason::CANCEL);
    }

    async fn read(&mut self) -> Result<(), End> {
        let bytes = self.chunk().await?;
        self.sizes.push(bytes.len());
        self.ready.extend(self.parser.feed(&bytes));
        Ok(())
    }

    /// Reads the bytes of one DATA frame, without parsing them, and returns them to the window.
    pub async fn chunk(&mut self) -> Result<Bytes, End> {
        match self.body.data().await {
            None => Err(End::Terminated),
            Some(Ok(bytes)) => {
                // Only bytes that the test has read open the window again.
                self.body
                    .flow_control()
                    .release_capacity(bytes.len())
                    .unwrap();
                Ok(bytes)
            }
            Some(Err(error)) => Err(match error.reason() {
                Some(reason) if error.is_reset() => End::StreamReset(reason.into()),
                _ if error.is_io() => End::Reset,
                _ => End::Truncated,
            }),
        }
    }
}
