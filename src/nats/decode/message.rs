//! Conversion of a NATS message into an event: pure, total, and without panics on any input.
//!
//! Headers used: `Sidestream-Event` (event name), `Sidestream-Priority` (tier), `Sidestream-Version`
//! (version of the payload), `Sidestream-End` (end of a finite event stream), `Nats-Msg-Id`
//! (deduplication of core messages), and the removal markers of KV buckets and of nats-server. An
//! invalid name, tier or version is ignored and counted. A payload above [`PAYLOAD_BYTES_MAX`] gives no
//! event, and the caller reports a gap. [`AckInfo`] parses the reply subject of a JetStream
//! delivery.

use std::sync::Arc;
use std::time::Instant;

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::json;

use crate::event::{
    Event, EventHeaders, EventName, PAYLOAD_BYTES_MAX, Position, Tier, Version, headers,
};

/// Header with the event name.
const NAME: &str = "Sidestream-Event";
/// Header with the tier.
const TIER: &str = "Sidestream-Priority";
/// Header with the version of the payload.
const VERSION: &str = "Sidestream-Version";

/// Header of the message that ends a finite event stream, with the value [`TRUE`].
const END: &str = "Sidestream-End";
const TRUE: &str = "true";

/// Headers of W3C Trace Context.
const TRACE_PARENT: &str = "traceparent";
const TRACE_STATE: &str = "tracestate";

/// Header that identifies a repeated message.
const ID: &str = "Nats-Msg-Id";

/// Header of a message that a KV client stores when it deletes or purges a key.
const OPERATION: &str = "KV-Operation";
/// Header of a message that nats-server stores in place of messages removed by a limit or a request
/// (NATS ADR-43).
const MARKER: &str = "Nats-Marker-Reason";
/// Values of both headers that mark a removal.
const REMOVALS: [&str; 5] = ["DEL", "PURGE", "MaxAge", "Purge", "Remove"];

/// Fields of a message that an event is created from, borrowed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MessageFields<'a> {
    pub(crate) subject: &'a str,
    /// The header [`NAME`].
    pub(crate) name: Option<&'a str>,
    /// The header [`TIER`].
    pub(crate) tier: Option<&'a str>,
    /// The message has the header [`END`].
    pub(crate) is_end: bool,
    /// The header [`VERSION`].
    pub(crate) version: Option<&'a str>,
    /// All headers.
    pub(crate) headers: Option<&'a HeaderMap>,
    /// Publish time in unix nanoseconds, if the stream reports it.
    pub(crate) published: Option<i128>,
    /// It is part of the past that is read before clients are admitted.
    pub(crate) is_past: bool,
    /// All headers, if one of them has a CloudEvents attribute.
    pub(crate) cloud_event: Option<&'a HeaderMap>,
    /// The header [`ID`] of a message that was not stored: JetStream deduplicates stored messages
    /// itself.
    pub(crate) id: Option<&'a str>,
    /// Reason of a removal: the header [`OPERATION`] or [`MARKER`] of a message without payload.
    pub(crate) removed: Option<&'a str>,
    pub(crate) payload: &'a [u8],
    /// Size of a message whose content the client library dropped because it is too large; 0 for
    /// all others.
    pub(crate) dropped_bytes: usize,
}

impl<'a> MessageFields<'a> {
    /// Fields of a message as the client library parsed it.
    pub(crate) fn of(message: &'a Message) -> Self {
        let header = |name| {
            message
                .headers
                .as_ref()
                .and_then(|headers: &HeaderMap| headers.get(name))
                .map(|value| value.as_str())
        };
        let (subject, payload) = (message.subject.as_str(), &message.payload);
        // A removal marker has no payload; other messages are not searched for the headers.
        let removed = if payload.is_empty() {
            header(OPERATION).or_else(|| header(MARKER))
        } else {
            None
        };
        Self {
            subject,
            name: header(NAME),
            tier: header(TIER),
            is_end: header(END) == Some(TRUE),
            version: header(VERSION),
            headers: message.headers.as_ref(),
            published: None,
            is_past: false,
            cloud_event: message
                .headers
                .as_ref()
                .filter(|headers| is_cloud_event(headers)),
            id: None,
            removed: removed.filter(is_removal),
            payload,
            dropped_bytes: dropped_bytes(message),
        }
    }

    /// Fields of a message of a core subject.
    pub(crate) fn of_core(message: &'a Message) -> Self {
        let id = message
            .headers
            .as_ref()
            .and_then(|headers: &HeaderMap| headers.get(ID))
            .map(|value| value.as_str());
        // JetStream accepts at most 255 bytes too; a longer value is not used as an id.
        let is_usable = |id: &&str| !id.is_empty() && id.len() <= 255 && !has_invalid_bytes(id);
        Self {
            id: id.filter(is_usable),
            ..Self::of(message)
        }
    }
}

fn is_cloud_event(fields: &HeaderMap) -> bool {
    fields
        .iter()
        .any(|(name, _)| headers::is_attribute(name.as_ref()))
}

/// Attributes in headers. A value with invalid bytes is left out.
fn cloud_event(map: &HeaderMap) -> Option<String> {
    let first = |(name, values): (&'_ HeaderName, &'_ Vec<HeaderValue>)| {
        let value = values.first()?.as_str();
        let name: &str = name.as_ref();
        (!has_invalid_bytes(value)).then(|| (name.to_owned(), value.to_owned()))
    };
    // The order of a hash map differs between pods.
    let mut fields: Vec<(String, String)> = map.iter().filter_map(first).collect();
    fields.sort_unstable();
    let fields = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    headers::attributes(fields)
}

/// Size of a message that the client library did not keep: it reports a length but no content.
fn dropped_bytes(message: &Message) -> usize {
    if !message.payload.is_empty() || message.headers.is_some() {
        return 0;
    }
    let around = message.subject.len() + message.reply.as_ref().map_or(0, |reply| reply.len());
    message.length.saturating_sub(around)
}

/// Returns true if a header value was not valid text: bytes that are not UTF-8, or a CR. The client
/// library replaces them with U+FFFD, so two different values may have become equal.
fn has_invalid_bytes(value: &str) -> bool {
    value.contains(char::REPLACEMENT_CHARACTER)
}

fn is_removal(reason: &&str) -> bool {
    REMOVALS.contains(reason)
}

/// Returns true if headers, as NATS writes them, have the header [`END`].
pub(crate) fn has_end(headers: &[u8]) -> bool {
    headers.split(|byte| *byte == b'\n').any(|line| {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        parts.next() == Some(END.as_bytes())
            && parts
                .next()
                .is_some_and(|value| value.trim_ascii() == TRUE.as_bytes())
    })
}

impl<'a> MessageFields<'a> {
    /// The headers `traceparent` and `tracestate`.
    pub(crate) fn trace_context(&self) -> (Option<&'a str>, Option<&'a str>) {
        let header = |name| {
            let value = self.headers?.get(name)?;
            Some(value.as_str())
        };
        (header(TRACE_PARENT), header(TRACE_STATE))
    }
}

/// Result of decoding a message.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// `None` if the payload is larger than [`PAYLOAD_BYTES_MAX`].
    pub(crate) event: Option<Event>,
    /// The publisher's event name is not valid in an `event:` field.
    pub(crate) is_name_invalid: bool,
    /// The publisher's tier does not exist.
    pub(crate) is_tier_invalid: bool,
    /// The publisher's version is not a number.
    pub(crate) is_version_invalid: bool,
}

/// Creates an event from a message.
pub(crate) fn to_event(
    fields: MessageFields<'_>,
    position: Position,
    received: Instant,
) -> Decoded {
    let name = match fields.removed {
        None => fields
            .name
            .filter(|name| !has_invalid_bytes(name))
            .and_then(EventName::parse),
        Some(_) => Some(EventName::removed()),
    };
    let tier = fields.tier.and_then(Tier::parse);
    let is_name_invalid = fields.name.is_some() && name.is_none();
    let is_tier_invalid = fields.tier.is_some() && tier.is_none();
    let version = fields.version.and_then(Version::parse);
    let is_version_invalid = fields.version.is_some() && version.is_none();
    let attributes = fields.cloud_event.and_then(cloud_event);
    let event =
        (fields.payload.len() <= PAYLOAD_BYTES_MAX && fields.dropped_bytes == 0).then(|| Event {
            position,
            subject: Arc::from(fields.subject),
            name,
            tier,
            is_end: fields.is_end,
            version,
            sample: None,
            headers: EventHeaders::new(fields.id, attributes.as_deref()),
            data: match fields.removed {
                // Copied: a slice would keep the client's read buffer of 64 KiB alive for a hundred
                // bytes.
                None => Bytes::copy_from_slice(fields.payload),
                Some(reason) => {
                    Bytes::from(json!({ "subject": fields.subject, "reason": reason }).to_string())
                }
            },
            received,
        });
    Decoded {
        event,
        is_name_invalid,
        is_tier_invalid,
        is_version_invalid,
    }
}

/// Delivery information in the reply subject of a JetStream message.
///
/// `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>`, or
/// with domain and account hash before the stream, and possibly more tokens after it (NATS ADR-15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AckInfo {
    /// Sequence in the stream.
    pub(crate) sequence: u64,
    /// Number of the delivery. If the next one is not one more, a message was lost.
    pub(crate) delivery: u64,
    /// Publish time in unix nanoseconds.
    pub(crate) published: i128,
    /// Number of messages pending for this consumer.
    pub(crate) pending: u64,
}

impl AckInfo {
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let tokens = reply.strip_prefix("$JS.ACK.")?.as_bytes();
        // Finds all dots first: the number of tokens decides the meaning of each.
        let (mut ends, mut dots) = ([0; 9], 0);
        for dot in memchr::memchr_iter(b'.', tokens) {
            if let Some(end) = ends.get_mut(dots) {
                *end = dot;
            }
            dots += 1;
        }
        let first = match dots + 1 {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let token = |nth: usize| {
            let end = if nth < dots {
                *ends.get(nth)?
            } else {
                tokens.len()
            };
            number(tokens.get(ends.get(nth - 1)? + 1..end)?)
        };
        Some(Self {
            sequence: token(first)?,
            delivery: token(first + 1)?,
            published: token(first + 2)?.into(),
            pending: token(first + 3)?,
        })
    }
}

/// Parses decimal digits. Written by hand because every message has four such numbers.
fn number(digits: &[u8]) -> Option<u64> {
    let add_digit = |number: u64, digit: &u8| {
        let digit = digit.wrapping_sub(b'0');
        if digit < 10 {
            number.checked_mul(10)?.checked_add(digit.into())
        } else {
            None
        }
    };
    digits
        .iter()
        .try_fold(0, add_digit)
        .filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::SourceTag;

    fn convert(fields: MessageFields<'_>) -> Decoded {
        let position = Position {
            tag: SourceTag::of_identity("x"),
            seq: 1,
            fingerprint: None,
        };
        to_event(fields, position, Instant::now())
    }

    fn message(
        subject: &str,
        headers: Option<HeaderMap>,
        payload: &[u8],
        length: usize,
    ) -> Message {
        let payload = Bytes::copy_from_slice(payload);
        Message {
            subject: subject.into(),
            reply: None,
            payload,
            headers,
            status: None,
            description: None,
            length,
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_decoding_panic(
            subject in "\\PC*", value in prop::option::of("\\PC*"), payload in prop::collection::vec(any::<u8>(), 0..200),
            reply in "(\\$JS\\.ACK\\.)?[0-9a-z.-]{0,60}", length in any::<usize>(),
        ) {
            let headers = value.map(|value| HeaderMap::from_iter([NAME, TIER, ID].map(|name| (name.parse().unwrap(), value.parse().unwrap()))));
            let message = message(&subject, headers, &payload, length);
            let fields = MessageFields::of_core(&message);
            let is_kept = fields.dropped_bytes == 0;
            let event = convert(fields).event;
            prop_assert_eq!(event.is_some(), is_kept);
            if let Some(event) = event {
                prop_assert_eq!(&event.data[..], &payload[..]);
            }
            let _ = AckInfo::parse(&reply);
        }
    }

    #[test]
    fn publisher_sets_event_name_and_tier() {
        let decoded = convert(MessageFields {
            name: Some("created"),
            tier: Some("Critical"),
            ..MessageFields::default()
        });
        let event = decoded.event.unwrap();
        assert_eq!(event.name.unwrap().as_str(), "created");
        assert_eq!(event.tier, Some(Tier::Critical));
        assert!(!decoded.is_name_invalid && !decoded.is_tier_invalid);
    }

    #[test]
    fn attributes_of_a_cloud_event_are_kept_and_other_headers_are_not() {
        let event = |headers: &[(&str, &str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let message = message("a", Some(HeaderMap::from_iter(headers)), b"x", 0);
            let event = convert(MessageFields::of(&message)).event.unwrap();
            event.headers
        };
        let damaged = ("ce-source", "a\u{fffd}");
        let kept = event(&[
            ("Ce-Type", "t"),
            ("Content-Type", "text/plain"),
            ("X", "y"),
            damaged,
        ]);
        let expected = [("type", "t"), ("datacontenttype", "text/plain")];
        assert_eq!(kept.cloud_event().collect::<Vec<_>>(), expected);
        let without = [("Content-Type", "text/plain"), ("Nats-Msg-Id", "7")];
        assert_eq!(event(&without), EventHeaders::default());
    }

    #[test]
    fn removal_marker_becomes_a_removed_event() {
        let removed = |headers: &[(&str, &str)], payload: &[u8]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let message = message("a.\"b", Some(HeaderMap::from_iter(headers)), payload, 0);
            let event = convert(MessageFields::of(&message)).event.unwrap();
            (
                event.name.map(|name| name.as_str().to_owned()),
                String::from_utf8(event.data.to_vec()).unwrap(),
            )
        };
        for (headers, reason) in [
            (&[("KV-Operation", "DEL")][..], "DEL"),
            (
                &[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")],
                "PURGE",
            ),
            (
                &[("Nats-Marker-Reason", "MaxAge"), ("Nats-TTL", "5s")],
                "MaxAge",
            ),
            (
                &[("Sidestream-Event", "x"), ("Nats-Marker-Reason", "Remove")],
                "Remove",
            ),
        ] {
            let data = format!(r#"{{"reason":"{reason}","subject":"a.\"b"}}"#);
            assert_eq!(
                removed(headers, b""),
                (Some("sidestream.removed".to_owned()), data)
            );
            // A message with a payload is an event as its publisher wrote it.
            assert_eq!(removed(headers, b"x").1, "x");
        }
        assert_eq!(
            removed(&[("KV-Operation", "PUT")], b""),
            (None, String::new())
        );
        assert_eq!(removed(&[], b""), (None, String::new()));
    }

    #[test]
    fn invalid_name_or_tier_is_ignored_and_reported() {
        let decoded = convert(MessageFields {
            name: Some("a\nb"),
            tier: Some("urgent"),
            ..MessageFields::default()
        });
        let event = decoded.event.unwrap();
        assert_eq!((event.name, event.tier), (None, None));
        assert!(decoded.is_name_invalid && decoded.is_tier_invalid);
    }

    #[test]
    fn payload_over_the_limit_gives_no_event() {
        let payload = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert!(
            convert(MessageFields {
                payload: &payload,
                ..MessageFields::default()
            })
            .event
            .is_none()
        );
        assert!(
            convert(MessageFields {
                payload: &payload[1..],
                ..MessageFields::default()
            })
            .event
            .is_some()
        );
    }

    #[test]
    fn name_or_id_with_invalid_bytes_is_ignored() {
        let damaged = HeaderMap::from_iter(
            [NAME, ID].map(|name| (name.parse().unwrap(), "a\u{fffd}".parse().unwrap())),
        );
        let message = message("a", Some(damaged), b"x", 0);
        let decoded = convert(MessageFields::of_core(&message));
        assert!(decoded.is_name_invalid);
        let event = decoded.event.unwrap();
        assert_eq!((event.name, event.headers), (None, EventHeaders::default()));
    }

    #[test]
    fn message_with_dropped_content_gives_no_event_and_an_empty_one_does() {
        let dropped = message("a.b", None, b"", 20_000_003);
        assert_eq!(MessageFields::of(&dropped).dropped_bytes, 20_000_000);
        assert!(convert(MessageFields::of(&dropped)).event.is_none());
        let empty = message("a.b", None, b"", 3);
        assert_eq!(convert(MessageFields::of(&empty)).event.unwrap().data, "");
    }

    #[test]
    fn ack_subject_is_parsed_in_both_forms() {
        let expected = Some(AckInfo {
            sequence: 100,
            delivery: 7,
            published: 1_790_230_470_084_404_000,
            pending: 42,
        });
        assert_eq!(
            AckInfo::parse("$JS.ACK.events.c.3.100.7.1790230470084404000.42"),
            expected
        );
        assert_eq!(
            AckInfo::parse("$JS.ACK._.hash.events.c.3.100.7.1790230470084404000.42"),
            expected
        );
        assert_eq!(
            AckInfo::parse("$JS.ACK.hub.hash.events.c.3.100.7.1790230470084404000.42.token.more"),
            expected
        );
        for other in [
            "",
            "$JS.ACK.a.b.c.d.e.f.g",
            "_INBOX.a.b",
            "$JS.ACK.events.c.3.100.7.1.42.8",
        ] {
            assert_eq!(AckInfo::parse(other), None, "{other:?}");
        }
    }
}
