//! Entry of a ticket in the store, as JSON: the identity that bought it, and the time until which
//! the ticket is valid.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::auth::Identity;
use crate::auth::clock::Now;

/// Entry of a ticket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TicketEntry<'a> {
    /// Name of the provider that proved the identity.
    pub(super) provider: Cow<'a, str>,
    subject: Cow<'a, str>,
    claims: Cow<'a, Map<String, Value>>,
    /// End of the credentials. `None`: they do not expire.
    expires: Option<EntryExpiry>,
    /// End of the ticket, in milliseconds since 1970.
    until_ms: u64,
}

/// End of credentials in wall-clock time: each pod has a monotonic clock of its own.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct EntryExpiry {
    /// Seconds since 1970.
    at: u64,
    /// Tolerated difference of clocks, in milliseconds.
    leeway_ms: u64,
}

impl<'a> TicketEntry<'a> {
    /// Returns the entry of a ticket that an identity buys now.
    pub(super) fn new(identity: &'a Identity, now: Now, expires_in: Duration) -> Self {
        let until = now.wall.saturating_add(expires_in);
        Self {
            provider: Cow::Borrowed(&identity.provider),
            subject: Cow::Borrowed(&identity.subject),
            claims: Cow::Borrowed(&identity.claims),
            expires: identity.expires.map(|expires| EntryExpiry {
                at: expires.unix_seconds,
                leeway_ms: millis(expires.end.saturating_duration_since(expires.at)),
            }),
            until_ms: millis(until),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Texts and numbers are always valid JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl TicketEntry<'static> {
    /// Parses an entry; `None` if something else wrote it.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Returns whether the ticket has not expired.
    pub(super) fn is_valid_at(&self, now: Now) -> bool {
        millis(now.wall) < self.until_ms
    }

    /// Returns the identity; `None` if its credentials have expired.
    pub(super) fn identity(self, now: Now) -> Option<Identity> {
        let expires = match self.expires {
            None => None,
            Some(EntryExpiry { at, leeway_ms }) => {
                let at = Duration::from_secs(at);
                let leeway = Duration::from_millis(leeway_ms);
                if at.saturating_add(leeway) <= now.wall {
                    return None;
                }
                now.expiry(at, leeway)
            }
        };
        Some(Identity {
            provider: self.provider.into(),
            subject: self.subject.into(),
            claims: self.claims.into_owned(),
            expires,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
