//! Requests of the doctor, and the times at which their responses arrive.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::report::PodReport;
use crate::cli::client::connection::{Connection, Connector, Failed};
use crate::cli::client::target::Target;

/// Position that the doctor sends, so that the pod can say whether it arrives.
pub(super) const POSITION: HeaderValue = HeaderValue::from_static("sidestream-doctor");

/// Header of a probe.
pub(super) const PROBE: HeaderName = HeaderName::from_static("sidestream-doctor");

/// 6 s: a server sends the head of an event stream at once, and a slow network needs a second.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(6);

/// 64 KiB of a text: a report has one.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// 20 ms: bytes that arrive within it are one block.
const BLOCK: Duration = Duration::from_millis(20);

/// 256 KiB of a stream are kept; a probe has half of it.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// Sends requests to one URL.
pub(super) struct Requests {
    pub(super) connector: Connector,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
}

/// Response whose body has not been read.
pub(super) struct Opened {
    pub(super) response: Response<Incoming>,
    /// Time of the request.
    pub(super) sent: Instant,
}

/// Body of a response, as it arrived.
pub(super) struct Received {
    /// Time of each block of bytes, since the request, and its bytes.
    pub(super) blocks: Vec<(Duration, usize)>,
    /// The first bytes.
    pub(super) text: Vec<u8>,
    pub(super) end: End,
    /// Time of the end, since the request.
    pub(super) age: Duration,
}

/// End of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As the protocol ends a response.
    Regular,
    /// The connection broke, or the stream was reset.
    Broken(String),
    /// The doctor has stopped to read.
    Stopped,
}

/// No response.
#[derive(Clone, Debug)]
pub(super) enum NoResponse {
    /// No connection.
    Connection(String),
    /// No head in time.
    Late,
    /// The connection ended before the head.
    Ended(String),
}

/// No report of the pod.
#[derive(Clone, Debug)]
pub(super) enum NoReport {
    NoResponse(NoResponse),
    /// A response without a report.
    Status(StatusCode),
}

impl Requests {
    /// Connects.
    pub(super) async fn connect(&self) -> Result<Connection, NoResponse> {
        let connected = self.connector.connect(&self.target).await;
        connected.map_err(|failed| match failed {
            Failed::ForNow(why) | Failed::ForGood(why) => NoResponse::Connection(why),
        })
    }

    /// Returns a request for the URL, with the headers of the user.
    pub(super) fn request(
        &self,
        method: Method,
        connection: &Connection,
        more: &[(HeaderName, HeaderValue)],
    ) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method;
        let all = request.headers_mut();
        let accept = HeaderValue::from_static("text/event-stream, */*;q=0.1");
        all.insert(header::ACCEPT, accept);
        all.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let agent = HeaderValue::from_static(concat!("sidestream/", env!("CARGO_PKG_VERSION")));
        all.insert(header::USER_AGENT, agent);
        if connection.version() == "HTTP/1.1"
            && let Ok(host) = HeaderValue::from_str(self.target.authority())
        {
            all.insert(header::HOST, host);
        }
        for name in self.headers.keys() {
            all.remove(name);
        }
        all.extend(self.headers.clone());
        all.extend(more.iter().cloned());
        request
    }

    /// Sends a request on this connection and waits for the head of the response.
    pub(super) async fn send(
        &self,
        connection: &mut Connection,
        method: Method,
        more: &[(HeaderName, HeaderValue)],
    ) -> Result<Opened, NoResponse> {
        let request = self.request(method, connection, more);
        let sent = Instant::now();
        match timeout(HEAD_TIMEOUT, connection.send(&self.target, request)).await {
            Ok(Ok(response)) => Ok(Opened { response, sent }),
            Ok(Err(why)) => Err(NoResponse::Ended(why)),
            Err(_) => Err(NoResponse::Late),
        }
    }

    /// Sends a GET request on a new connection.
    pub(super) async fn open(
        &self,
        more: &[(HeaderName, HeaderValue)],
    ) -> Result<(Opened, Connection), NoResponse> {
        let mut connection = self.connect().await?;
        let opened = self.send(&mut connection, Method::GET, more).await?;
        Ok((opened, connection))
    }

    /// Asks the pod for a report on this connection. `goaway`: the pod ends its connection.
    pub(super) async fn report(
        &self,
        connection: &mut Connection,
        goaway: bool,
    ) -> Result<PodReport, NoReport> {
        let kind = HeaderValue::from_static(if goaway { "goaway" } else { "report" });
        let sent = self.send(connection, Method::GET, &[(PROBE, kind)]).await;
        let opened = sent.map_err(NoReport::NoResponse)?;
        let status = opened.response.status();
        let body = text(opened.response.into_body()).await;
        serde_json::from_slice(&body).map_err(|_| NoReport::Status(status))
    }
}

/// Header of a probe with timed lines.
pub(super) fn lines(count: u32, every: Duration, bytes: u32) -> (HeaderName, HeaderValue) {
    let every = every.as_millis();
    let text = format!("lines; count={count}; every={every}; bytes={bytes}");
    let value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("report"));
    (PROBE, value)
}

/// Reads a short body, as far as it arrives in time.
pub(super) async fn text(body: Incoming) -> Bytes {
    let body = Limited::new(body, TEXT_BYTES_MAX).collect();
    match timeout(HEAD_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    }
}

impl Opened {
    /// Reads the body until it ends, `until`, or `is_enough` returns true for its text.
    pub(super) async fn receive(
        self,
        until: Instant,
        is_enough: impl Fn(&[u8]) -> bool,
    ) -> Received {
        let mut body = self.response.into_body();
        let mut received = Received {
            blocks: Vec::new(),
            text: Vec::new(),
            end: End::Stopped,
            age: Duration::ZERO,
        };
        loop {
            let frame = timeout_at(until, body.frame()).await;
            received.age = self.sent.elapsed();
            match frame {
                Err(_) => return received,
                Ok(None) => received.end = End::Regular,
                Ok(Some(Err(error))) => received.end = End::Broken(with_causes(&error)),
                Ok(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    received.add(&data);
                    if !is_enough(&received.text) {
                        continue;
                    }
                }
            }
            return received;
        }
    }
}

impl Received {
    fn add(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        match self.blocks.last_mut() {
            Some((at, bytes)) if self.age - *at < BLOCK => *bytes += data.len(),
            _ => self.blocks.push((self.age, data.len())),
        }
        let room = KEPT_BYTES_MAX.saturating_sub(self.text.len());
        self.text.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// Returns whether the text has this part.
    pub(super) fn has(&self, part: &str) -> bool {
        contains(&self.text, part)
    }

    /// Returns the time of the last bytes, since the request.
    pub(super) fn last(&self) -> Option<Duration> {
        self.blocks.last().map(|(at, _)| *at)
    }
}

/// Returns whether a text has this part.
pub(super) fn contains(text: &[u8], part: &str) -> bool {
    memchr::memmem::find(text, part.as_bytes()).is_some()
}

impl std::fmt::Display for NoResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection(why) | Self::Ended(why) => f.write_str(why),
            Self::Late => write!(f, "no response within {} s", HEAD_TIMEOUT.as_secs()),
        }
    }
}

impl std::fmt::Display for NoReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoResponse(why) => write!(f, "{why}"),
            Self::Status(status) => write!(f, "status {status}"),
        }
    }
}

fn with_causes(error: &hyper::Error) -> String {
    let first = std::error::Error::source(error);
    let causes = std::iter::successors(first, |cause| cause.source());
    let causes: String = causes.map(|cause| format!(": {cause}")).collect();
    format!("{error}{causes}")
}
