//! One event stream over any of five transports, read through the same interface.

use super::Fixture;
use testkit::h2::{H2Client, H2Stream};
use testkit::sse::{End, Event, SseClient};
use testkit::sse_parser::Parser;

/// Transport of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// HTTP/1.0 in clear text.
    Http10,
    /// HTTP/1.1 in clear text.
    Http11,
    /// HTTP/2 by prior knowledge.
    H2,
    /// HTTP/1.1, negotiated by ALPN.
    Tls11,
    /// HTTP/2, negotiated by ALPN.
    TlsH2,
}

/// Open event stream.
pub enum Reader {
    /// One connection per event stream.
    Http1(Box<SseClient>),
    /// One HTTP/2 stream, and its connection.
    H2(H2Client, Box<H2Stream>),
}

// === impl Via ===

impl Via {
    /// All transports.
    pub const ALL: [Self; 5] = [
        Self::Http10,
        Self::Http11,
        Self::H2,
        Self::Tls11,
        Self::TlsH2,
    ];

    /// Name in labels and in `/connections`.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Http10 => "http/1.0",
            Self::Http11 | Self::Tls11 => "http/1.1",
            Self::H2 | Self::TlsH2 => "h2",
        }
    }

    /// Returns true with TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls11 | Self::TlsH2)
    }

    /// End of a response that the server ends regularly.
    pub fn proper_end(self) -> End {
        if self == Self::Http10 {
            End::Closed
        } else {
            End::Terminated
        }
    }
}

// === impl Reader ===

impl Reader {
    /// Opens `path`; `id`: resumes after it, unless it is empty.
    pub async fn open(fixture: &Fixture, via: Via, path: &str, id: &str) -> Self {
        if via.protocol() == "h2" {
            let builder = H2Client::builder().tls(fixture.tls("h2"));
            let mut client = builder.connect(url(fixture, via, path)).await;
            let mut headers = vec![("accept", "text/event-stream")];
            if !id.is_empty() {
                headers.push(("last-event-id", id));
            }
            let stream = client.request("GET", path, &headers).await;
            return Self::H2(client, Box::new(stream));
        }
        let mut request = SseClient::get(url(fixture, via, path)).tls(fixture.tls("http/1.1"));
        if via == Via::Http10 {
            request = request.http10();
        }
        if !id.is_empty() {
            request = request.last_event_id(id);
        }
        Self::Http1(Box::new(request.connect().await))
    }

    /// Status code.
    pub fn status(&self) -> u16 {
        match self {
            Self::Http1(client) => client.status(),
            Self::H2(_, stream) => stream.status(),
        }
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        match self {
            Self::Http1(client) => client.header(name),
            Self::H2(_, stream) => stream.header(name).map(str::to_owned),
        }
    }

    /// Next event.
    pub async fn next(&mut self) -> Event {
        match self {
            Self::Http1(client) => client.next().await,
            Self::H2(_, stream) => stream.next().await,
        }
    }

    /// Next `count` events.
    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        match self {
            Self::Http1(client) => client.take(count).await,
            Self::H2(_, stream) => stream.take(count).await,
        }
    }

    /// Reads until `seen` returns true for the parser.
    pub async fn until_seen(&mut self, fact: &str, seen: impl Fn(&Parser) -> bool) {
        match self {
            Self::Http1(client) => client.until_seen(fact, seen).await,
            Self::H2(_, stream) => stream.until_seen(fact, seen).await,
        }
    }

    /// Reads until the client knows its position.
    pub async fn positioned(&mut self) -> String {
        self.until_seen("the client has a position", |parser| {
            !parser.last_event_id().is_empty()
        })
        .await;
        self.last_event_id().to_owned()
    }

    /// Reads to the end; returns the events before it, and the end.
    pub async fn read_to_end(&mut self) -> (Vec<Event>, End) {
        match self {
            Self::Http1(client) => {
                let end = client.closed().await;
                assert!(
                    !client.parser().mid_block(),
                    "an event stream ends between events"
                );
                (client.rest(), end)
            }
            Self::H2(_, stream) => {
                let end = stream.closed().await;
                (stream.rest(), end)
            }
        }
    }

    /// Value of `Last-Event-ID` for a reconnect.
    pub fn last_event_id(&self) -> &str {
        match self {
            Self::Http1(client) => client.last_event_id(),
            Self::H2(_, stream) => stream.last_event_id(),
        }
    }

    /// Reconnect delay from the server, in milliseconds.
    pub fn retry(&self) -> Option<u64> {
        match self {
            Self::Http1(client) => client.retry(),
            Self::H2(_, stream) => stream.retry(),
        }
    }

    /// Connection of the event stream, if it can have further streams.
    pub fn connection(&self) -> Option<&H2Client> {
        match self {
            Self::Http1(_) => None,
            Self::H2(connection, _) => Some(connection),
        }
    }

    /// Number of comments until now.
    pub fn comments(&self) -> usize {
        match self {
            Self::Http1(client) => client.comments(),
            Self::H2(_, stream) => stream.comments(),
        }
    }
}

/// URL of `path` for this transport.
pub fn url(fixture: &Fixture, via: Via, path: &str) -> String {
    if via.is_tls() {
        fixture.sidestream.url_tls(path)
    } else {
        fixture.sidestream.url(path)
    }
}
