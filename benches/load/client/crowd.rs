//! Settings of the clients of a run.

use std::sync::Arc;

use rustls::HandshakeKind;

use super::endpoint::Endpoint;
use super::meter::Meter;
use super::visit::Visit;
use crate::wire::body::{BodyReader, Framing};
use crate::wire::coding::Coding;

/// Settings that all clients of a fleet share.
pub(crate) struct Crowd {
    /// Address of the server.
    pub(crate) endpoint: Endpoint,
    /// Framing of their event streams.
    pub(crate) framing: Framing,
    /// Content coding of their event streams.
    pub(crate) compression: Option<Coding>,
    /// Client `k` reads the subject numbered `k % groups`.
    pub(crate) groups: usize,
    /// Maximum number of clients between connect and first byte.
    pub(crate) connecting: usize,
    /// First connection or a return.
    pub(crate) visit: Visit,
    /// Counts what they receive.
    pub(crate) meter: Arc<Meter>,
}

impl Crowd {
    /// Returns the reader for the body of a client.
    pub(super) fn reader(&self, client: usize) -> BodyReader {
        BodyReader::new(self.framing, self.compression, self.visit.received(client))
    }

    /// Counts a TLS handshake that resumed a session.
    pub(super) fn count_handshake(&self, kind: Option<HandshakeKind>) {
        if kind == Some(HandshakeKind::Resumed) {
            self.meter.update(|_, tally| tally.resumed += 1);
        }
    }
}
