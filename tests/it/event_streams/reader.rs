//! One event stream by any of the five ways to it, read alike.

use super::Fixture;
use testkit::h2::{H2Client, H2Stream};
use testkit::sse::{End, Event, SseClient};
use testkit::sse_parser::Parser;

/// How a client comes to its event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// HTTP/1.0 in clear text.
    Http10,
    /// HTTP/1.1 in clear text.
    Http11,
    /// HTTP/2 by prior knowledge.
    H2,
    /// HTTP/1.1, agreed on by ALPN.
    Tls11,
    /// HTTP/2, agreed on by ALPN.
    TlsH2,
}

/// An answered request.
pub enum Reader {
    /// The connection is the event stream's.
    Http1(Box<SseClient>),
    /// One stream on a connection of its own.
    H2(H2Client, Box<H2Stream>),
}

// === impl Via ===

impl Via {
    /// Every way.
    pub const ALL: [Self; 5] = [
        Self::Http10,
        Self::Http11,
        Self::H2,
        Self::Tls11,
        Self::TlsH2,
    ];

    /// As labels and `/connections` name it.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Http10 => "http/1.0",
            Self::Http11 | Self::Tls11 => "http/1.1",
            Self::H2 | Self::TlsH2 => "h2",
        }
    }

    /// Whether it is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls11 | Self::TlsH2)
    }

    /// How an answer that the server ends in good order is seen to end.
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

    /// The status code.
    pub fn status(&self) -> u16 {
        match self {
            Self::Http1(client) => client.status(),
            Self::H2(_, stream) => stream.status(),
        }
    }

    /// One header's value.
    pub fn header(&self, name: &str) -> Option<String> {
        match self {
            Self::Http1(client) => client.header(name),
            Self::H2(_, stream) => stream.header(name).map(str::to_owned),
        }
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        match self {
            Self::Http1(client) => client.next().await,
            Self::H2(_, stream) => stream.next().await,
        }
    }

    /// The next `count` events.
    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        match self {
            Self::Http1(client) => client.take(count).await,
            Self::H2(_, stream) => stream.take(count).await,
        }
    }

    /// Reads until the parser has seen what `seen` asks for.
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

    /// Reads to the end; the events before it, and how it came.
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

    /// What a reconnection would send as `Last-Event-ID`.
    pub fn last_event_id(&self) -> &str {
        match self {
            Self::Http1(client) => client.last_event_id(),
            Self::H2(_, stream) => stream.last_event_id(),
        }
    }

    /// The reconnection time that the server has set, in milliseconds.
    pub fn retry(&self) -> Option<u64> {
        match self {
            Self::Http1(client) => client.retry(),
            Self::H2(_, stream) => stream.retry(),
        }
    }

    /// The connection below, if it can carry more than this.
    pub fn connection(&self) -> Option<&H2Client> {
        match self {
            Self::Http1(_) => None,
            Self::H2(connection, _) => Some(connection),
        }
    }

    /// How many comments were read so far.
    pub fn comments(&self) -> usize {
        match self {
            Self::Http1(client) => client.comments(),
            Self::H2(_, stream) => stream.comments(),
        }
    }
}

/// The address of `path` for clients that come this way.
pub fn url(fixture: &Fixture, via: Via, path: &str) -> String {
    if via.is_tls() {
        fixture.sidestream.url_tls(path)
    } else {
        fixture.sidestream.url(path)
    }
}
