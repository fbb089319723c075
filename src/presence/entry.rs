//! What all pods are told of one event stream: its key and its value in a bucket.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CloseReason, State};
use crate::sse::EventId;

/// Key of an entry: `<client>.<connection>` for an event stream, `<client>.<connection>.position` for the position that a
/// drain has recorded of it.
///
/// Positions have keys of their own, so that looking for those of a client costs nothing more when many event streams are
/// open under its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who it is, by the route's `client`.
    pub client: String,
    /// Tells the event stream from all others, of all pods and times.
    pub connection: String,
    /// The entry is a recorded position.
    pub is_position: bool,
}

/// Last token of the key of a position.
pub const POSITION: &str = "position";

impl Key {
    /// The key as NATS takes it, whatever the client is called.
    #[must_use]
    pub fn encode(&self) -> String {
        let (client, connection) = (token(&self.client), token(&self.connection));
        if self.is_position {
            format!("{client}.{connection}.{POSITION}")
        } else {
            format!("{client}.{connection}")
        }
    }

    /// Reads what [`Key::encode`] has written.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (client, rest) = text.split_once('.')?;
        let (connection, is_position) = match rest.split_once('.') {
            Some((connection, POSITION)) => (connection, true),
            Some(_) => return None,
            None => (rest, false),
        };
        Some(Self {
            client: plain(client)?,
            connection: plain(connection)?,
            is_position,
        })
    }
}

/// Any text as one token of a key (ADR-8: letters, digits and `-/_=`): what is no letter, digit, `-` or `_` becomes `=`
/// and two hex digits a byte, and nothing at all a single `=`.
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

fn plain(token: &str) -> Option<String> {
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

/// The value: what is told of one event stream. Times are in milliseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which pod serves it, or did.
    pub pod: String,
    /// The path as it is configured.
    pub route: String,
    /// The first [`SUBJECTS_MAX`] of the filters that it reads.
    pub subjects: Vec<String>,
    /// All filters that it reads, when there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlisted: Option<Unlisted>,
    /// Where it stands. `reconnecting` with a `reason`: it was handed over, and its client is expected at another pod.
    pub state: State,
    /// Since when.
    pub since: u64,
    /// The position that was handed out last; once it has ended by a drain, the last one that was sent.
    pub last_event_id: String,
    /// Why it ended; none while it is open.
    #[serde(default)]
    pub reason: Option<String>,
    /// When a client that came back without a position resumed from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<u64>,
    /// After this it says nothing any more: its pod is gone, or everyone has had time to read it.
    pub expires: u64,
}

/// 4 filters of at most 255 bytes each are listed in an entry: however many a client names, its entry stays below 3 KiB.
pub const SUBJECTS_MAX: usize = 4;

/// Filters of an event stream that reads more than an entry lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlisted {
    /// Number of filters, those that are listed included.
    pub total: usize,
    /// SHA-256 over all of them, joined by line ends: recognises a request for the same ones.
    pub sha256: String,
}

impl Unlisted {
    /// Cuts a list of filters to what an entry lists; what was cut is summed up.
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

/// A minute: how long after a drain its clients may come back without a position, and how long an end is told.
pub const ENDED_FOR: Duration = Duration::from_secs(60);

/// Who comes back, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who it is, by the route's own `client`.
    pub client: String,
    /// The path as it is configured.
    pub route: String,
    /// The filters that it wants to read; the first of them, as in an entry.
    pub subjects: Vec<String>,
    /// All of them, when there are more than an entry lists.
    pub unlisted: Option<Unlisted>,
}

impl Wanted {
    /// An event stream of these filters.
    #[must_use]
    pub fn new(client: String, route: String, mut subjects: Vec<String>) -> Self {
        let unlisted = Unlisted::cut(&mut subjects);
        Self {
            client,
            route,
            subjects,
            unlisted,
        }
    }
}

impl Entry {
    /// Whether it still says anything.
    #[must_use]
    pub fn is_current(&self, now: u64) -> bool {
        self.expires > now
    }

    /// Whether a drain has left it for whoever comes back so.
    #[must_use]
    pub fn is_left_for(&self, wanted: &Wanted, now: u64) -> bool {
        self.state == State::Reconnecting && self.is_recorded_for(wanted, now)
    }

    /// Whether a drain has left it so, and another connection has resumed from it.
    #[must_use]
    pub fn is_claimed_from(&self, wanted: &Wanted, now: u64) -> bool {
        self.claimed.is_some() && self.is_recorded_for(wanted, now)
    }

    fn is_recorded_for(&self, wanted: &Wanted, now: u64) -> bool {
        self.reason.as_deref() == Some(CloseReason::Drain.reason())
            && self.is_current(now)
            && now.saturating_sub(self.since) < ENDED_FOR.as_millis() as u64
            && self.route == wanted.route
            && self.subjects == wanted.subjects
            && self.unlisted == wanted.unlisted
    }

    /// Whether a client that was served up to `id` has passed it: in each of the sources of `id` it is at or before that
    /// position.
    #[must_use]
    pub fn is_passed_by(&self, id: &EventId) -> bool {
        let Ok(recorded) = EventId::parse(self.last_event_id.as_bytes()) else {
            return false;
        };
        let is_passed = |seq, tag| recorded.find(tag).is_some_and(|at| at.seq <= seq);
        !id.components().is_empty() && id.components().iter().all(|at| is_passed(at.seq, at.tag))
    }

    /// The same, when a connection without a position resumes from it: no other connection may, and those that come for it
    /// learn that one has.
    #[must_use]
    pub fn claim(&self, now: u64) -> Self {
        Self {
            claimed: Some(now),
            ..self.remove(now)
        }
    }

    /// The same, when its client has a position itself and this one is obsolete.
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
        fn any_client_has_a_key_that_is_legal_and_read_back(client in any::<String>(), connection in "[a-f0-9-]{1,20}", is_position: bool) {
            let key = Key { client, connection, is_position };
            let text = key.encode();
            prop_assert_eq!(text.matches('.').count(), 1 + usize::from(is_position));
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
            prop_assert!(text.bytes().all(legal) && !text.starts_with('.'));
            prop_assert_eq!(Key::decode(&text), Some(key));
        }

        #[test]
        fn any_text_gets_an_answer(text in any::<String>()) {
            if let Some(key) = Key::decode(&text) {
                prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            }
        }
    }

    #[test]
    fn keys_are_written_as_documented_and_what_is_none_is_not_read() {
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

    fn wanted() -> Wanted {
        Wanted::new("42".into(), left().route, left().subjects)
    }

    #[test]
    fn only_what_a_drain_left_within_a_minute_for_this_route_and_these_subjects_is_taken_over() {
        assert!(left().is_left_for(&wanted(), NOW) && left().is_left_for(&wanted(), NOW + 59_999));
        for (what, entry, wanted) in [
            (
                "other subjects",
                left(),
                Wanted {
                    subjects: vec!["a.1".into()],
                    ..wanted()
                },
            ),
            (
                "another route",
                left(),
                Wanted {
                    route: "/all".into(),
                    ..wanted()
                },
            ),
            (
                "resumes, and was not drained",
                Entry {
                    reason: None,
                    ..left()
                },
                wanted(),
            ),
            (
                "ended otherwise",
                Entry {
                    reason: Some("client".into()),
                    ..left()
                },
                wanted(),
            ),
            ("claimed already", left().claim(NOW), wanted()),
            ("removed", left().remove(NOW), wanted()),
            (
                "a minute ago",
                Entry {
                    since: NOW - 60_000,
                    expires: NOW + 1,
                    ..left()
                },
                wanted(),
            ),
            (
                "expired",
                Entry {
                    expires: NOW,
                    ..left()
                },
                wanted(),
            ),
        ] {
            assert!(!entry.is_left_for(&wanted, NOW), "{what}");
        }
    }

    #[test]
    fn only_a_claim_for_the_same_route_and_subjects_is_reported_to_others() {
        let claimed = left().claim(NOW);
        assert!(
            claimed.is_claimed_from(&wanted(), NOW)
                && claimed.is_claimed_from(&wanted(), NOW + 59_999)
        );
        for (what, entry, wanted) in [
            (
                "other subjects",
                claimed.clone(),
                Wanted::new("42".into(), left().route, vec!["b".into()]),
            ),
            (
                "another route",
                claimed.clone(),
                Wanted {
                    route: "/all".into(),
                    ..wanted()
                },
            ),
            ("left for it", left(), wanted()),
            ("removed by its owner", left().remove(NOW), wanted()),
            ("a minute ago", left().claim(NOW - 60_000), wanted()),
        ] {
            assert!(!entry.is_claimed_from(&wanted, NOW), "{what}");
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
        assert!(
            !passes("3fa9c1-7-00aa", "3fa9c1-6-00ab")
                && !passes("3fa9c1-7", "3fa9c2-7")
                && !passes("nonsense", "3fa9c1-7")
        );
        // Several sources: each of them counts; a source of core subjects is left out by the caller.
        assert!(
            passes("3fa9c1-7.aaaaaa-3", "3fa9c1-7.aaaaaa-4")
                && passes("3fa9c1-7.aaaaaa-3", "3fa9c1-9")
        );
        assert!(!passes("3fa9c1-7.aaaaaa-3", "3fa9c1-8.aaaaaa-2"));
        assert!(!entry("3fa9c1-7").is_passed_by(&EventId::default()));
    }

    #[test]
    fn an_entry_lists_four_subjects_and_recognises_all_of_them() {
        let many: Vec<String> = (0..16).map(|number| format!("a.{number}")).collect();
        let wanted = Wanted::new("42".into(), left().route, many.clone());
        assert_eq!(
            (
                wanted.subjects.len(),
                wanted.unlisted.as_ref().unwrap().total
            ),
            (SUBJECTS_MAX, 16)
        );
        let (subjects, unlisted) = (wanted.subjects.clone(), wanted.unlisted.clone());
        let entry = Entry {
            subjects,
            unlisted,
            ..left()
        };
        assert!(entry.is_left_for(&wanted, NOW));
        let mut other = many.clone();
        other[15] = "a.x".into();
        for other in [other, many[..15].to_vec(), many[..4].to_vec()] {
            assert!(!entry.is_left_for(&Wanted::new("42".into(), left().route, other), NOW));
        }
        let largest = Entry {
            subjects: vec!["s".repeat(255); SUBJECTS_MAX],
            ..entry
        };
        assert!(serde_json::to_vec(&largest).unwrap().len() < 2048);
    }
}
