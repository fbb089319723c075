//! Compression of a feed, and a compressed block with its part of the memory budget.

use crate::encoding::Coding;
use crate::encoding::coding::Block;

use super::budget::Reservation;

/// Compression of the events of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compression {
    /// Coding of all event streams that read the feed.
    pub coding: Coding,
    /// Bytes per second, before the compression, from which on blocks are compressed: the rate of the
    /// feed multiplied by its readers.
    pub min_rate: usize,
}

/// Compressed form of a block.
#[derive(Debug)]
pub(super) struct CodedBlock {
    block: Block,
    /// Memory budget of the block.
    _reservation: Reservation,
}

impl CodedBlock {
    /// `reservation` is any of the budget.
    pub(super) fn new(block: Block, reservation: &Reservation) -> Self {
        let bytes = block.size().sent + size_of::<Self>();
        Self {
            block,
            _reservation: reservation.add(bytes),
        }
    }

    pub(super) fn block(&self) -> &Block {
        &self.block
    }
}
