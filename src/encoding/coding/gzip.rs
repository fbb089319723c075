//! gzip: one member, whose deflate blocks end at a byte and do not refer to earlier ones.
//!
//! Each piece is compressed by a deflate stream of its own that ends in a flush: an empty stored
//! block, after which the next piece begins at a byte. The decoder sees one stream.

use std::cell::RefCell;

use bytes::{BufMut as _, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use super::Checksum;

/// Member without a name and time, of an unknown system.
pub(super) const HEAD: &[u8] = &[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF];

/// An empty last block, with the fixed codes.
const LAST: &[u8] = &[3, 0];

/// Bytes of one stored block: its length has 16 bits.
const STORED_MAX: usize = 0xFFFF;

/// Level 6: the lowest one at which 16 events of 512 bytes shrink to a quarter (decision 39).
const LEVEL: u32 = 6;

thread_local! {
    /// State of the compression, one for each thread that compresses.
    static COMPRESS: RefCell<Compress> =
        RefCell::new(Compress::new(Compression::new(LEVEL), false));
}

/// Appends the last block and the checksum.
pub(super) fn put_tail(out: &mut BytesMut, checksum: Checksum) {
    out.put_slice(LAST);
    out.put_slice(&checksum.to_bytes());
}

/// Appends bytes that are not compressed.
pub(super) fn put_stored(out: &mut BytesMut, plain: &[u8]) {
    for piece in plain.chunks(STORED_MAX) {
        let len = piece.len() as u16;
        out.reserve(5 + piece.len());
        out.put_u8(0);
        out.put_u16_le(len);
        out.put_u16_le(!len);
        out.put_slice(piece);
    }
}

/// Appends compressed bytes; stored ones if they are not shorter.
pub(super) fn put_compressed(out: &mut BytesMut, plain: &[u8]) {
    let stored = plain.len() + 5 * plain.len().div_ceil(STORED_MAX);
    match deflate(plain) {
        Some(deflated) if deflated.len() < stored => out.put_slice(&deflated),
        _ => put_stored(out, plain),
    }
}

/// Returns `None` if the result would be longer than the input.
fn deflate(plain: &[u8]) -> Option<Vec<u8>> {
    COMPRESS.with_borrow_mut(|compress| {
        compress.reset();
        let mut out = Vec::with_capacity(plain.len() + 64);
        let flush = FlushCompress::Sync;
        compress.compress_vec(plain, &mut out, flush).ok()?;
        // With room left, the flush is complete.
        let is_complete = compress.total_in() == plain.len() as u64 && out.len() < out.capacity();
        is_complete.then_some(out)
    })
}
