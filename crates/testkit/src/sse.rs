//! HTTP/1 client of Server-Sent Events: events, the bytes on the wire, and the end of the response.
//!
//! The client reads only while a test waits for something. A test that waits for nothing is a slow
//! client: its socket buffer fills.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::ClientConfig;

pub use crate::http1::End;
use crate::http1::{Response, head};
pub use crate::sse_parser::Event;
use crate::sse_parser::Parser;
use crate::transport::Connector;
use crate::wait::{DEADLINE, within};

/// Bytes that [`SseClient::wire`] keeps: the beginning, not a whole load test.
const WIRE_MAX: usize = 1 << 20;

/// Request for an event stream; [`Builder::connect`] sends it.
pub struct Builder {
    url: Uri,
    method: &'static str,
    minor: u8,
    headers: Vec<(String, String)>,
    last_event_id: String,
    connector: Connector,
}

/// Response of a request. It is read only on demand.
pub struct SseClient {
    response: Response,
    parser: Parser,
    ready: VecDeque<Event>,
    wire: Vec<u8>,
}

// === impl Builder ===

impl Builder {
    /// Adds a request header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Resumes after this event id.
    pub fn last_event_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.last_event_id);
        self.header("Last-Event-ID", id)
    }

    /// Uses HTTP/1.0, as old proxies do.
    pub fn http10(mut self) -> Self {
        self.minor = 0;
        self
    }

    /// Sends HEAD instead of GET.
    pub fn head(mut self) -> Self {
        self.method = "HEAD";
        self
    }

    /// Sends the headers of a browser, which gets rejections with status 200.
    pub fn browser(self) -> Self {
        self.header("Sec-Fetch-Mode", "cors")
            .header("User-Agent", "Mozilla/5.0 (test)")
    }

    /// TLS configuration for `https` URLs.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.connector = self.connector.tls(config);
        self
    }

    /// Size of the receive buffer; with a small one, a stalled client is detected after a few
    /// events.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.connector = self.connector.receive_buffer(bytes);
        self
    }

    /// Sends the request; returns when the response headers have arrived, with any status.
    pub async fn connect(self) -> SseClient {
        let url = self.url.clone();
        self.try_connect()
            .await
            .unwrap_or_else(|error| panic!("GET {url}: {error}"))
    }

    /// Same as [`Builder::connect`], for servers that may not be running.
    pub async fn try_connect(self) -> io::Result<SseClient> {
        let Self {
            url,
            method,
            minor,
            headers,
            last_event_id,
            connector,
        } = self;
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let request = head(method, &url, minor, &headers);
        within(
            DEADLINE,
            &format!("{method} {url} has a head of an answer"),
            async {
                let transport = connector.connect(&url).await?;
                let response =
                    Response::exchange(transport, request.as_bytes(), method == "HEAD").await?;
                let parser = Parser::resuming(&last_event_id);
                Ok(SseClient {
                    response,
                    parser,
                    ready: VecDeque::new(),
                    wire: Vec::new(),
                })
            },
        )
        .await
    }
}

// === impl SseClient ===

impl SseClient {
    /// GET request that accepts an event stream.
    pub fn get(url: impl AsRef<str>) -> Builder {
        let builder = Self::bare(url);
        builder.header("Accept", "text/event-stream")
    }

    /// GET request with no header but Host.
    pub fn bare(url: impl AsRef<str>) -> Builder {
        Builder {
            url: url.as_ref().parse().unwrap(),
            method: "GET",
            minor: 1,
            headers: Vec::new(),
            last_event_id: String::new(),
            connector: Connector::default(),
        }
    }

    /// Status code.
    pub fn status(&self) -> u16 {
        self.response.status
    }

    /// Response headers in the order of the wire, names in lower case.
    pub fn headers(&self) -> &[(String, String)] {
        &self.response.headers
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.response.header(name)
    }

    /// Next event. Panics if none arrives within [`DEADLINE`] or if the response ends.
    pub async fn next(&mut self) -> Event {
        match within(DEADLINE, "the client has another event", self.advance()).await {
            Ok(event) => event,
            Err(end) => panic!(
                "the answer ended ({end:?}) before another event: {}",
                self.tail()
            ),
        }
    }

    /// Next event without a deadline, or the end of the response.
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

    /// Reads until `seen` returns true for the parser: an id, a comment, a retry.
    /// Events are kept for [`SseClient::next`].
    pub async fn until_seen(&mut self, fact: &str, seen: impl Fn(&Parser) -> bool) {
        within(DEADLINE, fact, async {
            while !seen(&self.parser) {
                if let Err(end) = self.read().await {
                    panic!("the answer ended ({end:?}) before {fact}: {}", self.tail());
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

    /// Reads until the server has ended the response and returns how.
    /// Earlier events are kept for [`SseClient::rest`].
    pub async fn closed(&mut self) -> End {
        self.closed_within(DEADLINE).await
    }

    /// Same as [`SseClient::closed`], with another deadline.
    pub async fn closed_within(&mut self, deadline: Duration) -> End {
        within(deadline, "the server has ended the answer", async {
            loop {
                if let Err(end) = self.read().await {
                    return end;
                }
            }
        })
        .await
    }

    /// Events that were read and not returned yet, after [`SseClient::closed`].
    pub fn rest(&mut self) -> Vec<Event> {
        self.ready.drain(..).collect()
    }

    /// Returns true if the server closes the connection after the end of the response.
    pub async fn fin(&mut self) -> bool {
        within(
            DEADLINE,
            "the connection is closed after the answer",
            self.response.fin(),
        )
        .await
    }

    /// Rest of a response that is not an event stream, such as the JSON of a rejection.
    pub async fn body(&mut self) -> String {
        let (bytes, _end) = within(DEADLINE, "the answer is complete", self.response.body()).await;
        String::from_utf8_lossy(&bytes).into_owned()
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

    /// State of the parser.
    pub fn parser(&self) -> &Parser {
        &self.parser
    }

    /// Body until now (the first mebibyte), without HTTP framing.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// Closes the connection with a reset instead of a FIN.
    pub fn reset(self) {
        self.response.into_transport().reset();
    }

    /// HTTP response, for tests of HTTP itself.
    pub fn response(&mut self) -> &mut Response {
        &mut self.response
    }

    async fn read(&mut self) -> Result<(), End> {
        let bytes = self.response.chunk().await?;
        let room = WIRE_MAX.saturating_sub(self.wire.len());
        self.wire.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.ready.extend(self.parser.feed(&bytes));
        Ok(())
    }

    fn tail(&self) -> String {
        let skipped = self.wire.len().saturating_sub(2000);
        String::from_utf8_lossy(&self.wire[skipped..]).into_owned()
    }
}
