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
pub use buffer::{Log, LogWriter, Past};
pub use core_source::{
    Change, CoreWriter, Demand, Demands, FeedKey, OnDemand, Received, SubscriptionKey,
};
pub use cursor::{Cursor, Lag, Read, Standing};
pub use history::Archive;
pub use limits::Limits;
pub use notify::answer;
pub use options::Profile;
pub use replay::Replays;
pub use republish_source::{PositionedWriter, Republished};
pub use resume::{Gap, GapReason, Outcome, Start};
pub use shed::{Policy, Relief, Slow};
pub use sink::{Handed, Outlet, Piece};
pub use source::{OpenError, Opened, Source};
pub use throttle::{Pace, Verdict};
