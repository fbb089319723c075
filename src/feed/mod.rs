//! The fan-out core: events of every source, once in memory, to any number of readers.
//!
//! A source stores its recent events once. A `feed` selects the events that match one set of
//! filters, shows them as one route does, and is shared by all clients with the same filters and
//! [`FeedOptions`]. Each client is one record in the feed, with its position; a [`Cursor`] is the
//! handle of that record. There is no queue per client: unread events remain in the window of the
//! feed, once for all its readers, and the lag of a client is the distance between its position and
//! the end of the window.
//!
//! ```text
//! nats::jetstream -> StreamWriter::append -> StreamBuffer -> SubjectTrie --+
//! nats::core      -> CoreWriter::append ---> Subscriptions ----------------+-> Feed -> Window
//! nats::republish -> RepublishWriter::append ------------------------------+     |
//!                                                                                v
//!    idle subscriber: Dispatcher -> EncodedRun -> DirectSink (socket)  ShardNotifier
//!    its task: Cursor::poll_read -> Batch -> socket             <------------+
//! ```
//!
//! The path of an event, file by file:
//!
//! 1. [`buffer`], [`core_source`] and [`republish_source`] implement [`Source`]. The writer of each
//!    encodes an event once ([`encoded`]), within the memory [`budget`].
//! 2. `trie` and `subject_index` find the feeds that match a subject, and the events that match a
//!    filter.
//! 3. `feed` holds one [`window`] and the records of its `subscribers`. `feed_map` creates feeds on
//!    demand and removes them after an idle period.
//! 4. `notify` coalesces wake-ups, one per shard. `dispatch` writes to idle subscribers directly,
//!    through a [`DirectSink`]; every other one is woken.
//! 5. [`cursor`] reads into a [`batch`]. [`shed`] and [`Throttle`] decide which events a slow or
//!    rate-limited reader skips.
//! 6. [`resume`] holds the rules for a `Last-Event-ID`, `opening` applies them; [`begin`] finds the
//!    position of a reader without one. A reader whose position is older than the window reads the
//!    [`archive`] through a shared [`replay`] session.
//!
//! Lock order: state of a source (`StreamBuffer`, `FeedMap`) before the state of a feed; the state
//! of a replay pool before the state of a feed. No lock is held while a task is woken.

pub mod archive;
pub mod batch;
pub mod begin;
pub mod blocks;
pub mod budget;
pub mod buffer;
pub mod compression;
pub mod core_source;
pub mod cursor;
mod dedup;
mod dispatch;
pub mod encoded;
mod feed;
pub mod feed_map;
mod gap;
pub mod limits;
mod notify;
mod open_error;
mod opening;
pub mod options;
mod origin;
mod prefetch;
mod read_policy;
pub mod replay;
pub mod republish_source;
pub mod resume;
pub mod shed;
mod sink;
pub mod snapshot;
pub mod source;
mod subject_index;
mod subscribers;
#[cfg(test)]
mod tests;
mod throttle;
pub mod trie;
pub mod window;

pub use archive::Archive;
pub use batch::{Batch, Copied, Item};
pub use begin::Begin;
pub use blocks::{CodedEvents, EventBlock};
pub use budget::Budget;
pub use buffer::writer::StreamWriter;
pub use buffer::{ArchiveAccess, StreamBuffer};
pub use compression::Compression;
pub use core_source::{Change, CoreSource, CoreWriter, FeedKey, Received, SubscriptionKey};
pub use cursor::{Cursor, CursorProbe, Lag, Read, State, StateRead};
pub use dispatch::run_dispatcher;
pub use feed_map::{SubscribeRequest, SubscribeRequests};
pub use gap::{Gap, GapReason};
pub use limits::{Limits, SourceSize};
pub use open_error::OpenError;
pub use opening::Opened;
pub use options::FeedOptions;
pub use read_policy::ReadPolicy;
pub use replay::ReplaySlots;
pub use republish_source::{RepublishSource, RepublishWriter};
pub use resume::{Outcome, Start};
pub use shed::{Shedder, Slow, SlowPolicy};
pub use sink::{DirectSink, EncodedRun, SendOutcome};
pub use snapshot::{SnapshotReader, StateItem};
pub use source::{OpenFuture, Source};
pub use throttle::{Throttle, ThrottleDecision};
