//! Parser of JSON lines, WebSocket messages and gRPC messages, without an allocation for each event.
//!
//! The framing cuts the body into messages. Only the beginning of a message is kept: the id and the
//! stamp are there, and the rest is padding. Like [`super::events`] it shares no code with the
//! sidecar.

use super::events::Seen;
use super::received::Received;
use super::stamp::Stamp;

/// Framing of a body that is a sequence of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A JSON object on each line.
    Lines,
    /// RFC 6455: a JSON object in each text frame.
    Frames,
    /// gRPC and gRPC-Web: a protobuf message after five bytes.
    Prefixed,
}

/// State of one event stream: its incomplete message, and the record of its client.
#[derive(Debug)]
pub(crate) struct MessageReader {
    cut: Cut,
    /// Head of the incomplete frame.
    head: [u8; HEAD_MAX],
    head_len: usize,
    /// Bytes of the incomplete frame after its head that have not arrived.
    left: u64,
    /// Beginning of the incomplete message.
    beginning: [u8; BEGINNING_MAX],
    beginning_len: usize,
    /// Pings that are not answered.
    pings: usize,
    received: Received,
}

impl MessageReader {
    /// Returns a reader for the beginning of a body.
    pub(crate) fn new(cut: Cut, received: Received) -> Self {
        Self {
            cut,
            head: [0; HEAD_MAX],
            head_len: 0,
            left: 0,
            beginning: [0; BEGINNING_MAX],
            beginning_len: 0,
            pings: 0,
            received,
        }
    }

    /// Returns the record of its client.
    pub(crate) fn received(&self) -> &Received {
        &self.received
    }

    /// Returns the number of pings since the last call. The client has to answer them.
    pub(crate) fn take_pings(&mut self) -> usize {
        std::mem::take(&mut self.pings)
    }

    /// Parses a piece of the body, cut anywhere, and reports everything that it completes.
    pub(crate) fn push(&mut self, body: &[u8], seen: &mut impl FnMut(Seen)) {
        match self.cut {
            Cut::Lines => self.push_lines(body, seen),
            Cut::Frames | Cut::Prefixed => self.push_frames(body, seen),
        }
    }

    fn push_lines(&mut self, mut body: &[u8], seen: &mut impl FnMut(Seen)) {
        while let Some(end) = memchr::memchr(b'\n', body) {
            self.keep(&body[..end]);
            self.finish(seen);
            body = &body[end + 1..];
        }
        self.keep(body);
    }

    fn push_frames(&mut self, mut body: &[u8], seen: &mut impl FnMut(Seen)) {
        loop {
            if self.left == 0 {
                let Some((&byte, rest)) = body.split_first() else {
                    return;
                };
                body = rest;
                self.head[self.head_len] = byte;
                self.head_len += 1;
                match self.content_len() {
                    Some(0) => self.finish(seen),
                    Some(length) => self.left = length,
                    None => {}
                }
                continue;
            }
            let taken = usize::try_from(self.left).map_or(body.len(), |left| left.min(body.len()));
            self.keep(&body[..taken]);
            self.left -= taken as u64;
            body = &body[taken..];
            if self.left > 0 {
                return;
            }
            self.finish(seen);
        }
    }

    /// Returns the length of the content, if the head is complete.
    fn content_len(&self) -> Option<u64> {
        let head = &self.head[..self.head_len];
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        };
        match self.cut {
            Cut::Prefixed => head.get(1..5).map(number),
            // Frames of a server have no mask.
            Cut::Frames => match head.get(1)? {
                126 => head.get(2..4).map(number),
                127 => head.get(2..10).map(number),
                &length => Some(length.into()),
            },
            Cut::Lines => None,
        }
    }

    /// Keeps the beginning of a message; the rest is padding.
    fn keep(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(BEGINNING_MAX - self.beginning_len);
        self.beginning[self.beginning_len..self.beginning_len + taken]
            .copy_from_slice(&bytes[..taken]);
        self.beginning_len += taken;
    }

    /// Reports the complete message.
    fn finish(&mut self, seen: &mut impl FnMut(Seen)) {
        let beginning = self.beginning;
        let message = &beginning[..std::mem::take(&mut self.beginning_len)];
        let first = self.head[0];
        self.head_len = 0;
        match (self.cut, first) {
            (Cut::Frames, PING) => {
                self.pings += 1;
                seen(Seen::Heartbeat);
            }
            // The message before it has the reason.
            (Cut::Frames, CLOSE) => {}
            (Cut::Lines | Cut::Prefixed, _) if message.is_empty() => seen(Seen::Heartbeat),
            (Cut::Lines | Cut::Frames, _) => self.object(message, seen),
            (Cut::Prefixed, _) => self.protobuf(message, seen),
        }
    }

    fn object(&mut self, object: &[u8], seen: &mut impl FnMut(Seen)) {
        if let Some(control) = object.strip_prefix(br#"{"control":""#) {
            match control.split(|byte| *byte == b'"').next() {
                Some(b"gap") => seen(Seen::Gap),
                Some(b"close") => seen(Seen::Close),
                _ => {}
            }
            return;
        }
        let id = object.strip_prefix(br#"{"id":""#);
        let id = id.and_then(|rest| rest.split(|byte| *byte == b'"').next());
        self.event(object, id, seen);
    }

    fn protobuf(&mut self, message: &[u8], seen: &mut impl FnMut(Seen)) {
        let (mut id, mut rest) = (None, message);
        if let [ID, length, after @ ..] = message
            && let Some((found, after)) = after.split_at_checked((*length).into())
        {
            (id, rest) = (Some(found), after);
        }
        match rest.first() {
            Some(&GAP) => seen(Seen::Gap),
            Some(&CLOSED) => seen(Seen::Close),
            _ => self.event(rest, id, seen),
        }
    }

    /// Reports an event, if the message has a stamp.
    fn event(&mut self, message: &[u8], id: Option<&[u8]>, seen: &mut impl FnMut(Seen)) {
        if let Some(id) = id {
            self.received.set_id(id);
        }
        let stamp = memchr::memmem::find(message, b"{\"t\":");
        if let Some(stamp) = stamp.and_then(|at| Stamp::parse(&message[at..])) {
            seen(self.received.event(stamp, id.is_some()));
        }
    }
}

/// Longest head of a frame without a mask.
const HEAD_MAX: usize = 10;
/// An id of up to 70 bytes, a subject of up to 50, the names of the fields, and a stamp of 50.
const BEGINNING_MAX: usize = 224;
/// First byte of a ping, and of a close frame.
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;
/// Keys of `SubscribeResponse.id`, `.gap` and `.close`, fields 1, 6 and 11 with a length.
const ID: u8 = 0x0a;
const GAP: u8 = 0x32;
const CLOSED: u8 = 0x5a;
