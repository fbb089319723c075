//! What a stream writes on each message that it republishes: where it stands, and what stood before it.

use async_nats::{HeaderMap, Message};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The place of a republished message (NATS ADR-28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RepublishHeaders<'m> {
    /// The subject under which it is stored.
    pub(crate) subject: &'m str,
    /// Its sequence number in the stream.
    pub(crate) sequence: u64,
    /// The sequence number of the message before it of the same subject; 0 when there was none any more.
    pub(crate) previous: u64,
    /// When it was published, in unix nanoseconds; servers before 2.10 do not say it.
    pub(crate) published: Option<i128>,
}

impl<'m> RepublishHeaders<'m> {
    /// The stamp of a message that this stream has sent; nothing for any other.
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

/// The stream writes behind the headers of the publisher, who may have written the same names.
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
    fn the_stream_has_the_last_word() {
        let forged = message(
            &[
                &[("Nats-Sequence", "99"), ("Nats-Stream", "B")],
                &STAMPED[..],
            ]
            .concat(),
        );
        let stamp = RepublishHeaders::of(&forged, "A").unwrap();
        assert_eq!((stamp.subject, stamp.sequence, stamp.previous), ("a", 7, 5));
        assert_eq!(stamp.published, Some(1_795_365_642_573_823_481));
    }

    #[test]
    fn what_the_stream_did_not_send_has_no_stamp() {
        assert_eq!(RepublishHeaders::of(&message(&STAMPED), "B"), None);
        assert_eq!(RepublishHeaders::of(&message(&[]), "A"), None);
        assert_eq!(RepublishHeaders::of(&message(&STAMPED[..3]), "A"), None);
    }
}
