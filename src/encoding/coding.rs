//! Content codings of an event stream: compressed once for all clients, joined at any block.
//!
//! ```text
//! head | block | block | block | ...      | tail
//!        |       +- bytes of one client: stored, not compressed
//!        +- events that were appended together: compressed once, the same bytes for every client
//! ```
//!
//! No block refers to an earlier one, so a client can begin with any of them. The decoder sees one
//! ordinary stream: one member of gzip (`coding::gzip`), one frame of Zstandard (`coding::zstd`).
//! Several members or frames would be simpler, and decoders in use lose everything after the first
//! one (docs/decisions/0039-compression.md).
//!
//! The end of a gzip stream has a checksum of everything that this client has received:
//! [`Checksum`], eight bytes for each client. Blocks have their part of it with them
//! ([`BlockChecksum`]), so that a delivery costs one multiplication of polynomials.

mod checksum;
mod gzip;
mod zstd;

use bytes::{BufMut as _, BytesMut};

use super::envelope::{Envelope, Enveloped, RunBuilder};

pub use checksum::{BlockChecksum, Checksum};

/// Content coding (RFC 9110, 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878), with a window of 128 KiB.
    Zstd,
}

/// Compressed events, the same bytes for every client.
#[derive(Debug)]
pub struct Block {
    bytes: Enveloped,
    size: BlockSize,
}

/// Sizes and checksum of a block.
#[derive(Clone, Copy, Debug)]
pub struct BlockSize {
    /// Bytes before the compression.
    pub plain: usize,
    /// Bytes that are sent.
    pub sent: usize,
    /// Of the bytes before the compression.
    pub checksum: BlockChecksum,
}

impl Coding {
    /// All codings, in the order of the variants.
    pub const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// Value in `Accept-Encoding`, configuration and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Returns the first bytes of every event stream.
    #[must_use]
    pub const fn head(self) -> &'static [u8] {
        match self {
            Self::Gzip => gzip::HEAD,
            Self::Zstd => zstd::HEAD,
        }
    }

    /// Appends the last bytes of an event stream that ends.
    pub fn put_tail(self, out: &mut BytesMut, checksum: Checksum) {
        match self {
            Self::Gzip => gzip::put_tail(out, checksum),
            Self::Zstd => out.put_slice(zstd::TAIL),
        }
    }

    /// Appends bytes of one client, not compressed.
    pub fn put_stored(self, out: &mut BytesMut, plain: &[u8]) {
        match self {
            Self::Gzip => gzip::put_stored(out, plain),
            Self::Zstd => zstd::put_stored(out, plain),
        }
    }

    /// Returns the checksum after more bytes of one client. Only gzip has one.
    #[must_use]
    pub fn checksum(self, before: Checksum, plain: &[u8]) -> Checksum {
        match self {
            Self::Gzip => before.after(plain),
            Self::Zstd => before,
        }
    }

    /// Makes a block of events: compressed, or stored.
    #[must_use]
    pub fn block(self, plain: &[u8], is_compressed: bool, envelope: Envelope) -> Block {
        let mut coded = BytesMut::with_capacity(plain.len() + 64);
        match (self, is_compressed) {
            (Self::Gzip, true) => gzip::put_compressed(&mut coded, plain),
            (Self::Zstd, true) => zstd::put_compressed(&mut coded, plain),
            (_, false) => self.put_stored(&mut coded, plain),
        }
        let checksum = match self {
            Self::Gzip => BlockChecksum::of(plain),
            Self::Zstd => BlockChecksum::default(),
        };
        let size = BlockSize {
            plain: plain.len(),
            sent: coded.len(),
            checksum,
        };
        let mut run = RunBuilder::default();
        run.begin(envelope, coded.len());
        run.put(&coded);
        Block {
            bytes: run.finish(),
            size,
        }
    }
}

impl Block {
    /// Bytes of the block, with the envelope around them.
    #[must_use]
    pub fn bytes(&self) -> &Enveloped {
        &self.bytes
    }

    /// Sizes and checksum.
    #[must_use]
    pub fn size(&self) -> BlockSize {
        self.size
    }
}

impl BlockSize {
    /// Sizes of two blocks, one after the other.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        Self {
            plain: self.plain + next.plain,
            sent: self.sent + next.sent,
            checksum: self.checksum.and(next.checksum),
        }
    }
}

#[cfg(test)]
mod tests;
