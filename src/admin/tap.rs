//! Tap: the events of one route on the page, as they arrive.
//!
//! ```text
//! GET /page/tap?route=/events/{id}&{id}=42
//!   event: subjects  the filters that are read
//!   event: message   one event, as a line of NDJSON
//!   event: large     the beginning of an event above 16 KiB
//!   event: gap       events are missing in the source
//!   event: status    every second: events that were shown and skipped
//!   event: end       the reason; the tap is over
//! ```
//!
//! A tap reads with a cursor like a client, and never delays one. Above its rate it moves to the end
//! of the feed and counts what it skips, so that a busy route costs the thread of the probes
//! nothing. [`Taps`] opens the cursors; `app` implements it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::stream::event;
use crate::feed::{Batch, Cursor, Item, Read, ReadPolicy};

/// 2: a tap is for one person and one question.
pub(super) const TAPS_MAX: usize = 2;

/// 5 events in 250 ms, 20 per second: more than a person reads.
const EVENTS_PER_TICK: usize = 5;
const TICK: Duration = Duration::from_millis(250);

/// A status every fourth tick, which is also the heartbeat.
const TICKS_PER_STATUS: u32 = 4;

/// 1,000 events: then the operator starts another tap, or a real client.
const EVENTS_MAX: u64 = 1_000;

/// 16 KiB of one event, as much as the page shows in full.
const EVENT_BYTES_MAX: usize = 16 << 10;

/// 2 KiB of an event that is larger.
const HEAD_BYTES: usize = 2 << 10;

/// Routes that can be tapped.
pub trait Taps: Send + Sync {
    /// Returns the routes in force.
    fn routes(&self) -> Vec<TapRoute>;

    /// Opens a reader of each source of a route.
    fn open(&self, request: TapRequest) -> BoxFuture<'static, Result<Vec<Cursor>, TapError>>;
}

/// Route that can be tapped. The field names are the JSON keys of `/page/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TapRoute {
    /// Path as configured.
    pub route: String,
    /// Subjects and filters of `allow`, as configured.
    pub subjects: Vec<String>,
    /// Variables of the subjects, as written, with braces.
    pub variables: Vec<String>,
}

/// Request for a tap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapRequest {
    /// Path of the route as configured.
    pub route: String,
    /// Names of variables, as written, and their values. One without a value matches any.
    pub values: Vec<(String, String)>,
}

/// Reason why a tap cannot be opened. The texts are sentences for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapError {
    /// No route has this path.
    UnknownRoute,
    /// A value is not valid.
    Filter(String),
    /// The subjects are outside of those of the route.
    NotAllowed(String),
    /// NATS or memory is not available.
    Unavailable(&'static str),
}

impl TapRequest {
    /// Parses a query. Empty values count as missing.
    pub(super) fn parse(query: &str) -> Self {
        let mut request = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "route" => request.route = value.into_owned(),
                _ if value.is_empty() => {}
                _ => request.values.push((name.into_owned(), value.into_owned())),
            }
        }
        request
    }
}

/// Tap in progress.
struct Tap {
    cursors: Vec<Cursor>,
    batch: Batch,
    ticks: Interval,
    tick: u32,
    /// Events that may be shown until the next tick.
    left: usize,
    shown: u64,
    skipped: u64,
    /// End of the admin port.
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: OwnedSemaphorePermit,
}

/// Result of a read.
enum Next {
    Event(Bytes),
    /// The source has ended.
    Ended,
}

/// Returns the events of a tap.
pub(super) fn events(
    cursors: Vec<Cursor>,
    ended: impl Future<Output = ()> + Send + 'static,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Bytes> + Send {
    let filters: Vec<String> = cursors
        .iter()
        .flat_map(|cursor| {
            let probe = cursor.probe();
            let filters = probe.filters().filters().iter();
            filters.map(ToString::to_string).collect::<Vec<_>>()
        })
        .collect();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let tap = Tap {
        cursors,
        batch: Batch::default(),
        ticks,
        tick: 0,
        left: EVENTS_PER_TICK,
        shown: 0,
        skipped: 0,
        ended: Box::pin(ended),
        _permit: permit,
    };
    let open = event("subjects", &json!(filters));
    stream::unfold((Some(tap), Some(open)), |(tap, first)| async move {
        if let Some(first) = first {
            return Some((first, (tap, None)));
        }
        let mut tap = tap?;
        let (bytes, is_over) = tap.next().await;
        Some((bytes, ((!is_over).then_some(tap), None)))
    })
}

impl Tap {
    /// Returns the next event, and whether it is the last one.
    async fn next(&mut self) -> (Bytes, bool) {
        loop {
            if self.shown == EVENTS_MAX {
                return (end("it has shown 1,000 events"), true);
            }
            let Self {
                cursors,
                batch,
                ticks,
                left,
                ended,
                ..
            } = self;
            tokio::select! {
                biased;
                () = ended => return (end("the sidecar has ended"), true),
                _ = ticks.tick() => if let Some(status) = self.begin_tick() {
                    return (status, false);
                },
                next = poll_fn(|context| read(cursors, batch, context)), if *left > 0 => match next {
                    Next::Event(bytes) => {
                        self.left -= 1;
                        self.shown += 1;
                        return (bytes, false);
                    }
                    Next::Ended => return (end("a reload has removed the source, or NATS rejects it"), true),
                },
            }
        }
    }

    /// Begins a tick: after one that has shown its events, it goes on at the end of the feeds.
    fn begin_tick(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            let skipped: u64 = self.cursors.iter_mut().map(Cursor::skip_to_end).sum();
            self.skipped += skipped;
        }
        self.left = EVENTS_PER_TICK;
        self.tick = (self.tick + 1) % TICKS_PER_STATUS;
        let status = json!({ "shown": self.shown, "skipped": self.skipped });
        (self.tick == 0).then(|| event("status", &status))
    }
}

fn end(reason: &str) -> Bytes {
    event("end", &json!({ "reason": reason }))
}

/// Reads one event of any cursor.
fn read(cursors: &mut [Cursor], batch: &mut Batch, context: &mut Context<'_>) -> Poll<Next> {
    for cursor in cursors {
        batch.items.clear();
        // One item: the budget is smaller than any.
        match cursor.poll_read(context, batch, &mut ReadPolicy::all(1)) {
            Poll::Pending => {}
            Poll::Ready(Read::Ended) => return Poll::Ready(Next::Ended),
            Poll::Ready(Read::Some) => {
                let shown = batch.items.drain(..).find_map(shown);
                if let Some(shown) = shown {
                    return Poll::Ready(Next::Event(shown));
                }
                context.waker().wake_by_ref();
            }
        }
    }
    Poll::Pending
}

fn shown(item: Item) -> Option<Bytes> {
    match item {
        Item::Event { encoding, .. } => Some(line(encoding.bytes())),
        Item::Gap { gap, .. } => {
            let gap = json!({ "reason": gap.reason.as_str(), "missed": gap.missed });
            Some(event("gap", &gap))
        }
        // Only readers that copy, and feeds that compress, have them.
        Item::Copied { .. } | Item::Coded { .. } => None,
    }
}

/// Returns the event of a line of NDJSON.
fn line(line: &[u8]) -> Bytes {
    if line.len() <= EVENT_BYTES_MAX {
        return event("message", &String::from_utf8_lossy(line.trim_ascii_end()));
    }
    let head = String::from_utf8_lossy(&line[..HEAD_BYTES]);
    event("large", &json!({ "bytes": line.len(), "head": head }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_names_a_route_and_the_values_of_its_variables() {
        let request = TapRequest::parse(
            "route=%2Fa%2F%7Bid%7D&%7Bid%7D=42&%7Bquery.s%7D=a.%3E&%7Bquery.s%7D=b&%7Bx%7D=",
        );
        let values = [("{id}", "42"), ("{query.s}", "a.>"), ("{query.s}", "b")];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let expected = TapRequest {
            route: "/a/{id}".into(),
            values: values.to_vec(),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn large_event_is_shown_by_its_beginning() {
        let small = line(b"{\"id\":\"a\"}\n");
        assert_eq!(small, "event: message\ndata: {\"id\":\"a\"}\n\n");
        let large = [&b"{\"data\":\""[..], &[b'x'; EVENT_BYTES_MAX]].concat();
        let shown = line(&large);
        assert!(shown.starts_with(b"event: large\ndata: {\"bytes\":16393,"));
        assert!(shown.len() < HEAD_BYTES + 100);
    }
}
