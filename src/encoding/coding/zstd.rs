//! Zstandard: one frame, whose blocks can follow any others.
//!
//! A block of a frame can depend on earlier ones in three ways. References to earlier bytes and the
//! tables of an earlier block do not occur in the first block of a frame, so each piece is compressed
//! as a frame of its own, of which only the blocks are sent. The third way is the *repeated offsets*:
//! three recent distances that a block may name instead of a distance. The first block of a frame may
//! use their initial values, which are others in the middle of a frame.
//!
//! A dictionary replaces the initial values: [`dictionary`] has three distances that reach into its
//! content, which is all `0xFF`, a byte that never occurs in UTF-8. So the compressor finds neither a
//! reference to the dictionary nor a use of its distances, and its tables cannot code any text. The
//! decoder needs no dictionary. The tests decode blocks after arbitrary others.

use std::cell::RefCell;
use std::sync::LazyLock;

use bytes::{Buf as _, BufMut as _, BytesMut};
use zstd_safe::{CCtx, CDict, CParameter};

/// Magic number, and a frame header without sizes: a window of 128 KiB.
pub(super) const HEAD: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD, 0, 0x38];

/// An empty last block.
pub(super) const TAIL: &[u8] = &[1, 0, 0];

/// Magic number, and the shortest frame header.
const FRAME_HEAD: usize = 6;

/// 32 KiB: bytes that are compressed together, within the reach of the distances.
const PIECE_MAX: usize = 32 * 1024;

/// 64 KiB: bytes of one stored block; a decoder accepts up to its window.
const STORED_MAX: usize = 64 * 1024;

/// Level 3: the lowest one at which 16 events of 512 bytes shrink to a quarter (decision 39). Levels
/// from 4 on could use the tables of the dictionary.
const LEVEL: i32 = 3;

/// Byte that does not occur in UTF-8.
const NEVER: u8 = 0xFF;

/// Dictionary in the form of the compressor.
static DICTIONARY: LazyLock<Option<CDict<'static>>> =
    LazyLock::new(|| CDict::try_create(&dictionary(), LEVEL));

thread_local! {
    /// State of the compression, one for each thread that compresses: about 0.5 MiB.
    static COMPRESS: RefCell<Option<CCtx<'static>>> = RefCell::new(context());
}

fn context() -> Option<CCtx<'static>> {
    let mut context = CCtx::try_create()?;
    let dictionary = DICTIONARY.as_ref()?;
    context.ref_cdict(dictionary).ok()?;
    for parameter in [
        CParameter::ContentSizeFlag(false),
        CParameter::DictIdFlag(false),
        CParameter::ChecksumFlag(false),
    ] {
        context.set_parameter(parameter).ok()?;
    }
    Some(context)
}

/// Dictionary whose content, tables and distances no text uses (RFC 8878, section 5).
fn dictionary() -> Vec<u8> {
    // Two codes of one bit, for the bytes 0 and 1: no text consists of them.
    const HUFFMAN: [u8; 2] = [0x80, 0x10];
    // Two codes of equal probability, of 32 states.
    const FSE: [u8; 2] = [0x10, 0x3F];
    // Farther than any piece is long.
    let distance = PIECE_MAX as u32 + 16;
    let mut out = vec![0x37, 0xA4, 0x30, 0xEC, 1, 0, 0, 0];
    out.extend(HUFFMAN);
    out.extend([FSE, FSE, FSE].concat());
    for distance in [distance, distance - 1, distance - 2] {
        out.extend(distance.to_le_bytes());
    }
    out.resize(out.len() + distance as usize, NEVER);
    out
}

/// Appends bytes that are not compressed.
pub(super) fn put_stored(out: &mut BytesMut, plain: &[u8]) {
    for piece in plain.chunks(STORED_MAX) {
        out.reserve(3 + piece.len());
        put_block_head(out, piece.len());
        out.put_slice(piece);
    }
}

/// Appends the head of a stored block.
fn put_block_head(out: &mut BytesMut, len: usize) {
    out.put_uint_le((len << 3) as u64, 3);
}

/// Appends compressed bytes. What is not UTF-8 is stored.
pub(super) fn put_compressed(out: &mut BytesMut, plain: &[u8]) {
    for piece in plain.chunks(PIECE_MAX) {
        let frame = match memchr::memchr(NEVER, piece) {
            None => compress(piece),
            Some(_) => None,
        };
        match frame {
            Some(frame) if frame.len() < FRAME_HEAD + 3 + piece.len() => put_blocks(out, &frame),
            _ => put_stored(out, piece),
        }
    }
}

/// Returns a frame; `None` if it would be longer than the piece.
fn compress(piece: &[u8]) -> Option<Vec<u8>> {
    COMPRESS.with_borrow_mut(|context| {
        let mut out = Vec::with_capacity(piece.len() + FRAME_HEAD + 3);
        context.as_mut()?.compress2(&mut out, piece).ok()?;
        Some(out)
    })
}

/// Appends the blocks of a frame, none of them as the last one.
fn put_blocks(out: &mut BytesMut, frame: &[u8]) {
    debug_assert_eq!(frame[..4], HEAD[..4], "a frame of Zstandard");
    debug_assert_eq!(frame[4], 0, "a frame header without sizes");
    let mut rest = &frame[FRAME_HEAD..];
    while rest.len() >= 3 {
        let mut head = rest;
        let header = head.get_uint_le(3);
        let is_last = header & 1 == 1;
        // A block of one repeated byte has the number of its repetitions here.
        let is_repeated = header >> 1 & 3 == 1;
        let len = if is_repeated {
            1
        } else {
            (header >> 3) as usize
        };
        let (block, next) = head.split_at(len.min(head.len()));
        out.put_uint_le(header & !1, 3);
        out.put_slice(block);
        if is_last {
            break;
        }
        rest = next;
    }
}
