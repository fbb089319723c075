//! Encoder of long polls (`application/json`): the lines of newline-delimited JSON that belong into
//! the array of one answer.
//!
//! Each answer has the position of its client once (`http::stream::event_stream::long_poll`), so
//! that positions and heartbeats are empty here.

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;

use super::encoder::{Encoder, EventParts, GapNotice};
use super::envelope::{Encoding, Envelope};
use super::ndjson::Ndjson;

/// Encoder of long polls.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongPoll;

impl Encoder for LongPoll {
    fn event(&self, parts: EventParts<'_>, envelope: Envelope) -> Encoding {
        Ndjson.event(parts, envelope)
    }

    fn payload_range(&self, _encoding: &Encoding, _data: &[u8]) -> Option<Range<usize>> {
        None
    }

    fn is_id_first(&self) -> bool {
        Ndjson.is_id_first()
    }

    fn put_id(&self, out: &mut BytesMut, id: &dyn Display, shared: usize) {
        Ndjson.put_id(out, id, shared);
    }

    fn put_opening(&self, _out: &mut BytesMut, _retry: Duration) {}

    fn put_gap(&self, out: &mut BytesMut, gap: GapNotice, id: Option<&dyn Display>) {
        Ndjson.put_gap(out, gap, id);
    }

    fn put_position(&self, _out: &mut BytesMut, _id: &dyn Display) {}

    fn put_renew(&self, out: &mut BytesMut, expires: u64) {
        Ndjson.put_renew(out, expires);
    }

    fn put_close(
        &self,
        out: &mut BytesMut,
        reason: &str,
        retry: Duration,
        id: Option<&dyn Display>,
    ) {
        Ndjson.put_close(out, reason, retry, id);
    }

    fn put_snapshot(&self, out: &mut BytesMut) {
        Ndjson.put_snapshot(out);
    }

    fn put_state(&self, out: &mut BytesMut, shared: &[u8]) {
        Ndjson.put_state(out, shared);
    }

    fn put_synced(&self, out: &mut BytesMut, id: &dyn Display) {
        Ndjson.put_synced(out, id);
    }

    fn put_end(&self, out: &mut BytesMut, id: &dyn Display) {
        Ndjson.put_end(out, id);
    }

    fn heartbeat(&self) -> &'static [u8] {
        b""
    }
}
