//! What one read brings: encoded events and gaps, in order.

use std::time::Instant;

use crate::sse::encode::Frame;
use crate::sse::{Component, Tier};

use super::Gap;

/// The items of one read. Kept by whoever reads and used again: a read allocates nothing.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of the source.
    pub items: Vec<Item>,
}

/// One thing that a reader is given.
#[derive(Debug)]
pub enum Item {
    /// An event.
    Event {
        /// Its encoding.
        frame: Frame,
        /// Where it stands.
        position: Component,
        /// How much it matters.
        tier: Tier,
        /// When this process received it.
        received: Instant,
    },
    /// Events are missing before the next item.
    Gap {
        /// Why, and how many.
        gap: Gap,
        /// Where the reader stands once it has been told.
        position: Component,
    },
}
