//! State of a JetStream stream, parsed from a `STREAM.INFO` response.

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::{JetStreamError, SEQUENCE_MAX};
use crate::event::{Fingerprint, Position, SourceTag};
use crate::nats::republish::mapping::Republish;
use crate::subject::is_reserved;

/// State of a JetStream stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Creation time in unix nanoseconds: a stream with another creation time is another stream.
    pub created: i128,
    /// Sequence of the first message; one more than the last if the stream is empty.
    pub first_seq: u64,
    /// Sequence of the last message, deleted or not; 0 if there never was one.
    pub last_seq: u64,
    /// Publish time of the first message, in unix nanoseconds.
    pub first_time: i128,
    /// Publish time of the last message, in unix nanoseconds.
    pub last_time: i128,
    /// Subjects of the stream; empty for a mirror.
    pub subjects: Vec<String>,
    pub(crate) retention: Retention,
    /// Messages expire, and leave no marker.
    pub(crate) expires_silently: bool,
    /// Republish configuration.
    pub republish: Option<Republish>,
    /// Subjects of the stream, if all of them are reserved by NATS and therefore never served.
    pub(crate) unservable: Option<String>,
}

/// Retention policy of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retention {
    Limits,
    Interest,
    Workqueue,
}

impl StreamState {
    /// Returns the state of a stream that many clients can read.
    ///
    /// # Errors
    /// [`JetStreamError::Retention`] if the stream deletes consumed messages;
    /// [`JetStreamError::Unservable`] and [`JetStreamError::SequenceTooHigh`] if it can deliver
    /// nothing.
    pub(crate) fn shareable(self) -> Result<Self, JetStreamError> {
        if let Some(stored) = self.unservable {
            return Err(JetStreamError::Unservable { stored });
        }
        if self.first_seq.max(self.last_seq) > SEQUENCE_MAX {
            return Err(JetStreamError::SequenceTooHigh(self.first_seq));
        }
        match self.retention {
            Retention::Limits => Ok(self),
            Retention::Interest => Err(JetStreamError::Retention { kind: "interest" }),
            Retention::Workqueue => Err(JetStreamError::Retention { kind: "work-queue" }),
        }
    }

    /// Position after this sequence number, with the fingerprint of the message there if it is the
    /// stream's last one.
    pub(in crate::nats) fn position_after(&self, seq: u64, tag: SourceTag) -> Position {
        // The server reports the first year if there was no message, and the time may be missing.
        let is_last = self.first_seq <= seq && seq == self.last_seq && self.last_time > 0;
        Position {
            tag,
            seq,
            fingerprint: is_last.then(|| Fingerprint::of_publish_time(self.last_time)),
        }
    }
}

/// Fields of `STREAM.INFO` that are used here. Parsed with our own types, so that a field that a
/// newer server adds or changes elsewhere does not stop a tailer.
#[derive(Deserialize)]
pub(super) struct StreamInfo {
    config: StreamSettings,
    created: String,
    state: StreamNumbers,
}

#[derive(Deserialize)]
struct StreamSettings {
    retention: Retention,
    #[serde(default)]
    subjects: Option<Vec<String>>,
    #[serde(default)]
    republish: Option<RepublishSettings>,
    #[serde(default)]
    subject_transform: Option<Transform>,
    #[serde(default)]
    mirror: Option<Origin>,
    #[serde(default)]
    sources: Option<Vec<serde::de::IgnoredAny>>,
    /// In nanoseconds; 0: messages do not expire.
    #[serde(default)]
    max_age: i64,
    /// Messages may have a TTL of their own.
    #[serde(default)]
    allow_msg_ttl: bool,
    /// In nanoseconds; 0: there are no markers.
    #[serde(default)]
    subject_delete_marker_ttl: i64,
}

#[derive(Deserialize)]
struct Transform {
    #[serde(default)]
    dest: String,
}

/// Origin of a mirror.
#[derive(Deserialize)]
struct Origin {
    #[serde(default)]
    name: String,
    #[serde(default)]
    subject_transforms: Option<Vec<serde::de::IgnoredAny>>,
}

impl StreamSettings {
    /// Returns the stream's subjects if all of them are reserved by NATS. The subjects of a stream
    /// with sources are unknown.
    fn unservable(&self) -> Option<String> {
        let is_transformed = self
            .subject_transform
            .as_ref()
            .is_some_and(|transform| !is_reserved(&transform.dest));
        if is_transformed || self.sources.is_some() {
            return None;
        }
        if let Some(origin) = &self.mirror {
            let is_bucket = origin.name.starts_with("KV_") || origin.name.starts_with("OBJ_");
            return (is_bucket && origin.subject_transforms.is_none())
                .then(|| format!("the subjects of {}", origin.name));
        }
        let subjects = self.subjects.as_deref().unwrap_or_default();
        let is_own = !subjects.is_empty() && subjects.iter().all(|subject| is_reserved(subject));
        is_own.then(|| subjects.join(", "))
    }
}

#[derive(Deserialize)]
struct RepublishSettings {
    #[serde(default)]
    src: String,
    dest: String,
    #[serde(default)]
    headers_only: bool,
}

impl RepublishSettings {
    fn republish(self) -> Republish {
        // Without a source, everything is republished.
        let source = if self.src.is_empty() {
            ">".to_owned()
        } else {
            self.src
        };
        Republish {
            source,
            destination: self.dest,
            headers_only: self.headers_only,
        }
    }
}

#[derive(Deserialize)]
struct StreamNumbers {
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    first_ts: Option<String>,
    #[serde(default)]
    last_ts: Option<String>,
}

impl StreamInfo {
    /// Returns `None` if the creation time is invalid.
    pub(super) fn state(self) -> Option<StreamState> {
        let time = |text: Option<String>| text.and_then(|text| nanos(&text)).unwrap_or(0);
        let (expires, has_markers) = (
            self.config.max_age > 0 || self.config.allow_msg_ttl,
            self.config.subject_delete_marker_ttl > 0,
        );
        Some(StreamState {
            expires_silently: expires && !has_markers,
            unservable: self.config.unservable(),
            created: nanos(&self.created)?,
            // A stream without any message yet reports 0 and 0.
            first_seq: self.state.first_seq.max(1),
            last_seq: self.state.last_seq,
            first_time: time(self.state.first_ts),
            last_time: time(self.state.last_ts),
            subjects: self.config.subjects.unwrap_or_default(),
            retention: self.config.retention,
            republish: self.config.republish.map(RepublishSettings::republish),
        })
    }
}

/// Parses a time as NATS writes it, into unix nanoseconds.
pub(super) fn nanos(text: &str) -> Option<i128> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_info_with_unknown_fields_is_parsed() {
        let text = r#"{"type":"x","config":{"name":"A","retention":"limits","subjects":["a.>"],"new":{"x":1}},
            "created":"2026-11-22T13:50:34.925287721Z","state":{"messages":0,"first_seq":0,"last_seq":0,
            "first_ts":"0001-01-01T00:00:00Z","last_ts":"0001-01-01T00:00:00Z"}}"#;
        let info: StreamInfo = serde_json::from_str(text).unwrap();
        let state = info.state().unwrap();
        assert_eq!(state.created, 1_795_355_434_925_287_721);
        assert_eq!((state.first_seq, state.last_seq), (1, 0));
        assert_eq!(state.retention, Retention::Limits);
    }

    #[test]
    fn position_after_the_last_message_has_its_fingerprint() {
        let position = |first_seq: u64, seq: u64, time: &str| {
            let text = format!(
                r#"{{"config":{{"name":"A","retention":"limits"}},"created":"2026-11-22T13:50:34Z",
                "state":{{"first_seq":{first_seq},"last_seq":7,"last_ts":"{time}"}}}}"#
            );
            let info: StreamInfo = serde_json::from_str(&text).unwrap();
            let tag = SourceTag::of_identity("a");
            info.state().unwrap().position_after(seq, tag).fingerprint
        };
        let time = "2026-11-22T13:50:34.925287721Z";
        let known = Fingerprint::of_publish_time(1_795_355_434_925_287_721);
        assert_eq!(position(1, 7, time), Some(known));
        assert_eq!(position(7, 7, time), Some(known));
        assert_eq!(position(1, 6, time), None);
        assert_eq!(position(8, 7, time), None, "the stream is empty");
        assert_eq!(position(1, 7, "0001-01-01T00:00:00Z"), None);
        assert_eq!(position(1, 7, "no time"), None);
    }

    #[test]
    fn messages_that_expire_without_markers_are_detected() {
        for (settings, expected) in [
            ("", false),
            (r#","max_age":1000"#, true),
            (r#","allow_msg_ttl":true"#, true),
            (r#","max_age":1000,"subject_delete_marker_ttl":1000"#, false),
            (r#","max_age":0,"allow_msg_ttl":false"#, false),
        ] {
            let text = format!(
                r#"{{"config":{{"name":"A","retention":"limits"{settings}}},"created":"2026-11-22T13:50:34Z",
                "state":{{"first_seq":1,"last_seq":7}}}}"#
            );
            let info: StreamInfo = serde_json::from_str(&text).unwrap();
            assert_eq!(
                info.state().unwrap().expires_silently,
                expected,
                "{settings}"
            );
        }
    }

    #[test]
    fn stream_with_only_reserved_subjects_is_detected() {
        let stored = |settings: &str| {
            let settings: StreamSettings =
                serde_json::from_str(&format!(r#"{{"retention":"limits",{settings}}}"#)).unwrap();
            settings.unservable()
        };
        assert_eq!(
            stored(r#""subjects":["$KV.a.>"]"#).as_deref(),
            Some("$KV.a.>")
        );
        assert_eq!(
            stored(r#""subjects":["$O.a.C.>","$O.a.M.>"]"#).as_deref(),
            Some("$O.a.C.>, $O.a.M.>")
        );
        assert_eq!(
            stored(r#""mirror":{"name":"KV_a"}"#).as_deref(),
            Some("the subjects of KV_a")
        );
        for settings in [
            r#""subjects":["$KV.a.>","a.>"]"#,
            r#""subjects":["$KV.a.>"],"subject_transform":{"src":"$KV.a.>","dest":"a.>"}"#,
            r#""subjects":["$KV.a.>"],"sources":[{"name":"A"}]"#,
            r#""mirror":{"name":"KV_a","subject_transforms":[{"src":"$KV.a.>","dest":"a.>"}]}"#,
            r#""mirror":{"name":"A"}"#,
            r#""subjects":["a.>"]"#,
        ] {
            assert_eq!(stored(settings), None, "{settings}");
        }
    }
}
