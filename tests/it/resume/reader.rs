//! One event stream over HTTP/1.1 or HTTP/2, read through the same interface.

use serde_json::Value;

use testkit::h2::{H2Client, H2Stream};
use testkit::sidestream::Sidestream;
use testkit::sse::{Event, SseClient};

/// Protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    H2,
}

/// Open event stream.
pub(crate) enum Reader {
    /// One connection per event stream.
    Http1(Box<SseClient>),
    /// One HTTP/2 stream on its own connection.
    H2 {
        _connection: H2Client,
        answer: Box<H2Stream>,
    },
}

// === impl Via ===

impl Via {
    /// Both protocols.
    pub(crate) const ALL: [Self; 2] = [Self::Http1, Self::H2];
}

// === impl Reader ===

impl Reader {
    /// Asks for an event stream with these headers, given in lower case; returns when the head of
    /// the answer is there.
    pub(crate) async fn open(
        sidestream: &Sidestream,
        via: Via,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        match via {
            Via::Http1 => {
                let request = SseClient::get(sidestream.url(target));
                let request = headers.iter().fold(request, |request, (name, value)| {
                    request.header(name, value)
                });
                Self::Http1(Box::new(request.connect().await))
            }
            Via::H2 => {
                let mut connection = H2Client::connect(sidestream.url(target)).await;
                let headers = [&[("accept", "text/event-stream")], headers].concat();
                let answer = Box::new(connection.request("GET", target, &headers).await);
                Self::H2 {
                    _connection: connection,
                    answer,
                }
            }
        }
    }

    /// Status code.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Http1(client) => client.status(),
            Self::H2 { answer, .. } => answer.status(),
        }
    }

    /// Value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        match self {
            Self::Http1(client) => client.header(name),
            Self::H2 { answer, .. } => answer.header(name).map(str::to_owned),
        }
    }

    /// Body of a rejection.
    pub(crate) async fn json(&mut self) -> Value {
        let text = match self {
            Self::Http1(client) => client.body().await,
            Self::H2 { answer, .. } => answer.body().await,
        };
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// Next event.
    pub(crate) async fn next(&mut self) -> Event {
        match self {
            Self::Http1(client) => client.next().await,
            Self::H2 { answer, .. } => answer.next().await,
        }
    }

    /// The next events as texts, gaps as `gap:reason:resume`, up to the one with this text, which
    /// is left out. No id comes twice.
    pub(crate) async fn until(&mut self, end: &str) -> Vec<String> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let event = self.next().await;
            if event.data == end {
                break;
            }
            events.push(event);
        }
        let mut ids: Vec<&str> = plain(&events).map(|event| event.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), plain(&events).count(), "an id came twice");
        events.iter().map(summary).collect()
    }
}

fn plain(events: &[Event]) -> impl Iterator<Item = &Event> {
    events.iter().filter(|event| event.name == "message")
}

/// Data of an event, or `gap:reason:resume`.
pub(crate) fn summary(event: &Event) -> String {
    if event.name == "message" {
        return event.data.clone();
    }
    assert_eq!(event.name, "sidestream.gap", "{event:?}");
    let gap: Value = serde_json::from_str(&event.data).unwrap();
    format!(
        "gap:{}:{}",
        gap["reason"].as_str().unwrap(),
        gap["resume"].as_str().unwrap()
    )
}
