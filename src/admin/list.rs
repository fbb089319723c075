//! The body of `/connections`: a JSON list that is written bit by bit, as fast as the client reads.
//!
//! With a hundred thousand event streams a list has many megabytes. Only [`PIECE_BYTES`] of it exist at a time, and event
//! streams are described as their turn comes; a client that stops reading holds one piece, until the connection's deadline.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::OwnedSemaphorePermit;

use super::connections::{Filter, listed};
use crate::presence::{Entry, Key, SHARDS, StreamHandle, StreamTable};

/// 16 KiB: some thirty entries, as much as a socket takes at once.
const PIECE_BYTES: usize = 16 * 1024;

/// A list that is being written.
pub(super) struct List {
    entries: Entries,
    /// Text before the entries, until it is written.
    head: Option<&'static str>,
    is_first: bool,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

/// Entries that are described when their turn comes.
pub(super) enum Entries {
    /// Event streams of this pod.
    Pod(Members),
    /// What the registry over all pods has, which bounds their number.
    PresenceStore {
        /// Their number.
        total: usize,
        /// Whether these are all.
        is_complete: bool,
        /// The entries themselves.
        found: vec::IntoIter<(Key, Entry)>,
    },
}

/// Event streams of this pod that pass a filter, one part of the table at a time.
pub(super) struct Members {
    registry: StreamTable,
    filter: Filter,
    left: usize,
    total: u64,
    next_shard: u32,
    members: vec::IntoIter<Arc<dyn StreamHandle>>,
}

impl List {
    pub(super) fn new(entries: Entries, permit: OwnedSemaphorePermit) -> Self {
        let head = match &entries {
            Entries::Pod(_) => "{\"connections\":[",
            Entries::PresenceStore {
                is_complete: true, ..
            } => "{\"scope\":\"cluster\",\"complete\":true,\"connections\":[",
            Entries::PresenceStore {
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

    fn piece(&mut self) -> String {
        let mut piece = String::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
        piece.push_str(self.head.take().unwrap_or_default());
        while piece.len() < PIECE_BYTES {
            let Some(entry) = self.entries.next() else {
                piece.push_str(&format!("],\"total\":{}}}\n", self.entries.total()));
                self.is_over = true;
                break;
            };
            if !std::mem::take(&mut self.is_first) {
                piece.push(',');
            }
            piece.push_str(&entry);
        }
        piece
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
        Poll::Ready(Some(Ok(Frame::data(self.piece().into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

impl Entries {
    /// The next one as JSON.
    fn next(&mut self) -> Option<String> {
        match self {
            Self::Pod(members) => members
                .next()
                .map(|member| serde_json::to_string(&member.describe()).unwrap_or_default()),
            Self::PresenceStore { found, .. } => {
                found.next().map(|entry| listed(&entry).to_string())
            }
        }
    }

    fn total(&self) -> u64 {
        match self {
            Self::Pod(members) => members.total,
            Self::PresenceStore { total, .. } => *total as u64,
        }
    }
}

impl Members {
    pub(super) fn new(registry: StreamTable, filter: Filter, limit: usize) -> Self {
        Self {
            registry,
            filter,
            left: limit,
            total: 0,
            next_shard: 0,
            members: Vec::new().into_iter(),
        }
    }

    /// The next one within the limit. Those beyond are counted, and cost a comparison each.
    fn next(&mut self) -> Option<Arc<dyn StreamHandle>> {
        loop {
            for member in self.members.by_ref() {
                if self.filter.passes(&*member) {
                    self.total += 1;
                    if let Some(left) = self.left.checked_sub(1) {
                        self.left = left;
                        return Some(member);
                    }
                }
            }
            if self.next_shard == SHARDS {
                return None;
            }
            self.members = self.registry.shard(self.next_shard).into_iter();
            self.next_shard += 1;
        }
    }
}
