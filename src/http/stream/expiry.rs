//! Expiry of a principal: when its client is asked to renew its credentials, and when the event
//! stream ends.
//!
//! ```text
//! open ------------------------ renew --- credentials expire --- leeway --- end
//!                               `sidestream.renew`                         `sidestream.close`
//! ```

use std::time::{Duration, Instant};

use super::compact_time::{self, CompactInstant};
use super::state::StreamState;
use crate::auth;

/// Times at which an event stream has to do something about its principal.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Expiry {
    renew: Instant,
    end: Instant,
    unix_seconds: u64,
}

/// Renewal that an event stream has not asked for yet.
#[derive(Debug)]
pub(super) struct Renewal {
    /// End of the event stream.
    pub(super) end: CompactInstant,
    /// Expiry of the credentials in seconds since 1970, for the client.
    pub(super) unix_seconds: u64,
}

impl Expiry {
    /// Draws the time of the renewal: `before` the expiry, spread by a fifth in both directions.
    ///
    /// Credentials that expire soon are renewed in the middle of the rest of their life. A client
    /// that reconnects with other short-lived ones would otherwise be asked again at once. With
    /// zero the client is never asked.
    pub(in crate::http) fn new(expiry: auth::Expiry, before: Duration) -> Self {
        let now = compact_time::now();
        let expires = if expiry.at > now {
            expiry.at
        } else {
            expiry.end
        };
        let middle = now + expires.saturating_duration_since(now) / 2;
        let spread = before.mul_f64(0.8 + 0.4 * fastrand::f64());
        let renew = match expires.checked_sub(spread) {
            _ if before.is_zero() => expiry.end,
            Some(renew) => renew.max(middle),
            None => middle,
        };
        Self {
            renew,
            end: expiry.end,
            unix_seconds: expiry.unix_seconds,
        }
    }

    /// Returns the time of the renewal, and the renewal.
    pub(super) fn begin(self, state: &StreamState) -> (CompactInstant, Renewal) {
        let end = match state.clock.at(self.end) {
            // It has expired: no event is delivered.
            CompactInstant::ZERO => CompactInstant::ZERO,
            // A tick later: the time is rounded down, and until its end a principal may return.
            end => end.after(CompactInstant::new(1)),
        };
        let renewal = Renewal {
            end,
            unix_seconds: self.unix_seconds,
        };
        (state.clock.at(self.renew), renewal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Renewal of credentials with this life and leeway, in seconds after now.
    fn renewed_after(life: i32, leeway: u64, before: u64) -> f64 {
        let now = compact_time::now();
        let life_abs = Duration::from_secs(u64::from(life.unsigned_abs()));
        let at = if life < 0 {
            now - life_abs
        } else {
            now + life_abs
        };
        let expiry = auth::Expiry {
            unix_seconds: 0,
            at,
            end: at + Duration::from_secs(leeway),
        };
        let expiry = Expiry::new(expiry, Duration::from_secs(before));
        (expiry.renew - now).as_secs_f64()
    }

    #[test]
    fn renewal_is_before_the_expiry_with_a_spread() {
        for _ in 0..100 {
            let after = renewed_after(3600, 30, 60);
            assert!((3528.0..3553.0).contains(&after), "{after}");
        }
    }

    #[test]
    fn short_lived_credentials_are_renewed_in_the_middle_of_their_life() {
        for (life, expected) in [(40, 20.0), (2, 1.0), (-10, 10.0)] {
            let after = renewed_after(life, 30, 60);
            assert!((after - expected).abs() < 0.5, "{life}: {after}");
        }
        assert!((renewed_after(40, 30, 0) - 70.0).abs() < 0.5, "never");
    }
}
