//! Snapshot: the last event of each subject that some filters select, at one position of a source.
//!
//! A client that begins with the latest state receives the snapshot, and then every event after its
//! position, so that nothing is missing and nothing comes twice, whatever is written meanwhile. Any
//! position serves: the state after a snapshot and the events that follow is the same. Clients that
//! open at about the same time therefore share one snapshot, and so do those that open while it is
//! read (`Snapshots`). It is shared only while every later event is in memory: a history read again
//! from the stream may lack removals that were purged meanwhile. For the same reason a reader that
//! falls out of memory, or misses events, receives another snapshot ([`Cursor::read_state`]).
//!
//! The events are shared and charged to the budget as all others; they are freed with the last client
//! that has not received all of them. The snapshots of a source use at most half of the budget.
//!
//! [`Cursor::read_state`]: super::Cursor::read_state
//!
//! A client that needs the whole state in one piece shares it, too ([`SnapshotReader::document`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::archive::{Unavailable, state_bytes};
use super::encoded::EncodedEvent;
use super::gap::Gap;
use super::open_error::OpenError;
use super::options::FeedOptions;
use super::replay::ReplayPool;
use crate::encoding::Encoding;
use crate::event::Position;
use crate::subject::FilterSet;

/// 1 s: clients of a drained pod share a snapshot, and events since then are still in the window.
const MAX_AGE: Duration = Duration::from_secs(1);

/// 1,000 events are encoded in a turn, about a millisecond: event streams of the thread wait.
const TURN: usize = 1000;

/// Last event of each subject at a position, in the order of the source.
#[derive(Debug)]
pub(super) struct Snapshot {
    position: Position,
    events: Vec<Arc<EncodedEvent>>,
    /// Part of `used`.
    bytes: usize,
    /// Bytes of the snapshots of the source, and their bound.
    used: Arc<AtomicUsize>,
    used_max: usize,
    /// One for each way in which feeds show the events.
    documents: Mutex<Vec<(Arc<FeedOptions>, Arc<SharedDocument>)>>,
}

/// All events of a snapshot in one piece, which clients share.
#[derive(Clone, Debug)]
pub struct Document {
    /// The piece.
    pub bytes: Bytes,
    /// Number of its events.
    pub events: u64,
    /// Its gaps: events without a valid form in the version of the feed.
    pub gaps: Arc<[Gap]>,
    /// Time of receipt of the first one.
    pub received: Option<std::time::Instant>,
}

/// `None` inside: the document is larger than the memory that is left.
type SharedDocument = OnceCell<Option<Document>>;

/// Bytes of a document, counted until the last client has received them.
struct CountedBytes {
    bytes: BytesMut,
    used: Arc<AtomicUsize>,
}

/// Reader of a snapshot, as the feeds of a route show its events.
#[derive(Clone, Debug)]
pub struct SnapshotReader {
    snapshot: Arc<Snapshot>,
    options: Arc<FeedOptions>,
    next: usize,
}

/// Next element of a snapshot.
#[derive(Debug)]
pub enum StateItem {
    /// Event, and the time of its receipt.
    Event {
        /// Encoding in the feed.
        encoding: Encoding,
        /// Time of its receipt.
        received: std::time::Instant,
    },
    /// The payload of an event has no form in the version of the feed.
    Gap(Gap),
}

/// Snapshots of one source that are read now, or were read a moment ago.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    by_filters: Mutex<HashMap<FilterSet, Arc<Shared>>>,
    /// Bytes of the snapshots that clients read.
    used: Arc<AtomicUsize>,
}

/// Snapshot of one set of filters. Locked while it is read, so that concurrent callers share it.
type Shared = tokio::sync::Mutex<Option<(Instant, Arc<Snapshot>)>>;

impl Snapshots {
    /// Returns the snapshot of some filters: one that is at most [`MAX_AGE`] old and not older than
    /// `floor`, or a new one. A new one is not older than the position `reader`.
    pub(super) async fn get(
        &self,
        replay_pool: &ReplayPool,
        filters: &FilterSet,
        floor: Position,
        reader: Position,
    ) -> Result<Arc<Snapshot>, OpenError> {
        self.sweep();
        let shared = Arc::clone(self.lock().entry(filters.clone()).or_default());
        let mut shared = shared.lock().await;
        if let Some((read, snapshot)) = &*shared
            && read.elapsed() < MAX_AGE
            && snapshot.position.tag == floor.tag
            && snapshot.position.seq >= floor.seq
        {
            return Ok(Arc::clone(snapshot));
        }
        *shared = None;
        let replays = replay_pool.slots();
        let _permit = replays.locate().await.ok_or(OpenError::TooManyReplays)?;
        let read = Instant::now();
        let snapshot = self.read(replay_pool, filters, reader).await?;
        replays.metrics.state_reads_total.inc();
        *shared = Some((read, Arc::clone(&snapshot)));
        Ok(snapshot)
    }

    async fn read(
        &self,
        replay_pool: &ReplayPool,
        filters: &FilterSet,
        reader: Position,
    ) -> Result<Arc<Snapshot>, OpenError> {
        let budget = replay_pool.budget();
        // Half of the memory of all windows, as for feeds.
        let used_max = budget.max() / 2;
        let bytes_max = used_max.saturating_sub(self.used.load(Ordering::Relaxed));
        let latest = replay_pool.archive().latest(filters, bytes_max).await;
        let latest = latest.map_err(|error| match error {
            Unavailable::Rejected(_) => OpenError::Rejected,
            Unavailable::Temporary(_) | Unavailable::Changed => OpenError::NotReady,
        })?;
        if latest.position.tag == reader.tag && latest.position.seq < reader.seq {
            // The answer of a server that was the leader, or the stream was restored.
            return Err(OpenError::NotReady);
        }
        let Some(events) = latest.events else {
            return Err(OpenError::StateTooLarge);
        };
        let bytes = events.iter().map(state_bytes).sum();
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let mut snapshot = Snapshot {
            position: latest.position,
            bytes,
            used: Arc::clone(&self.used),
            used_max,
            documents: Mutex::default(),
            events: Vec::with_capacity(events.len()),
        };
        for event in events {
            snapshot.events.push(EncodedEvent::new(event, budget));
            if snapshot.events.len().is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(Arc::new(snapshot))
    }

    /// Frees snapshots that no client shares any longer.
    pub(super) fn sweep(&self) {
        let freed: Vec<_> = self
            .lock()
            .extract_if(|key, shared| !is_needed(key, shared))
            .collect();
        drop(freed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FilterSet, Arc<Shared>>> {
        self.by_filters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if the snapshot of these filters is read now, or can be shared.
fn is_needed(_: &FilterSet, shared: &mut Arc<Shared>) -> bool {
    Arc::strong_count(shared) > 1
        || shared.try_lock().is_ok_and(|shared| {
            let read = shared.as_ref().map(|(read, _)| read);
            read.is_some_and(|read| read.elapsed() < MAX_AGE)
        })
}

impl Snapshot {
    /// Every later event follows the snapshot.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Starts to read it as the feeds with these options show it.
    pub(super) fn read(self: Arc<Self>, options: &Arc<FeedOptions>) -> SnapshotReader {
        SnapshotReader {
            snapshot: self,
            options: Arc::clone(options),
            next: 0,
        }
    }
}

impl SnapshotReader {
    /// Returns the whole state in one piece, the same for all readers with these options. `write`
    /// makes it of the events and at most as many bytes, once.
    ///
    /// `None`: it is larger.
    pub async fn document<W, F>(&self, write: W) -> Option<Document>
    where
        W: FnOnce(Self, usize) -> F,
        F: Future<Output = Option<BytesMut>>,
    {
        let Snapshot { used, used_max, .. } = &*self.snapshot;
        let shared = self.snapshot.shared_document(&self.options);
        let document = shared.get_or_init(|| async {
            let bytes_max = used_max.saturating_sub(used.load(Ordering::Relaxed));
            let bytes = write(self.clone(), bytes_max).await?;
            used.fetch_add(bytes.len(), Ordering::Relaxed);
            let used = Arc::clone(used);
            let (events, gaps) = (&self.snapshot.events, self.gaps());
            Some(Document {
                bytes: Bytes::from_owner(CountedBytes { bytes, used }),
                events: (events.len() - gaps.len()) as u64,
                gaps,
                received: events.first().map(|encoded| encoded.event.received),
            })
        });
        document.await.clone()
    }

    /// Gaps in place of events without a valid form in the version of the feed.
    fn gaps(&self) -> Arc<[Gap]> {
        let Some(converter) = &self.options.converter else {
            return Arc::default();
        };
        let events = self.snapshot.events.iter();
        let reasons = events.filter_map(|event| self.options.converted(converter, event).err());
        reasons.map(Gap::one).collect()
    }
}

impl Snapshot {
    /// Returns the document of feeds with these options, which may not have been made.
    fn shared_document(&self, options: &Arc<FeedOptions>) -> Arc<SharedDocument> {
        let documents = self.documents.lock();
        let mut documents = documents.unwrap_or_else(PoisonError::into_inner);
        let known = documents.iter().find(|(known, _)| known == options);
        if let Some((_, document)) = known {
            return Arc::clone(document);
        }
        let document = Arc::<SharedDocument>::default();
        documents.push((Arc::clone(options), Arc::clone(&document)));
        document
    }
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Iterator for SnapshotReader {
    type Item = StateItem;

    fn next(&mut self) -> Option<Self::Item> {
        let encoded = self.snapshot.events.get(self.next)?;
        self.next += 1;
        let event = |encoded: &EncodedEvent| StateItem::Event {
            encoding: self.options.encoding(encoded),
            received: encoded.event.received,
        };
        Some(match &self.options.converter {
            None => event(encoded),
            Some(converter) => match self.options.converted(converter, encoded) {
                Ok(converted) => event(&converted),
                Err(reason) => StateItem::Gap(Gap::one(reason)),
            },
        })
    }
}
