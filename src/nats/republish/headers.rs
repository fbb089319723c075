//! Headers that a stream writes on each republished message (NATS ADR-28).
//!
//! The publisher of a message may have written headers of the same names. The stream appends its
//! own after them, so the last value counts.

use async_nats::{HeaderMap, Message};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Position of a republished message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RepublishHeaders<'m> {
    /// Subject under which it is stored.
    pub(crate) subject: &'m str,
    /// Its sequence in the stream.
    pub(crate) sequence: u64,
    /// Sequence of the previous message of the same subject; 0 if the stream holds none.
    pub(crate) previous: u64,
    /// Publish time in unix nanoseconds; servers before 2.10 do not send it.
    pub(crate) published: Option<i128>,
}

impl<'m> RepublishHeaders<'m> {
    /// Parses the headers of a message that this stream sent. `None` for any other message.
    pub(crate) fn of(message: &'m Message, stream: &str) -> Option<Self> {
        let headers = message.headers.as_ref()?;
        let name = last(headers, "Nats-Stream")?;
        let time = || OffsetDateTime::parse(last(headers, "Nats-Time-Stamp")?, &Rfc3339).ok();
        (name == stream).then_some(())?;
        Some(Self {
            subject: last(headers, "Nats-Subject")?,
            sequence: last(headers, "Nats-Sequence")?.parse().ok()?,
            previous: last(headers, "Nats-Last-Sequence")?.parse().ok()?,
            published: time().map(OffsetDateTime::unix_timestamp_nanos),
        })
    }
}

/// The stream writes its headers after those of the publisher, which may have the same names.
fn last<'m>(headers: &'m HeaderMap, name: &str) -> Option<&'m str> {
    headers.get_last(name).map(|value| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[(&str, &str)]) -> Message {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        Message {
            subject: "live.a".into(),
            reply: None,
            payload: "x".into(),
            headers: Some(map),
            status: None,
            description: None,
            length: 0,
        }
    }

    const STAMPED: [(&str, &str); 5] = [
        ("Nats-Stream", "A"),
        ("Nats-Subject", "a"),
        ("Nats-Sequence", "7"),
        ("Nats-Time-Stamp", "2026-11-22T16:40:42.573823481Z"),
        ("Nats-Last-Sequence", "5"),
    ];

    #[test]
    fn headers_of_the_stream_win_over_those_of_the_publisher() {
        let forged = message(
            &[
                &[("Nats-Sequence", "99"), ("Nats-Stream", "B")],
                &STAMPED[..],
            ]
            .concat(),
        );
        let headers = RepublishHeaders::of(&forged, "A").unwrap();
        assert_eq!(
            (headers.subject, headers.sequence, headers.previous),
            ("a", 7, 5)
        );
        assert_eq!(headers.published, Some(1_795_365_642_573_823_481));
    }

    #[test]
    fn message_from_another_publisher_has_no_republish_headers() {
        assert_eq!(RepublishHeaders::of(&message(&STAMPED), "B"), None);
        assert_eq!(RepublishHeaders::of(&message(&[]), "A"), None);
        assert_eq!(RepublishHeaders::of(&message(&STAMPED[..3]), "A"), None);
    }
}
