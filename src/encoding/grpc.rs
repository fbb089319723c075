//! Encoder of gRPC and gRPC-Web: a length-prefixed message of `proto/sidestream/v1/events.proto` for
//! each event and control message.
//!
//! ```text
//! | 0 | length: 4 bytes | id field | event field: name, subject, data |     one event
//!   id of one source               | shared by all clients
//! ```
//!
//! Both forms have the same events; their feeds encode [`Framing::GrpcWeb`](super::Framing). They
//! differ at the end: a body of gRPC-Web ends with a frame of [`Trailers`], and gRPC sends them as
//! trailers of HTTP/2. The heartbeat is an empty message: unlike a PING it passes proxies, whose idle
//! timeouts count messages.

mod messages;
mod trailers;

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use prost::{Message as _, encode_length_delimiter, length_delimiter_len};

use self::messages::{Content, Nothing, SubscribeResponse};
use super::encoder::{Encoder, EventParts, GapNotice};
use super::envelope::{Encoding, EncodingBuilder, Envelope};
use crate::event::EventName;

pub use self::messages::SubscribeRequest;
pub use self::trailers::{Status, Trailers};

/// Encoder of both forms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grpc {
    /// The end has a frame with the trailers.
    pub(super) has_trailer_frame: bool,
}

/// Bytes before each message: a flag and the length.
pub const HEAD_LEN: usize = 5;

/// Flag of a message that is compressed.
pub const COMPRESSED: u8 = 1;

/// Flag of the frame with the trailers.
const TRAILERS: u8 = 0x80;

/// An empty message.
const HEARTBEAT: &[u8] = &[0; HEAD_LEN];

/// Keys of fields with a length (wire type 2): `SubscribeResponse.id`, `.event` and `.removed`.
const ID: u8 = key(1);
const EVENT: u8 = key(2);
const REMOVED: u8 = key(3);

/// `Event.name`, `.subject` and `.data`; `Removed.subject`.
const NAME: u8 = key(1);
const SUBJECT: u8 = key(2);
const DATA: u8 = key(3);
const REMOVED_SUBJECT: u8 = key(1);

/// Key of a field with a length, in one byte.
const fn key(field: u8) -> u8 {
    field << 3 | 2
}

impl Encoder for Grpc {
    fn event(&self, parts: EventParts<'_>, envelope: Envelope) -> Encoding {
        let EventParts {
            name,
            subject,
            data,
            position,
        } = parts;
        let is_removed = name.is_some_and(EventName::is_removed);
        let name = name.map(EventName::as_str).unwrap_or_default();
        let (field, fields) = if is_removed {
            let none: &[u8] = b"";
            let subject = (REMOVED_SUBJECT, subject.as_bytes());
            (REMOVED, [subject, (NAME, none), (DATA, none)])
        } else {
            let (name, subject) = ((NAME, name.as_bytes()), (SUBJECT, subject.as_bytes()));
            (EVENT, [name, subject, (DATA, data)])
        };
        let length = fields.iter().map(|(_, bytes)| field_len(bytes)).sum();
        let shared = 1 + length_delimiter_len(length) + length;
        // The id of one source has less than 64 bytes.
        let mut builder = EncodingBuilder::new(envelope, HEAD_LEN + 64 + shared);
        builder.put_id(|out| self.put_id(out, &position, shared));
        let out = builder.out();
        put_key(out, field, length);
        fields
            .iter()
            .for_each(|(key, bytes)| put_field(out, *key, bytes));
        builder.finish()
    }

    /// The payload is in the message unchanged; the stored encoding has it.
    fn payload_range(&self, _encoding: &Encoding, _data: &[u8]) -> Option<Range<usize>> {
        None
    }

    fn is_id_first(&self) -> bool {
        true
    }

    /// Appends the head of the message and its id.
    fn put_id(&self, out: &mut BytesMut, id: &dyn Display, shared: usize) {
        let id = id.to_string();
        put_head(out, 0, field_len(id.as_bytes()) + shared);
        put_field(out, ID, id.as_bytes());
    }

    fn put_opening(&self, out: &mut BytesMut, retry: Duration) {
        let retry = millis(retry);
        put_content(out, Content::Open(messages::Open { retry }), None);
    }

    fn put_gap(&self, out: &mut BytesMut, gap: GapNotice, id: Option<&dyn Display>) {
        let content = Content::Gap(messages::Gap {
            reason: gap.reason.to_owned(),
            missed: gap.missed,
            resume: gap.resume.to_owned(),
        });
        put_content(out, content, id);
    }

    fn put_position(&self, out: &mut BytesMut, id: &dyn Display) {
        put_content(out, Content::Position(Nothing {}), Some(id));
    }

    fn put_renew(&self, out: &mut BytesMut, expires: u64) {
        put_content(out, Content::Renew(messages::Renew { expires }), None);
    }

    /// Appends the last message. gRPC-Web: and the trailers.
    fn put_close(
        &self,
        out: &mut BytesMut,
        reason: &str,
        retry: Duration,
        id: Option<&dyn Display>,
    ) {
        let content = Content::Close(messages::Close {
            reason: reason.to_owned(),
            retry: millis(retry),
        });
        put_content(out, content, id);
        self.put_trailers(out, &Trailers::closed(reason, retry));
    }

    fn put_snapshot(&self, out: &mut BytesMut) {
        put_content(out, Content::Snapshot(Nothing {}), None);
    }

    fn put_state(&self, out: &mut BytesMut, shared: &[u8]) {
        put_head(out, 0, shared.len());
        out.put_slice(shared);
    }

    fn put_synced(&self, out: &mut BytesMut, id: &dyn Display) {
        put_content(out, Content::Synced(Nothing {}), Some(id));
    }

    /// Appends the last message. gRPC-Web: and the trailers.
    fn put_end(&self, out: &mut BytesMut, id: &dyn Display) {
        put_content(out, Content::End(Nothing {}), Some(id));
        self.put_trailers(out, &Trailers::ended());
    }

    fn heartbeat(&self) -> &'static [u8] {
        HEARTBEAT
    }
}

impl Grpc {
    fn put_trailers(self, out: &mut BytesMut, trailers: &Trailers<'_>) {
        if self.has_trailer_frame {
            put_trailer_frame(out, trailers);
        }
    }
}

/// Appends the last frame of a body of gRPC-Web.
fn put_trailer_frame(out: &mut BytesMut, trailers: &Trailers<'_>) {
    let mut lines = String::new();
    for (name, value) in trailers.fields() {
        lines.extend([name, ": ", &*value, "\r\n"]);
    }
    put_head(out, TRAILERS, lines.len());
    out.put_slice(lines.as_bytes());
}

/// Appends a control message.
fn put_content(out: &mut BytesMut, content: Content, id: Option<&dyn Display>) {
    let message = SubscribeResponse {
        id: id.map(ToString::to_string).unwrap_or_default(),
        content: Some(content),
    };
    put_head(out, 0, message.encoded_len());
    // A growable buffer has room.
    let encoded = message.encode(out);
    debug_assert!(
        encoded.is_ok(),
        "encoding to a growable buffer does not fail"
    );
}

/// Appends the head of a message: its flag and its length.
fn put_head(out: &mut BytesMut, flag: u8, length: usize) {
    debug_assert!(
        u32::try_from(length).is_ok(),
        "no message is larger than 4 GiB"
    );
    out.put_u8(flag);
    out.put_u32(length as u32);
}

/// Appends the key of a field and its length.
fn put_key(out: &mut BytesMut, key: u8, length: usize) {
    out.put_u8(key);
    // A growable buffer has room.
    let encoded = encode_length_delimiter(length, out);
    debug_assert!(
        encoded.is_ok(),
        "encoding to a growable buffer does not fail"
    );
}

/// Appends a field, unless it has its default value.
fn put_field(out: &mut BytesMut, key: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_key(out, key, bytes.len());
        out.put_slice(bytes);
    }
}

/// Returns the length of a field that [`put_field`] appends.
fn field_len(bytes: &[u8]) -> usize {
    match bytes.len() {
        0 => 0,
        length => 1 + length_delimiter_len(length) + length,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};
    use proptest::prelude::*;

    use super::*;
    use crate::encoding::RunBuilder;
    use crate::event::{Position, SourceTag};

    const HTTP2: Grpc = Grpc {
        has_trailer_frame: false,
    };
    const WEB: Grpc = Grpc {
        has_trailer_frame: true,
    };

    fn position() -> Position {
        Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            fingerprint: None,
        }
    }

    fn encode(name: Option<&EventName>, subject: &str, data: &[u8]) -> Encoding {
        let parts = EventParts {
            name,
            subject,
            data,
            position: position(),
        };
        HTTP2.event(parts, Envelope::NONE)
    }

    /// Takes the first frame: its flag and content.
    fn frame(bytes: &mut Bytes) -> (u8, Bytes) {
        let flag = bytes.get_u8();
        let length = bytes.get_u32() as usize;
        (flag, bytes.split_to(length))
    }

    fn message(bytes: &mut Bytes) -> SubscribeResponse {
        let (flag, content) = frame(bytes);
        assert_eq!(flag, 0);
        SubscribeResponse::decode(content).unwrap()
    }

    /// Returns what a closure appends.
    fn written(write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut out = BytesMut::new();
        write(&mut out);
        out.freeze()
    }

    fn event(name: &str, subject: &str, data: &[u8]) -> Option<Content> {
        Some(Content::Event(messages::Event {
            name: name.into(),
            subject: subject.into(),
            data: data.to_vec(),
        }))
    }

    #[test]
    fn removed_key_has_a_content_of_its_own() {
        let encoding = encode(Some(&EventName::removed()), "kv.a", b"x");
        let removed = message(&mut Bytes::copy_from_slice(encoding.bytes()));
        let subject = "kv.a".to_owned();
        let expected = Content::Removed(messages::Removed { subject });
        assert_eq!(removed.content, Some(expected));
        assert_eq!(removed.id, position().to_string());
    }

    #[test]
    fn client_of_several_sources_and_a_state_share_the_bytes_after_the_id() {
        let shared = encode(None, "a.b", b"7").shared();
        let bytes = written(|out| {
            HTTP2.put_id(out, &"x-1,y-2", shared.len());
            out.put_slice(&shared);
            HTTP2.put_state(out, &shared);
        });
        let mut bytes = bytes;
        let (with_id, state) = (message(&mut bytes), message(&mut bytes));
        assert_eq!((&*with_id.id, &*state.id), ("x-1,y-2", ""));
        assert_eq!(with_id.content, event("", "a.b", b"7"));
        assert_eq!(state.content, with_id.content);
        assert!(bytes.is_empty());
    }

    #[test]
    fn events_that_are_copied_side_by_side_are_separate_messages() {
        let mut run = RunBuilder::default();
        run.begin(Envelope::NONE, 1000);
        run.push(&encode(None, "a", b"1"));
        run.push(&encode(None, "a", b"2"));
        let mut bytes = run.finish().to_content();
        assert_eq!(message(&mut bytes).content, event("", "a", b"1"));
        assert_eq!(message(&mut bytes).content, event("", "a", b"2"));
        assert!(bytes.is_empty());
    }

    #[test]
    fn control_messages_are_typed() {
        let gap = GapNotice {
            reason: "slow",
            missed: Some(0),
            resume: "oldest",
        };
        let gap_content = |missed| {
            Content::Gap(messages::Gap {
                reason: "slow".into(),
                missed,
                resume: "oldest".into(),
            })
        };
        let uncounted = GapNotice {
            missed: None,
            ..gap
        };
        let retry = Duration::from_millis(3000);
        for (bytes, id, content) in [
            (
                written(|out| HTTP2.put_opening(out, retry)),
                "",
                Content::Open(messages::Open { retry: 3000 }),
            ),
            (
                written(|out| HTTP2.put_gap(out, gap, None)),
                "",
                gap_content(Some(0)),
            ),
            (
                written(|out| HTTP2.put_gap(out, uncounted, Some(&"a-1"))),
                "a-1",
                gap_content(None),
            ),
            (
                written(|out| HTTP2.put_position(out, &"a-1")),
                "a-1",
                Content::Position(Nothing {}),
            ),
            (
                written(|out| HTTP2.put_renew(out, 1_795_961_031)),
                "",
                Content::Renew(messages::Renew {
                    expires: 1_795_961_031,
                }),
            ),
            (
                written(|out| HTTP2.put_snapshot(out)),
                "",
                Content::Snapshot(Nothing {}),
            ),
            (
                written(|out| HTTP2.put_synced(out, &"a-1")),
                "a-1",
                Content::Synced(Nothing {}),
            ),
            (
                written(|out| HTTP2.put_end(out, &"a-1")),
                "a-1",
                Content::End(Nothing {}),
            ),
            (
                written(|out| HTTP2.put_close(out, "drain", retry, Some(&"a-1"))),
                "a-1",
                Content::Close(messages::Close {
                    reason: "drain".into(),
                    retry: 3000,
                }),
            ),
        ] {
            let mut bytes = bytes;
            let message = message(&mut bytes);
            assert_eq!((&*message.id, message.content), (id, Some(content)));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn heartbeat_is_an_empty_message() {
        let mut bytes = Bytes::from_static(HTTP2.heartbeat());
        assert_eq!(message(&mut bytes), SubscribeResponse::default());
        assert!(bytes.is_empty());
    }

    #[test]
    fn body_of_grpc_web_ends_with_a_frame_of_trailers() {
        let retry = Duration::from_millis(1730);
        for (mut bytes, expected) in [
            (
                written(|out| WEB.put_end(out, &"a-1")),
                "grpc-status: 0\r\n",
            ),
            (
                written(|out| WEB.put_close(out, "drain", retry, Some(&"a-1"))),
                "grpc-status: 14\r\ngrpc-message: the event stream ended: drain\r\n\
                 sidestream-code: drain\r\ngrpc-retry-pushback-ms: 1730\r\n",
            ),
        ] {
            assert_eq!(message(&mut bytes).id, "a-1");
            let (flag, lines) = frame(&mut bytes);
            assert_eq!(flag, 0x80);
            assert_eq!(std::str::from_utf8(&lines), Ok(expected));
            assert!(bytes.is_empty());
        }
    }

    proptest! {
        #[test]
        fn every_event_is_one_message_and_its_payload_is_unchanged(
            data in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                (0..70_000_usize).prop_map(|length| vec![b'x'; length]),
            ],
            name in prop::option::of("\\PC{1,20}"),
            subject in "[^\\s.*>]{1,10}(\\.[^\\s.*>]{1,60}){0,3}",
        ) {
            let name = name.as_deref().and_then(EventName::parse);
            let encoding = encode(name.as_ref(), &subject, &data);
            let mut bytes = Bytes::copy_from_slice(encoding.bytes());
            let message = message(&mut bytes);
            prop_assert!(bytes.is_empty());
            prop_assert_eq!(message.id, position().to_string());
            let name = name.as_ref().map(EventName::as_str).unwrap_or_default();
            prop_assert_eq!(message.content, event(name, &subject, &data));
        }
    }
}
