//! The writing ends of the waist (interfaces; bodies follow).

use tokio::sync::{mpsc, watch};

use crate::sse::{Event, Tag};
use crate::subject::FilterSet;

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Older than what the source retains.
    Expired,
    /// After the end of the source: it was restored from an older snapshot.
    Ahead,
    /// The source is another one now.
    Recreated,
    /// The core subjects of another process.
    Restarted,
    /// The client's id is none.
    Invalid,
    /// NATS lost core messages, or a hole in a source cannot be repaired.
    Upstream,
    /// The client was too slow.
    Slow,
    /// The client was too slow and got the newest of each subject.
    Conflated,
}

/// The writing end of a log: one JetStream source for the whole pod. Not `Clone`; dropping it ends the log.
#[derive(Debug)]
pub struct LogWriter {}

impl LogWriter {
    /// Begins to write (or begins again with another tag, when the stream was recreated: every reader gets a gap).
    /// `head` is the sequence before the first event that will be appended.
    pub fn begin(&mut self, _tag: Tag, _head: u64) {}
    /// The last sequence passed: where to continue from after a reconnect.
    pub fn head(&self) -> Option<(Tag, u64)> {
        None
    }
    /// Appends events in ascending order of sequence; one lock and one wake for all.
    pub fn append(&mut self, _events: Vec<Event>) {}
    /// Says that the source is known to have nothing for us up to this sequence.
    pub fn advance(&mut self, _seq: u64) {}
    /// Tells every reader that events are missing here.
    pub fn gap(&mut self, _reason: GapReason, _missed: Option<u64>) {}
}

/// The writing end of a feed on demand: core subjects. Not `Clone`; dropping it ends the feed.
#[derive(Debug)]
pub struct FeedWriter {
    wanted: watch::Receiver<bool>,
}

impl FeedWriter {
    /// Says that the subscription stands at the server: readers that wait to begin may begin.
    pub fn established(&mut self) {}
    /// Appends events in ascending order of sequence.
    pub fn append(&mut self, _events: Vec<Event>) {}
    /// Tells every reader that events are missing here.
    pub fn gap(&mut self, _reason: GapReason, _missed: Option<u64>) {}
    /// Returns when nobody reads the feed any more and its linger is over.
    pub async fn unwanted(&mut self) {
        // An error is the end of the feed itself.
        if self.wanted.wait_for(|wanted| !wanted).await.is_err() {}
    }
}

/// This set of filters is wanted from core NATS.
#[derive(Debug)]
pub struct Demand {
    /// What to subscribe to (`FilterSet::disjoint`).
    pub filters: FilterSet,
    /// Where its events go.
    pub writer: FeedWriter,
}

/// The demands of core subjects, as the upstream side receives them (bounded).
pub type Demands = mpsc::Receiver<Demand>;
