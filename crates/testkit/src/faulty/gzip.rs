//! gzip that is not flushed: the content is collected and written as stored blocks at the end
//! (RFC 1951, 3.2.4; RFC 1952).

/// Head of gzip.
pub(super) const HEAD: &[u8] = &[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF];

/// Content until now.
#[derive(Default)]
pub(super) struct Gzip(Vec<u8>);

impl Gzip {
    pub(super) fn add(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// Returns everything after the head.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        let blocks: Vec<_> = self.0.chunks(usize::from(u16::MAX)).collect();
        for (nth, block) in blocks.iter().enumerate() {
            let length = block.len() as u16;
            out.push(u8::from(nth + 1 == blocks.len()));
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(block);
        }
        out.extend_from_slice(&crc32(&self.0).to_le_bytes());
        out.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        out
    }
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
