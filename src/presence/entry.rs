//! Entry of one event stream in the presence bucket: key, value, and rules for claiming a position.
//!
//! Pure. The value is JSON; its field names are what `nats kv get` and `/connections` show. Times
//! are milliseconds of Unix time. Each value contains the time at which it expires, so that readers
//! do not depend on the server deleting it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CloseReason, State};
use crate::event::EventId;

/// Key of an entry: `<client>.<connection>` for an event stream, `<client>.<connection>.position`
/// for the position that a drain recorded.
///
/// Positions have their own keys, so that looking up those of a client does not become slower with
/// the number of event streams that are open under its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Client name, from the route's `client`.
    pub client: String,
    /// Identifies the event stream among those of all pods and times.
    pub connection: String,
    /// The entry is a recorded position.
    pub is_position: bool,
}

/// Last token of the key of a position.
pub const POSITION: &str = "position";

impl Key {
    /// Encodes the key for NATS, for any client name.
    #[must_use]
    pub fn encode(&self) -> String {
        let (client, connection) = (token(&self.client), token(&self.connection));
        if self.is_position {
            format!("{client}.{connection}.{POSITION}")
        } else {
            format!("{client}.{connection}")
        }
    }

    /// Decodes the output of [`Key::encode`].
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (client, rest) = text.split_once('.')?;
        let (connection, is_position) = match rest.split_once('.') {
            Some((connection, POSITION)) => (connection, true),
            Some(_) => return None,
            None => (rest, false),
        };
        Some(Self {
            client: decode_token(client)?,
            connection: decode_token(connection)?,
            is_position,
        })
    }
}

/// Encodes any text as one token of a key (ADR-8: letters, digits and `-/_=`). Any other byte than
/// a letter, a digit, `-` or `_` becomes `=` and two hex digits; the empty text becomes a single
/// `=`.
#[must_use]
pub fn token(text: &str) -> String {
    if text.is_empty() {
        return "=".to_owned();
    }
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => token.push(char::from(byte)),
            _ => token.push_str(&format!("={byte:02X}")),
        }
    }
    token
}

fn decode_token(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'=' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    (!bytes.is_empty()).then(|| String::from_utf8(bytes).ok())?
}

/// Value of an entry. Times are milliseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the pod that serves the event stream, or did.
    pub pod: String,
    /// Path of the route as configured.
    pub route: String,
    /// The first [`SUBJECTS_MAX`] filters of the event stream.
    pub subjects: Vec<String>,
    /// Digest of all its filters, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlisted: Option<FilterDigest>,
    /// State of the event stream. `reconnecting` with a `reason`: a drain ended it, and its client
    /// is expected on another pod.
    pub state: State,
    /// Start of the state.
    pub since: u64,
    /// Last event id that was sent.
    pub last_event_id: String,
    /// Reason of the end; `None` while it is open.
    #[serde(default)]
    pub reason: Option<String>,
    /// Time at which a client without a position resumed from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<u64>,
    /// Time after which the entry is obsolete: its pod is gone, or readers have had time to read
    /// it.
    pub expires: u64,
}

/// 4 filters of at most 255 bytes each: the entry stays below 2 KiB for any number of filters.
pub const SUBJECTS_MAX: usize = 4;

/// Digest of the filters of an event stream that has more than an entry lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterDigest {
    /// Number of filters, listed ones included.
    pub total: usize,
    /// SHA-256 of all filters, joined by line feeds: identifies a request for the same filters.
    pub sha256: String,
}

impl FilterDigest {
    /// Truncates a list of filters to what an entry lists. Returns a digest if it was longer.
    #[must_use]
    pub fn cut(subjects: &mut Vec<String>) -> Option<Self> {
        if subjects.len() <= SUBJECTS_MAX {
            return None;
        }
        let digest = Sha256::digest(subjects.join("\n"));
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let total = subjects.len();
        subjects.truncate(SUBJECTS_MAX);
        Some(Self { total, sha256 })
    }
}

/// One minute: how long clients may reconnect without a position after a drain, and how long an
/// ended entry is kept.
pub const ENDED_FOR: Duration = Duration::from_secs(60);

/// Request of a reconnecting client for its recorded position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Client name, from the route's own `client`.
    pub client: String,
    /// Path of the route as configured.
    pub route: String,
    /// Filters of the event stream, truncated as in an entry.
    pub subjects: Vec<String>,
    /// Digest of all filters, if an entry does not list all.
    pub unlisted: Option<FilterDigest>,
}

impl ClaimRequest {
    /// Returns the request for an event stream with these filters.
    #[must_use]
    pub fn new(client: String, route: String, mut subjects: Vec<String>) -> Self {
        let unlisted = FilterDigest::cut(&mut subjects);
        Self {
            client,
            route,
            subjects,
            unlisted,
        }
    }
}

impl Entry {
    /// Returns true if the entry has not expired.
    #[must_use]
    pub fn is_current(&self, now: u64) -> bool {
        self.expires > now
    }

    /// Returns true if a drain recorded the position for such a request, and it is not claimed.
    #[must_use]
    pub fn is_available_to(&self, request: &ClaimRequest, now: u64) -> bool {
        self.state == State::Reconnecting && self.is_recorded_for(request, now)
    }

    /// Returns true if a drain recorded the position for such a request, and another connection has
    /// claimed it.
    #[must_use]
    pub fn is_claimed_from(&self, request: &ClaimRequest, now: u64) -> bool {
        self.claimed.is_some() && self.is_recorded_for(request, now)
    }

    fn is_recorded_for(&self, request: &ClaimRequest, now: u64) -> bool {
        self.reason.as_deref() == Some(CloseReason::Drain.label())
            && self.is_current(now)
            && now.saturating_sub(self.since) < ENDED_FOR.as_millis() as u64
            && self.route == request.route
            && self.subjects == request.subjects
            && self.unlisted == request.unlisted
    }

    /// Returns true if a client with `id` is past the recorded position: for each source in `id`,
    /// the record is at or before it.
    #[must_use]
    pub fn is_passed_by(&self, id: &EventId) -> bool {
        let Ok(recorded) = EventId::parse(self.last_event_id.as_bytes()) else {
            return false;
        };
        let is_passed = |seq, tag| recorded.find(tag).is_some_and(|at| at.seq <= seq);
        !id.positions().is_empty() && id.positions().iter().all(|at| is_passed(at.seq, at.tag))
    }

    /// Returns the entry as claimed by a connection without a position. No other connection may
    /// claim it; those that try can see that it was claimed.
    #[must_use]
    pub fn claim(&self, now: u64) -> Self {
        Self {
            claimed: Some(now),
            ..self.remove(now)
        }
    }

    /// Returns the entry as removed, because its client has a position and no longer needs it.
    #[must_use]
    pub fn remove(&self, now: u64) -> Self {
        Self {
            state: State::Closed,
            since: now,
            expires: now + ENDED_FOR.as_millis() as u64,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_client_name_has_a_valid_key_that_decodes(client in any::<String>(), connection in "[a-f0-9-]{1,20}", is_position: bool) {
            let key = Key { client, connection, is_position };
            let text = key.encode();
            prop_assert_eq!(text.matches('.').count(), 1 + usize::from(is_position));
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
            prop_assert!(text.bytes().all(legal) && !text.starts_with('.'));
            prop_assert_eq!(Key::decode(&text), Some(key));
        }

        #[test]
        fn decoding_never_panics_and_round_trips(text in any::<String>()) {
            if let Some(key) = Key::decode(&text) {
                prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            }
        }
    }

    #[test]
    fn keys_are_encoded_as_documented_and_invalid_ones_are_rejected() {
        let key = |client: &str| {
            Key {
                client: client.into(),
                connection: "7-1".into(),
                is_position: false,
            }
            .encode()
        };
        assert_eq!(key("42"), "42.7-1");
        let position = Key {
            client: "42".into(),
            connection: "7-1".into(),
            is_position: true,
        };
        assert_eq!(position.encode(), "42.7-1.position");
        assert_eq!(key("a.b@c é"), "a=2Eb=40c=20=C3=A9.7-1");
        assert_eq!(key(""), "=.7-1");
        for text in [
            "",
            "a",
            ".a",
            "a.",
            "a=2.b",
            "a=XX.b",
            "=FF.b",
            "a==.b",
            "a.b.c",
            "a.b.",
            "a.b.position.c",
        ] {
            assert_eq!(Key::decode(text), None, "{text:?}");
        }
    }

    const NOW: u64 = 1_700_000_000_000;

    fn left() -> Entry {
        Entry {
            pod: "a".into(),
            route: "/events/{id}".into(),
            subjects: vec!["a.1".into(), "b".into()],
            unlisted: None,
            state: State::Reconnecting,
            since: NOW,
            last_event_id: "3fa9c1-7".into(),
            reason: Some("drain".into()),
            claimed: None,
            expires: NOW + 60_000,
        }
    }

    fn request() -> ClaimRequest {
        ClaimRequest::new("42".into(), left().route, left().subjects)
    }

    #[test]
    fn position_is_claimable_only_within_a_minute_for_the_same_route_and_subjects() {
        assert!(
            left().is_available_to(&request(), NOW)
                && left().is_available_to(&request(), NOW + 59_999)
        );
        for (what, entry, request) in [
            (
                "other subjects",
                left(),
                ClaimRequest {
                    subjects: vec!["a.1".into()],
                    ..request()
                },
            ),
            (
                "another route",
                left(),
                ClaimRequest {
                    route: "/all".into(),
                    ..request()
                },
            ),
            (
                "resumes, and was not drained",
                Entry {
                    reason: None,
                    ..left()
                },
                request(),
            ),
            (
                "ended otherwise",
                Entry {
                    reason: Some("client".into()),
                    ..left()
                },
                request(),
            ),
            ("claimed already", left().claim(NOW), request()),
            ("removed", left().remove(NOW), request()),
            (
                "a minute ago",
                Entry {
                    since: NOW - 60_000,
                    expires: NOW + 1,
                    ..left()
                },
                request(),
            ),
            (
                "expired",
                Entry {
                    expires: NOW,
                    ..left()
                },
                request(),
            ),
        ] {
            assert!(!entry.is_available_to(&request, NOW), "{what}");
        }
    }

    #[test]
    fn claim_is_visible_only_to_requests_for_the_same_route_and_subjects() {
        let claimed = left().claim(NOW);
        assert!(
            claimed.is_claimed_from(&request(), NOW)
                && claimed.is_claimed_from(&request(), NOW + 59_999)
        );
        for (what, entry, request) in [
            (
                "other subjects",
                claimed.clone(),
                ClaimRequest::new("42".into(), left().route, vec!["b".into()]),
            ),
            (
                "another route",
                claimed.clone(),
                ClaimRequest {
                    route: "/all".into(),
                    ..request()
                },
            ),
            ("left for it", left(), request()),
            ("removed by its owner", left().remove(NOW), request()),
            ("a minute ago", left().claim(NOW - 60_000), request()),
        ] {
            assert!(!entry.is_claimed_from(&request, NOW), "{what}");
        }
    }

    #[test]
    fn only_an_id_at_or_after_the_recorded_position_passes_it() {
        let entry = |id: &str| Entry {
            last_event_id: id.into(),
            ..left()
        };
        let passes = |recorded: &str, id: &str| {
            entry(recorded).is_passed_by(&EventId::parse(id.as_bytes()).unwrap())
        };
        assert!(passes("3fa9c1-7-00aa", "3fa9c1-7-00aa") && passes("3fa9c1-7-00aa", "3fa9c1-8"));
        // A pod of version 0.1 recorded the position.
        assert!(passes("3fa9c1-7-00aa", "3fa9c1-7-000005a"));
        assert!(
            !passes("3fa9c1-7-00aa", "3fa9c1-6-00ab")
                && !passes("3fa9c1-7", "3fa9c2-7")
                && !passes("nonsense", "3fa9c1-7")
        );
        // Several sources: each must be passed. The caller leaves out sources of core subjects.
        assert!(
            passes("3fa9c1-7.aaaaaa-3", "3fa9c1-7.aaaaaa-4")
                && passes("3fa9c1-7.aaaaaa-3", "3fa9c1-9")
        );
        assert!(!passes("3fa9c1-7.aaaaaa-3", "3fa9c1-8.aaaaaa-2"));
        assert!(!entry("3fa9c1-7").is_passed_by(&EventId::default()));
    }

    #[test]
    fn entry_lists_four_subjects_and_identifies_all_of_them() {
        let many: Vec<String> = (0..16).map(|number| format!("a.{number}")).collect();
        let request = ClaimRequest::new("42".into(), left().route, many.clone());
        assert_eq!(
            (
                request.subjects.len(),
                request.unlisted.as_ref().unwrap().total
            ),
            (SUBJECTS_MAX, 16)
        );
        let (subjects, unlisted) = (request.subjects.clone(), request.unlisted.clone());
        let entry = Entry {
            subjects,
            unlisted,
            ..left()
        };
        assert!(entry.is_available_to(&request, NOW));
        let mut other = many.clone();
        other[15] = "a.x".into();
        for other in [other, many[..15].to_vec(), many[..4].to_vec()] {
            assert!(
                !entry.is_available_to(&ClaimRequest::new("42".into(), left().route, other), NOW)
            );
        }
        let largest = Entry {
            subjects: vec!["s".repeat(255); SUBJECTS_MAX],
            ..entry
        };
        assert!(serde_json::to_vec(&largest).unwrap().len() < 2048);
    }
}
