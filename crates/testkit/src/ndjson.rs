//! Reader of event streams as newline-delimited JSON, over HTTP/1 and HTTP/2.
//!
//! It knows the documented format only and shares no code with the product: a line ends with LF,
//! every line that is not empty is one JSON object, and the last `id` is the client's position.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rustls::ClientConfig;
use serde_json::Value;

use crate::h2::{H2Client, H2Stream};
use crate::http1::End;
use crate::sse::SseClient;
use crate::wait::{DEADLINE, within};

/// Media type of the format.
pub const MEDIA_TYPE: &str = "application/x-ndjson";

/// Request for an event stream.
#[derive(Clone, Debug)]
pub struct Request<'r> {
    /// URL of the route.
    pub url: &'r str,
    /// HTTP version.
    pub version: Version,
    /// TLS configuration for `https` URLs, with the protocol that it offers.
    pub tls: Option<Arc<ClientConfig>>,
    /// `Accept`; empty: none.
    pub accept: &'r str,
    /// Event id to resume after; empty: none.
    pub last_event_id: &'r str,
    /// Size of the receive buffer, or of the HTTP/2 window of the stream.
    pub receive_buffer: Option<u32>,
}

/// HTTP version of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    H2,
}

/// Open event stream. It is read only on demand.
pub struct Reader {
    response: Response,
    /// Start of a line that is not complete.
    line: Vec<u8>,
    lines: VecDeque<Value>,
    last_event_id: String,
    heartbeats: usize,
}

enum Response {
    Http1(Box<SseClient>),
    /// With its connection, which ends when it is dropped.
    H2 {
        _client: H2Client,
        stream: Box<H2Stream>,
    },
}

impl Request<'_> {
    /// Request over HTTP/1.1 that accepts the format.
    pub fn new(url: &str) -> Request<'_> {
        Request {
            url,
            version: Version::Http11,
            tls: None,
            accept: MEDIA_TYPE,
            last_event_id: "",
            receive_buffer: None,
        }
    }

    /// Sends the request; returns when the response headers have arrived, with any status.
    pub async fn send(self) -> Reader {
        let response = if self.version == Version::H2 {
            self.send_h2().await
        } else {
            self.send_http1().await
        };
        Reader {
            response,
            line: Vec::new(),
            lines: VecDeque::new(),
            last_event_id: self.last_event_id.to_owned(),
            heartbeats: 0,
        }
    }

    async fn send_http1(&self) -> Response {
        let mut request = SseClient::bare(self.url);
        if !self.accept.is_empty() {
            request = request.header("Accept", self.accept);
        }
        if !self.last_event_id.is_empty() {
            request = request.last_event_id(self.last_event_id);
        }
        if self.version == Version::Http10 {
            request = request.http10();
        }
        if let Some(tls) = &self.tls {
            request = request.tls(tls.clone());
        }
        if let Some(bytes) = self.receive_buffer {
            request = request.receive_buffer(bytes);
        }
        Response::Http1(Box::new(request.connect().await))
    }

    async fn send_h2(&self) -> Response {
        let mut builder = H2Client::builder();
        if let Some(tls) = &self.tls {
            builder = builder.tls(tls.clone());
        }
        if let Some(bytes) = self.receive_buffer {
            builder = builder.stream_window(bytes);
        }
        let mut headers = Vec::new();
        if !self.accept.is_empty() {
            headers.push(("accept", self.accept));
        }
        if !self.last_event_id.is_empty() {
            headers.push(("last-event-id", self.last_event_id));
        }
        let mut client = builder.connect(self.url).await;
        let uri: hyper::Uri = self.url.parse().unwrap();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let stream = client.request("GET", target, &headers).await;
        Response::H2 {
            _client: client,
            stream: Box::new(stream),
        }
    }
}

impl Reader {
    /// Status code.
    pub fn status(&self) -> u16 {
        match &self.response {
            Response::Http1(client) => client.status(),
            Response::H2 { stream, .. } => stream.status(),
        }
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        match &self.response {
            Response::Http1(client) => client.header(name),
            Response::H2 { stream, .. } => stream.header(name).map(str::to_owned),
        }
    }

    /// Next line that is not empty.
    pub async fn next(&mut self) -> Value {
        match within(DEADLINE, "the client has another line", self.advance()).await {
            Ok(line) => line,
            Err(end) => panic!("the response ended ({end:?}) before another line"),
        }
    }

    /// Next `count` events; control lines before them are dropped.
    pub async fn events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            let line = self.next().await;
            if line.get("control").is_none() {
                events.push(line);
            }
        }
        events
    }

    /// Next control line of this name; returns the lines before it, too.
    pub async fn until_control(&mut self, name: &str) -> (Vec<Value>, Value) {
        let mut before = Vec::new();
        loop {
            let line = self.next().await;
            if line["control"] == name {
                return (before, line);
            }
            before.push(line);
        }
    }

    /// Reads until this number of heartbeats has arrived.
    pub async fn until_heartbeats(&mut self, count: usize) {
        within(DEADLINE, "the client has heartbeats", async {
            while self.heartbeats < count {
                if let Err(end) = self.read().await {
                    panic!("the response ended ({end:?}) before a heartbeat");
                }
            }
        })
        .await;
    }

    /// Reads to the end; returns the lines before it, and the end.
    pub async fn read_to_end(&mut self) -> (Vec<Value>, End) {
        let end = within(DEADLINE, "the server has ended the response", async {
            loop {
                if let Err(end) = self.read().await {
                    return end;
                }
            }
        })
        .await;
        assert!(self.line.is_empty(), "an event stream ends between lines");
        (self.lines.drain(..).collect(), end)
    }

    /// Body of a response that is not an event stream.
    pub async fn body(&mut self) -> String {
        match &mut self.response {
            Response::Http1(client) => client.body().await,
            Response::H2 { stream, .. } => stream.body().await,
        }
    }

    /// Value of `Last-Event-ID` for a reconnect.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    async fn advance(&mut self) -> Result<Value, End> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(line);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), End> {
        let bytes = self.response.chunk().await?;
        for byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if line.is_empty() {
                self.heartbeats += 1;
                continue;
            }
            let object: Value = serde_json::from_slice(&line)
                .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&line)));
            assert!(object.is_object(), "a line is an object: {object}");
            if let Some(id) = object["id"].as_str() {
                id.clone_into(&mut self.last_event_id);
            }
            self.lines.push_back(object);
        }
        Ok(())
    }
}

impl Response {
    async fn chunk(&mut self) -> Result<Bytes, End> {
        match self {
            Self::Http1(client) => client.response().chunk().await,
            Self::H2 { stream, .. } => stream.chunk().await,
        }
    }
}
