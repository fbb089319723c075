//! Entry of the bucket of revocations: key and value, a documented format that applications write.
//!
//! ```text
//! key    <kind>.<base64url of the value, without padding>    kind: jti | sid | sub | client | kick
//! value  {"at": seconds, "until": seconds}                   seconds since 1970
//! ```

use std::time::Duration;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use serde::Deserialize;

/// 1,024 bytes: longest value. OpenID Connect allows 255 for `sub`.
pub const VALUE_BYTES_MAX: usize = 1024;

/// Meaning of a value in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Id of one token (claim `jti`).
    Jti,
    /// Session at the issuer (claim `sid`).
    Sid,
    /// Subject of any provider.
    Sub,
    /// Name of a client, as in `/connections`.
    Client,
    /// Name of a client whose event streams end once; it may return.
    Kick,
}

impl Kind {
    /// Every kind, in the order of the variants.
    pub const ALL: [Self; 5] = [Self::Jti, Self::Sid, Self::Sub, Self::Client, Self::Kick];

    /// Returns the first token of a key, and the label of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jti => "jti",
            Self::Sid => "sid",
            Self::Sub => "sub",
            Self::Client => "client",
            Self::Kick => "kick",
        }
    }

    /// Returns whether credentials that were issued later stay valid.
    pub(super) const fn depends_on_issue_time(self) -> bool {
        matches!(self, Self::Sub | Self::Client)
    }
}

/// Times of an entry, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Time of the revocation.
    pub at: u32,
    /// Time after which the entry has no effect.
    pub until: u32,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    kind: Kind,
    value: String,
    times: Times,
}

/// Reason why an entry cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    /// The value is empty.
    #[error("the value is empty")]
    Empty,
    /// The value does not fit a key.
    #[error("the value has {0} bytes, and a key has room for {VALUE_BYTES_MAX}")]
    TooLong(usize),
    /// The name of a client is longer than those that event streams have.
    #[error(
        "the name of a client has at most {} bytes: revoke its subject",
        Entry::CLIENT_BYTES_MAX
    )]
    ClientTooLong,
    /// The entry would end after the year 2106.
    #[error("the time is too long")]
    Time,
}

impl Entry {
    /// Longest name of a client in bytes. A longer one is truncated in `/connections` and does not
    /// identify the client.
    pub const CLIENT_BYTES_MAX: usize = 256;

    /// Returns an entry that is valid from a time on, in seconds since 1970.
    ///
    /// # Errors
    /// The value is empty or too long, or the time is.
    pub fn new(
        kind: Kind,
        value: String,
        at: u64,
        valid_for: Duration,
    ) -> Result<Self, InvalidEntry> {
        let is_client = matches!(kind, Kind::Client | Kind::Kick);
        match value.len() {
            0 => return Err(InvalidEntry::Empty),
            bytes if bytes > VALUE_BYTES_MAX => return Err(InvalidEntry::TooLong(bytes)),
            bytes if is_client && bytes > Self::CLIENT_BYTES_MAX => {
                return Err(InvalidEntry::ClientTooLong);
            }
            _ => {}
        }
        let until = at.saturating_add(valid_for.as_secs().max(1));
        let seconds = |time: u64| u32::try_from(time).map_err(|_| InvalidEntry::Time);
        let times = Times {
            at: seconds(at)?,
            until: seconds(until)?,
        };
        Ok(Self { kind, value, times })
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> String {
        let value = URL_SAFE_NO_PAD.encode(&self.value);
        format!("{}.{value}", self.kind.as_str())
    }

    /// Returns the value for the bucket.
    #[must_use]
    pub fn payload(&self) -> String {
        let Times { at, until } = self.times;
        format!(r#"{{"at":{at},"until":{until}}}"#)
    }

    /// Returns the time after which the entry has no effect, in seconds since 1970.
    #[must_use]
    pub fn until(&self) -> u32 {
        self.times.until
    }
}

/// Accepts base64url with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Parses a key. `None`: it is not one of an entry.
#[must_use]
pub fn parse_key(key: &str) -> Option<(Kind, String)> {
    let (kind, value) = key.split_once('.')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    let value = String::from_utf8(LENIENT.decode(value).ok()?).ok()?;
    (1..=VALUE_BYTES_MAX)
        .contains(&value.len())
        .then_some((kind, value))
}

/// Parses the value of a key. `None`: it is malformed.
#[must_use]
pub fn parse_times(payload: &[u8]) -> Option<Times> {
    #[derive(Deserialize)]
    struct Payload {
        at: f64,
        until: f64,
    }
    let Payload { at, until } = serde_json::from_slice(payload).ok()?;
    Some(Times {
        at: seconds(at.floor())?,
        until: seconds(until.ceil())?,
    })
}

/// Returns seconds since 1970. `None` for a time that is not one: milliseconds are above the
/// maximum.
fn seconds(time: f64) -> Option<u32> {
    (0.0..=f64::from(u32::MAX))
        .contains(&time)
        .then_some(time as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    proptest! {
        #[test]
        fn every_value_that_fits_has_a_valid_key_that_is_parsed(value in "\\PC{1,256}") {
            prop_assume!(value.len() <= VALUE_BYTES_MAX);
            let entry = Entry::new(Kind::Sub, value.clone(), 1, HOUR).unwrap();
            let key = entry.key();
            prop_assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
            prop_assert_eq!(parse_key(&key), Some((Kind::Sub, value)));
        }

        #[test]
        fn parsing_never_panics(key in any::<String>(), payload in any::<Vec<u8>>()) {
            drop((parse_key(&key), parse_times(&payload)));
        }
    }

    #[test]
    fn format_is_the_documented_one() {
        let entry = Entry::new(Kind::Jti, "a?b".to_owned(), 100, HOUR).unwrap();
        assert_eq!(entry.key(), "jti.YT9i");
        assert_eq!(entry.payload(), r#"{"at":100,"until":3700}"#);
        assert_eq!(
            parse_times(entry.payload().as_bytes()),
            Some(Times {
                at: 100,
                until: 3700
            })
        );
        assert_eq!(parse_key("sub.YQ=="), Some((Kind::Sub, "a".to_owned())));
        let fractions = br#"{"at": 1.9, "until": 2.1, "by": "logout"}"#;
        assert_eq!(parse_times(fractions), Some(Times { at: 1, until: 3 }));
    }

    #[test]
    fn malformed_entries_are_recognised() {
        for key in [
            "", "sub", "sub.", "SUB.YQ", "aud.YQ", "sub.Y.Q", "sub.*", "jti._w",
        ] {
            assert_eq!(parse_key(key), None, "{key}");
        }
        for payload in [
            "",
            "{}",
            r#"{"at":1}"#,
            r#"{"at":"1","until":"2"}"#,
            r#"{"at":-1,"until":2}"#,
            r#"{"at":1795961031000,"until":1795964631000}"#,
        ] {
            assert_eq!(parse_times(payload.as_bytes()), None, "{payload}");
        }
    }

    #[test]
    fn values_that_do_not_fit_a_key_are_errors() {
        let new = |kind, bytes| Entry::new(kind, "x".repeat(bytes), 1, HOUR).map(|_| ());
        assert_eq!(new(Kind::Sub, 0), Err(InvalidEntry::Empty));
        assert_eq!(new(Kind::Sub, 1024), Ok(()));
        assert_eq!(new(Kind::Sub, 1025), Err(InvalidEntry::TooLong(1025)));
        assert_eq!(new(Kind::Client, 256), Ok(()));
        assert_eq!(new(Kind::Kick, 257), Err(InvalidEntry::ClientTooLong));
        let long = Entry::new(Kind::Sub, "a".to_owned(), 1, Duration::MAX);
        assert_eq!(long, Err(InvalidEntry::Time));
    }
}
