//! Body of `/connections`: a JSON list that is written in chunks, as fast as the client reads.
//!
//! With 100,000 event streams a list has many megabytes. Only [`CHUNK_BYTES`] of it exist at a
//! time, and each event stream is described when it is written. A client that stops reading holds
//! one chunk until the deadline of the connection. The table of event streams is read shard by
//! shard.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::presence::{Entry, Key, SHARDS, StreamHandle, StreamTable};

/// 16 KiB: about thirty entries, as much as a socket accepts at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// List that is being written.
pub(super) struct List {
    entries: Entries,
    /// Text before the entries; taken when it is written.
    head: Option<&'static str>,
    is_first: bool,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

/// Entries of a list, described one by one.
pub(super) enum Entries {
    /// Event streams of this pod.
    Pod(PodStreams),
    /// Entries of the presence bucket; the query bounds their number.
    Cluster {
        /// Their number.
        total: usize,
        /// False if the client has further entries.
        is_complete: bool,
        /// The entries.
        found: vec::IntoIter<(Key, Entry)>,
    },
}

/// Event streams of this pod that match a filter, read shard by shard.
pub(super) struct PodStreams {
    streams: StreamTable,
    filter: Filter,
    left: usize,
    total: u64,
    next_shard: u32,
    streams_of_shard: vec::IntoIter<Arc<dyn StreamHandle>>,
}

impl List {
    pub(super) fn new(entries: Entries, permit: OwnedSemaphorePermit) -> Self {
        let head = match &entries {
            Entries::Pod(_) => "{\"connections\":[",
            Entries::Cluster {
                is_complete: true, ..
            } => "{\"scope\":\"cluster\",\"complete\":true,\"connections\":[",
            Entries::Cluster {
                is_complete: false, ..
            } => "{\"scope\":\"cluster\",\"complete\":false,\"connections\":[",
        };
        Self {
            entries,
            head: Some(head),
            is_first: true,
            is_over: false,
            _permit: permit,
        }
    }

    fn chunk(&mut self) -> String {
        let mut chunk = String::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        chunk.push_str(self.head.take().unwrap_or_default());
        while chunk.len() < CHUNK_BYTES {
            let Some(entry) = self.entries.next() else {
                chunk.push_str(&format!("],\"total\":{}}}\n", self.entries.total()));
                self.is_over = true;
                break;
            };
            if !std::mem::take(&mut self.is_first) {
                chunk.push(',');
            }
            chunk.push_str(&entry);
        }
        chunk
    }
}

impl Body for List {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(self.chunk().into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

impl Entries {
    /// Returns the next entry as JSON.
    fn next(&mut self) -> Option<String> {
        match self {
            Self::Pod(streams) => streams
                .next()
                .map(|stream| serde_json::to_string(&stream.describe()).unwrap_or_default()),
            Self::Cluster { found, .. } => found.next().map(|entry| entry_json(&entry).to_string()),
        }
    }

    fn total(&self) -> u64 {
        match self {
            Self::Pod(streams) => streams.total,
            Self::Cluster { total, .. } => *total as u64,
        }
    }
}

impl PodStreams {
    pub(super) fn new(streams: StreamTable, filter: Filter, limit: usize) -> Self {
        Self {
            streams,
            filter,
            left: limit,
            total: 0,
            next_shard: 0,
            streams_of_shard: Vec::new().into_iter(),
        }
    }

    /// Returns the next event stream within the limit. Those above the limit are only counted.
    fn next(&mut self) -> Option<Arc<dyn StreamHandle>> {
        loop {
            for stream in self.streams_of_shard.by_ref() {
                if self.filter.matches(&*stream) {
                    self.total += 1;
                    if let Some(left) = self.left.checked_sub(1) {
                        self.left = left;
                        return Some(stream);
                    }
                }
            }
            if self.next_shard == SHARDS {
                return None;
            }
            self.streams_of_shard = self.streams.shard(self.next_shard).into_iter();
            self.next_shard += 1;
        }
    }
}

/// Conditions for a listed event stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) client: Option<String>,
    pub(super) route: Option<String>,
}

impl Filter {
    pub(super) fn matches(&self, stream: &dyn StreamHandle) -> bool {
        self.matches_route(stream.route())
            && self
                .client
                .as_ref()
                .is_none_or(|client| client == stream.client())
    }

    pub(super) fn matches_route(&self, route: &str) -> bool {
        self.route.as_ref().is_none_or(|wanted| wanted == route)
    }
}

fn entry_json((key, entry): &(Key, Entry)) -> Value {
    let Entry {
        pod,
        route,
        subjects,
        unlisted,
        state,
        since,
        last_event_id,
        reason,
        claimed,
        expires,
    } = entry;
    json!({
        "client": key.client,
        "connection": key.connection,
        "pod": pod,
        "route": route,
        "subjects": subjects,
        "subjects_total": unlisted.as_ref().map_or(subjects.len(), |unlisted| unlisted.total),
        "state": state,
        "reason": reason,
        "claimed": claimed,
        "since": since,
        "expires": expires,
        "last_event_id": last_event_id,
    })
}
