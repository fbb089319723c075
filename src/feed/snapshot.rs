//! Snapshot: the last event of each subject that some filters select, at one position of a source.
//!
//! A client that begins with the latest state receives the snapshot, and then every event after its
//! position, so that nothing is missing and nothing comes twice, whatever is written meanwhile. Any
//! position serves: the state after a snapshot and the events that follow is the same. Clients that
//! open at about the same time therefore share one snapshot, and so do those that open while it is
//! read (`Snapshots`). It is shared only while every later event is in memory: a history read again
//! from the stream may lack removals that were purged meanwhile.
//!
//! The events are shared and charged to the budget as all others; they are freed with the last client
//! that has not received all of them. The snapshots of a source use at most half of the budget.
//!
//! A client that needs the whole state in one piece shares it, too ([`SnapshotReader::document`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::archive::{Archive, Unavailable};
use super::budget::Budget;
use super::encoded::EncodedEvent;
use super::gap::Gap;
use super::open_error::OpenError;
use super::options::FeedOptions;
use super::replay::ReplaySlots;
use crate::encoding::Encoding;
use crate::event::Position;
use crate::subject::FilterSet;

/// 1 s: clients of a drained pod share a snapshot, and events since then are still in the window.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Last event of each subject at a position, in the order of the source.
#[derive(Debug)]
pub(super) struct Snapshot {
    position: Position,
    events: Vec<Arc<EncodedEvent>>,
    /// Payloads, which count in `used`.
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
    /// Number of its gaps: events without a form in the version of the feed.
    pub gaps: u64,
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
    /// `floor`, or a new one.
    pub(super) async fn get(
        &self,
        archive: &dyn Archive,
        replays: &ReplaySlots,
        budget: &Arc<Budget>,
        filters: &FilterSet,
        floor: Position,
    ) -> Result<Arc<Snapshot>, OpenError> {
        let shared = {
            let mut known = self
                .by_filters
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, shared| Arc::strong_count(shared) > 1 || is_recent(shared));
            Arc::clone(known.entry(filters.clone()).or_default())
        };
        let mut shared = shared.lock().await;
        if let Some((read, snapshot)) = &*shared
            && read.elapsed() < MAX_AGE
            && snapshot.position.tag == floor.tag
            && snapshot.position.seq >= floor.seq
        {
            return Ok(Arc::clone(snapshot));
        }
        *shared = None;
        let _permit = replays.locate().await.ok_or(OpenError::TooManyReplays)?;
        let read = Instant::now();
        // Half of the memory of all windows, as for feeds.
        let used_max = budget.max() / 2;
        let bytes_max = used_max.saturating_sub(self.used.load(Ordering::Relaxed));
        let latest = archive
            .latest(filters, bytes_max)
            .await
            .map_err(|error| match error {
                Unavailable::Rejected(_) => OpenError::Rejected,
                Unavailable::Temporary(_) | Unavailable::Changed => OpenError::NotReady,
            })?;
        let Some(events) = latest.events else {
            return Err(OpenError::StateTooLarge);
        };
        let bytes = events.iter().map(|event| event.data.len()).sum();
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let events = events.into_iter();
        let snapshot = Arc::new(Snapshot {
            position: latest.position,
            bytes,
            used: Arc::clone(&self.used),
            used_max,
            documents: Mutex::default(),
            events: events
                .map(|event| EncodedEvent::new(event, budget))
                .collect(),
        });
        *shared = Some((read, Arc::clone(&snapshot)));
        Ok(snapshot)
    }
}

/// False if the snapshot can be forgotten.
fn is_recent(shared: &Shared) -> bool {
    shared.try_lock().map_or(true, |shared| {
        shared
            .as_ref()
            .is_some_and(|(read, _)| read.elapsed() < MAX_AGE)
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
            let (events, gaps) = (&self.snapshot.events, self.unconverted());
            Some(Document {
                bytes: Bytes::from_owner(CountedBytes { bytes, used }),
                events: (events.len() - gaps) as u64,
                gaps: gaps as u64,
                received: events.first().map(|encoded| encoded.event.received),
            })
        });
        document.await.clone()
    }

    /// Number of events without a form in the version of the feed.
    fn unconverted(&self) -> usize {
        let Some(converter) = &self.options.converter else {
            return 0;
        };
        let events = self.snapshot.events.iter();
        let failed = events.filter(|event| self.options.converted(converter, event).is_none());
        failed.count()
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
                Some(converted) => event(&converted),
                None => StateItem::Gap(Gap::CONVERSION),
            },
        })
    }
}
