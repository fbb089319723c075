//! Checksum of a gzip stream: CRC-32 and length of the bytes before the compression (RFC 1952).
//!
//! The CRC of two pieces is computed from theirs: `crc(a b) = crc(a) * x^(8 len(b)) + crc(b)`, with
//! polynomials over GF(2) modulo that of CRC-32, as zlib's `crc32_combine_op`. A block has its power
//! of x with it. Bit 31 is the coefficient of x^0, as in the CRC itself.

/// Checksum of everything that a client has received, in eight bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    crc: u32,
    /// Length modulo 2^32.
    len: u32,
}

/// Checksum of a block, and what appends it to that of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockChecksum {
    of: Checksum,
    /// x to the power of the number of bits.
    shift: u32,
}

/// CRC-32 polynomial without x^32.
const POLYNOMIAL: u32 = 0xEDB8_8320;

/// x^0.
const ONE: u32 = 1 << 31;

/// x^8: one byte.
const BYTE: u32 = 1 << 23;

impl Checksum {
    /// Returns the checksum after more bytes.
    #[must_use]
    pub fn after(self, bytes: &[u8]) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.crc);
        hasher.update(bytes);
        Self {
            crc: hasher.finalize(),
            len: self.len.wrapping_add(bytes.len() as u32),
        }
    }

    /// Returns the checksum after a block.
    #[must_use]
    pub fn after_block(self, block: BlockChecksum) -> Self {
        Self {
            crc: multiply(block.shift, self.crc) ^ block.of.crc,
            len: self.len.wrapping_add(block.of.len),
        }
    }

    /// Checksum as the event stream keeps it.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.len) << 32 | u64::from(self.crc)
    }

    /// Reverses [`Self::to_bits`].
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self {
            crc: bits as u32,
            len: (bits >> 32) as u32,
        }
    }

    /// The last eight bytes of a gzip stream.
    pub(super) fn to_bytes(self) -> [u8; 8] {
        self.to_bits().to_le_bytes()
    }
}

impl BlockChecksum {
    /// Checksum of the bytes of a block.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            of: Checksum::default().after(bytes),
            shift: shift(bytes.len() as u64),
        }
    }

    /// Checksum of two blocks, one after the other.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        Self {
            of: self.of.after_block(next),
            shift: multiply(self.shift, next.shift),
        }
    }
}

impl Default for BlockChecksum {
    /// That of no bytes.
    fn default() -> Self {
        Self {
            of: Checksum::default(),
            shift: ONE,
        }
    }
}

/// Returns x to the power of `8 * bytes`.
fn shift(mut bytes: u64) -> u32 {
    let (mut power, mut square) = (ONE, BYTE);
    while bytes > 0 {
        if bytes & 1 == 1 {
            power = multiply(power, square);
        }
        square = multiply(square, square);
        bytes >>= 1;
    }
    power
}

/// Multiplies two polynomials. Without branches that depend on the bits: they are random.
fn multiply(one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    for bit in (0..32).rev() {
        product ^= other & (one >> bit & 1).wrapping_neg();
        other = other >> 1 ^ POLYNOMIAL & (other & 1).wrapping_neg();
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_keeps_eight_bytes() {
        assert_eq!(size_of::<Checksum>(), 8);
        assert_eq!(Checksum::default().after(b"123456789").crc, 0xCBF4_3926);
    }

    proptest! {
        #[test]
        fn blocks_are_appended_as_their_bytes_would_be(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6)
        ) {
            let all = Checksum::default().after(&pieces.concat());
            let blocks = pieces.iter().map(|piece| BlockChecksum::of(piece));
            let one_by_one = blocks.clone().fold(Checksum::default(), Checksum::after_block);
            let joined = blocks.fold(BlockChecksum::default(), BlockChecksum::and);
            prop_assert_eq!(one_by_one, all);
            prop_assert_eq!(Checksum::default().after_block(joined), all);
            prop_assert_eq!(Checksum::from_bits(all.to_bits()), all);
        }
    }
}
