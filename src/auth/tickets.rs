//! Tickets: credentials for one event stream, for browsers that can set neither header nor cookie.
//!
//! ```text
//! issue    principal -> 256 random bits, the ticket   -> client
//!                       their SHA-256, the key        -> store, with the identity
//! redeem   ticket of a request -> key -> removed from the store, by one caller only -> principal
//! ```
//!
//! The store has no ticket: a reader of it cannot open an event stream. The principal of a ticket
//! has the claims and the expiry of the credentials that bought it.
//!
//! | file | job |
//! | --- | --- |
//! | `ticket` | a ticket, and its key in the store |
//! | `entry` | the value in the store: identity and times |
//! | `store` | interface to the store of all pods |

mod entry;
mod store;
mod ticket;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec};

use super::clock::Now;
use super::{AuthFailure, Identity, Principal};
use crate::telemetry::Metrics;
use entry::TicketEntry;
pub use store::{PutError, TicketStore, Unavailable};
pub use ticket::{Ticket, TicketKey};

/// Tickets of the pod: issues and redeems them.
#[derive(Debug)]
pub struct Tickets {
    store: Arc<dyn TicketStore>,
    /// Life of a ticket.
    ttl: Duration,
    /// In the order of [`IssueResult::ALL`].
    issues: [IntCounter; IssueResult::ALL.len()],
    /// In the order of [`RedeemResult::ALL`].
    redemptions: [IntCounter; RedeemResult::ALL.len()],
}

/// A ticket for a client.
#[derive(Debug)]
pub struct Issued {
    /// The ticket.
    pub ticket: Ticket,
    /// Time until it expires.
    pub expires_in: Duration,
}

/// Reason why a ticket was not issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueFailure {
    /// The claims of the principal exceed [`ENTRY_BYTES_MAX`].
    #[error("the claims are too large for a ticket")]
    TooLarge,
    /// The store is full.
    #[error("the ticket store is full")]
    Full,
    /// The store does not respond.
    #[error("the ticket store is not available")]
    Unavailable {
        /// Time after which another attempt is useful.
        retry_after: Duration,
    },
}

/// Result of a request for a ticket: the label of `sidestream_ticket_issues_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueResult {
    /// The client received a ticket.
    Issued,
    /// The principal buys tickets too often.
    Throttled,
    /// The claims are too large.
    TooLarge,
    /// The store is full.
    Full,
    /// The store does not respond.
    Unavailable,
}

/// Result of a request with a ticket: the label of `sidestream_ticket_redemptions_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RedeemResult {
    /// The ticket was valid.
    Redeemed,
    /// It is unknown, spent, expired, or not a ticket.
    Invalid,
    /// The route does not list its provider.
    OtherProvider,
    /// The store does not respond.
    Unavailable,
}

/// 8 KiB: maximum size of an entry, so that no principal fills the store with a few thousand of them.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024;

/// 1 s until another attempt at a store that does not respond.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Tickets {
    /// Returns tickets that live for `ttl` in a store.
    #[must_use]
    pub fn new(store: Arc<dyn TicketStore>, ttl: Duration, metrics: &Metrics) -> Self {
        // Closed labels start at 0.
        let counter = |all: &IntCounterVec, label| all.with_label_values(&[label]);
        let issues = &metrics.ticket_issues_total;
        let redemptions = &metrics.ticket_redemptions_total;
        Self {
            store,
            ttl,
            issues: IssueResult::ALL.map(|result| counter(issues, result.as_str())),
            redemptions: RedeemResult::ALL.map(|result| counter(redemptions, result.as_str())),
        }
    }

    /// Issues a ticket for an identity. Waits a few seconds at most.
    ///
    /// # Errors
    /// [`IssueFailure`]: no ticket is stored, or one that no client knows.
    pub async fn issue(&self, identity: &Identity) -> Result<Issued, IssueFailure> {
        let issued = self.put(identity, Now::read()).await;
        self.count_issue(match &issued {
            Ok(_) => IssueResult::Issued,
            Err(IssueFailure::TooLarge) => IssueResult::TooLarge,
            Err(IssueFailure::Full) => IssueResult::Full,
            Err(IssueFailure::Unavailable { .. }) => IssueResult::Unavailable,
        });
        issued
    }

    async fn put(&self, identity: &Identity, now: Now) -> Result<Issued, IssueFailure> {
        const UNAVAILABLE: IssueFailure = IssueFailure::Unavailable {
            retry_after: RETRY_AFTER,
        };
        // A ticket does not outlive the credentials that bought it.
        let left = identity
            .expires
            .map(|expires| expires.end.saturating_duration_since(now.instant));
        let expires_in = left.map_or(self.ttl, |left| left.min(self.ttl));
        let entry = TicketEntry::new(identity, now, expires_in).encode();
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(IssueFailure::TooLarge);
        }
        let ticket = Ticket::random().ok_or(UNAVAILABLE)?;
        let stored = self.store.put(ticket.key(), entry).await;
        stored.map_err(|error| match error {
            PutError::Full => IssueFailure::Full,
            PutError::Unavailable => UNAVAILABLE,
        })?;
        Ok(Issued { ticket, expires_in })
    }

    /// Counts a request for a ticket.
    pub fn count_issue(&self, result: IssueResult) {
        self.issues[result as usize].inc();
    }

    /// Redeems the ticket of a request: it is valid once, on any pod. `is_listed` returns whether
    /// the route lists a provider. A ticket of another provider is spent, too.
    ///
    /// Waits a few seconds at most. If the future is dropped, the ticket may be spent or not.
    ///
    /// # Errors
    /// The ticket is not valid here, or the store does not respond.
    pub async fn redeem(
        &self,
        ticket: &str,
        is_listed: impl Fn(&str) -> bool,
    ) -> Result<Principal, AuthFailure> {
        let redeemed = self.take(ticket, is_listed).await;
        let (result, redeemed) = match redeemed {
            Ok(principal) => (RedeemResult::Redeemed, Ok(principal)),
            Err((result, failure)) => (result, Err(failure)),
        };
        self.redemptions[result as usize].inc();
        redeemed
    }

    async fn take(
        &self,
        ticket: &str,
        is_listed: impl Fn(&str) -> bool,
    ) -> Result<Principal, (RedeemResult, AuthFailure)> {
        let invalid = |description| {
            let failure = AuthFailure::Invalid { description };
            (RedeemResult::Invalid, failure)
        };
        const UNKNOWN: &str = "the ticket is unknown, expired or already used";
        let key = TicketKey::of(ticket).ok_or(invalid("this is not a ticket"))?;
        let taken = self.store.take(key).await.map_err(|Unavailable| {
            let failure = AuthFailure::Unavailable {
                retry_after: RETRY_AFTER,
            };
            (RedeemResult::Unavailable, failure)
        })?;
        let entry = taken.and_then(|entry| TicketEntry::decode(&entry));
        let now = Now::read();
        let entry = entry
            .filter(|entry| entry.is_valid_at(now))
            .ok_or(invalid(UNKNOWN))?;
        if !is_listed(&entry.provider) {
            let description = "the ticket is for other routes";
            let failure = AuthFailure::Invalid { description };
            return Err((RedeemResult::OtherProvider, failure));
        }
        let identity = entry.identity(now).ok_or(invalid(
            "the credentials that bought the ticket have expired",
        ))?;
        Ok(Principal::Identified(Box::new(identity)))
    }
}

impl IssueResult {
    /// Every result, in the order of the variants.
    pub const ALL: [Self; 5] = [
        Self::Issued,
        Self::Throttled,
        Self::TooLarge,
        Self::Full,
        Self::Unavailable,
    ];

    /// Returns the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Throttled => "throttled",
            Self::TooLarge => "too_large",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
        }
    }
}

impl RedeemResult {
    const ALL: [Self; 4] = [
        Self::Redeemed,
        Self::Invalid,
        Self::OtherProvider,
        Self::Unavailable,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Redeemed => "redeemed",
            Self::Invalid => "invalid",
            Self::OtherProvider => "other_provider",
            Self::Unavailable => "unavailable",
        }
    }
}
