//! Bytes on their way out of an HTTP/2 connection, which are under way until they are among the connection's own.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::outlet::SharedStream;

/// The bytes of one DATA frame, or of several.
pub(super) struct Piece {
    bytes: Bytes,
    /// Whose they are.
    of: Option<Arc<SharedStream>>,
    /// How many they were.
    whole: usize,
}

impl Piece {
    /// Bytes of an event stream, counted as under way.
    pub(super) fn of(shared: Arc<SharedStream>, bytes: Bytes) -> Self {
        Self { of: Some(shared), whole: bytes.len(), bytes }
    }
}

impl From<Bytes> for Piece {
    /// Bytes that nobody waits for.
    fn from(bytes: Bytes) -> Self {
        Self { of: None, whole: bytes.len(), bytes }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // h2 lets go of what it has copied among the connection's own bytes, and of what a stream that has ended leaves.
        if let Some(shared) = &self.of {
            shared.is_out(self.whole);
        }
    }
}
