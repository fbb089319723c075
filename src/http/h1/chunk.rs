//! Chunks of HTTP/1.1 (RFC 9112, section 7.1): `{length in hex}\r\n`, content, `\r\n`.
//!
//! One write is one chunk. Encoded events carry the head and the tail of their chunk with them
//! ([`ENVELOPE`]), so that a write of shared events is one slice. A write of several segments gets a
//! [`ChunkHead`] of its own. The body of an HTTP/1.0 response has no chunks ([`BodyDelimiter`]).

use crate::encoding::Envelope;

/// Delimiter of the response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum BodyDelimiter {
    /// HTTP/1.1: one chunk per write.
    Chunked,
    /// HTTP/1.0: the end of the connection.
    UntilClose,
    /// WebSocket: none. Each message has its own frame.
    Messages,
}

/// Chunk around encoded events, as room for the [`Envelope`] of all encodings.
pub const ENVELOPE: Envelope = Envelope::new(HEAD_MAX as u8, TAIL.len() as u8, seal);

/// Head of a chunk, on the stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkHead {
    room: [u8; HEAD_MAX],
    len: usize,
}

/// Eight digits, which are 4 GiB, and a line end.
const HEAD_MAX: usize = 10;

const TAIL: &[u8] = b"\r\n";

impl BodyDelimiter {
    /// Returns the bytes after the content of a write.
    pub(super) fn tail(self) -> &'static [u8] {
        match self {
            Self::Chunked => TAIL,
            Self::UntilClose | Self::Messages => b"",
        }
    }
}

impl ChunkHead {
    /// Head of a chunk with this length; empty for a body without chunks.
    pub(super) fn new(delimiter: BodyDelimiter, content: usize) -> Self {
        let mut room = [0; HEAD_MAX];
        let len = match delimiter {
            BodyDelimiter::Chunked => put_head(content, &mut room),
            BodyDelimiter::UntilClose | BodyDelimiter::Messages => 0,
        };
        Self { room, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[HEAD_MAX - self.len..]
    }
}

/// Fills the room around encoded events.
fn seal(content: usize, head: &mut [u8], tail: &mut [u8]) -> usize {
    tail.copy_from_slice(TAIL);
    put_head(content, head)
}

/// Writes the head of a chunk to the end of its room, and returns its length.
fn put_head(content: usize, room: &mut [u8]) -> usize {
    debug_assert!(
        u32::try_from(content).is_ok(),
        "no write is larger than 4 GiB"
    );
    let mut start = room.len() - 2;
    room[start..].copy_from_slice(b"\r\n");
    let mut rest = content;
    loop {
        start -= 1;
        room[start] = b"0123456789abcdef"[rest % 16];
        rest /= 16;
        if rest == 0 || start == 0 {
            return room.len() - start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{Encoder, EventParts, Framing, RunBuilder};
    use crate::event::{Position, SourceTag};

    #[test]
    fn a_chunk_head_is_the_length_in_hex_and_http_1_0_has_none() {
        let head = |content| ChunkHead::new(BodyDelimiter::Chunked, content);
        assert_eq!(head(255).bytes(), b"ff\r\n");
        assert_eq!(head(0x8000).bytes(), b"8000\r\n");
        assert_eq!(head(u32::MAX as usize).bytes(), b"ffffffff\r\n");
        assert_eq!(ChunkHead::new(BodyDelimiter::UntilClose, 255).bytes(), b"");
    }

    #[test]
    fn events_and_runs_are_encoded_as_chunks() {
        let encoder: &dyn Encoder = Framing::Sse.encoder();
        for length in [0, 1, 10, 200, 5000, 70_000] {
            let parts = EventParts {
                name: None,
                subject: "a",
                data: &vec![b'x'; length],
                position: Position {
                    tag: SourceTag::of_identity("t"),
                    seq: 7,
                    fingerprint: None,
                },
            };
            let chunk = |content: &[u8]| {
                let head = format!("{:x}\r\n", content.len());
                [head.as_bytes(), content, b"\r\n"].concat()
            };
            let encoding = encoder.event(parts, ENVELOPE);
            let content = encoding.bytes().to_vec();
            assert_eq!(encoding.clone().into_enveloped().bytes(), &chunk(&content));
            let mut run = RunBuilder::default();
            run.begin(ENVELOPE, 2 * content.len());
            run.push(&encoding);
            run.push(&encoding);
            assert_eq!(run.finish().bytes(), &chunk(&content.repeat(2)));
        }
    }
}
