//! The waist: a log per source, a feed per set of filters, a cursor per client.
//!
//! ```text
//! LogWriter::append -> Log (order, limits, index) -> interest -> Feed::append -> wake
//!                                                                Cursor::read -> Batch
//! ```
//!
//! There is no queue per client: what a client has not read stands in the window of its feed, once for all readers.

pub mod archive;
pub mod batch;
mod bell;
pub mod budget;
mod courier;
pub mod cursor;
pub mod demand;
mod feed;
mod index;
pub mod interest;
pub mod lease;
pub mod limits;
pub mod log;
pub mod logged;
mod opening;
mod outlet;
mod pace;
pub mod profile;
mod readers;
mod repeats;
pub mod replay;
pub mod republished;
pub mod resume;
pub mod slow;
pub mod source;
#[cfg(test)]
mod tests;
pub mod window;

pub use archive::Archive;
pub use batch::{Batch, Copied, Item};
pub use bell::answer;
pub use budget::Budget;
pub use cursor::{Cursor, Lag, Read, Standing};
pub use demand::{
    Change, CoreWriter, Demand, Demands, FeedKey, OnDemand, Received, SubscriptionKey,
};
pub use limits::Limits;
pub use log::{Log, LogWriter, Past};
pub use outlet::{Handed, Outlet, Piece};
pub use pace::{Pace, Verdict};
pub use profile::Profile;
pub use replay::Replays;
pub use republished::{PositionedWriter, Republished};
pub use resume::{Gap, GapReason, Outcome, Start};
pub use slow::{Policy, Relief, Slow};
pub use source::{OpenError, Opened, Source};
