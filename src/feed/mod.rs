//! The waist: a log per source, a feed per set of filters, a cursor per client.
//!
//! ```text
//! LogWriter::append -> Log (order, limits, index) -> interest -> Feed::append -> wake
//!                                                                Cursor::read -> Batch
//! ```
//!
//! There is no queue per client: what a client has not read stands in the window of its feed, once for all readers.

pub mod batch;
pub mod budget;
pub mod buffer;
pub mod core_source;
pub mod cursor;
mod dedup;
mod dispatch;
pub mod encoded;
mod feed;
pub mod feed_map;
pub mod history;
pub mod limits;
mod notify;
mod opening;
pub mod options;
mod readers;
pub mod replay;
pub mod republish_source;
pub mod resume;
pub mod shed;
mod sink;
pub mod source;
mod subject_index;
#[cfg(test)]
mod tests;
mod throttle;
pub mod trie;
pub mod window;

pub use batch::{Batch, Copied, Item};
pub use budget::Budget;
pub use buffer::{History, StreamBuffer, StreamWriter};
pub use core_source::{
    Change, CoreSource, CoreWriter, FeedKey, Received, SubscribeRequest, SubscribeRequests,
    SubscriptionKey,
};
pub use cursor::{Cursor, CursorProbe, Lag, Read};
pub use history::Archive;
pub use limits::Limits;
pub use notify::answer;
pub use options::FeedOptions;
pub use replay::ReplaySlots;
pub use republish_source::{RepublishSource, RepublishWriter};
pub use resume::{Gap, GapReason, Outcome, Start};
pub use shed::{Shedder, Slow, SlowPolicy};
pub use sink::{DirectSink, EncodedRun, SendOutcome};
pub use source::{OpenError, Opened, Source};
pub use throttle::{Throttle, ThrottleDecision};
