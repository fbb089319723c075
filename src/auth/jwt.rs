//! Provider of signed tokens (JSON Web Tokens, RFC 7519).
//!
//! ```text
//! request -> token (bearer, cookie, query) -> signature -> issuer, audience, times -> Identity
//!                                               ^ keys: secret, file, URL, discovery
//! ```
//!
//! | file | job |
//! | --- | --- |
//! | `token` | bytes of a token to its claims, if the signature is valid |
//! | `claims` | claims to an identity |
//! | `crypto` | ring as the cryptography of `jsonwebtoken` |
//! | `valid_signatures` | signatures that are not checked again |
//! | `key_set` | keys and their algorithms |
//! | `key_store` | keys in memory, loaded again by one task |
//! | `key_origin` | one load: discovery, JWKS, file |
//! | `https_get` | one bounded request |

mod claims;
mod crypto;
mod https_get;
mod key_origin;
mod key_set;
mod key_store;
mod token;
mod valid_signatures;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use futures_util::future::BoxFuture;

use super::clock::Now;
use super::config::{JwtConfig, KeysConfig, TokenSource};
use super::{AuthFailure, Credentials, Principal, Provider};
use crate::lifecycle::health::Health;
use crate::telemetry::Metrics;
use key_origin::KeyOrigin;
use key_set::KeySet;
pub(super) use key_store::KeyFollower;
use key_store::{Keys, Unavailable};
use token::Rejected;

/// Provider of signed tokens.
#[derive(Debug)]
pub(super) struct JwtProvider {
    name: Box<str>,
    config: JwtConfig,
    keys: Keys,
}

impl JwtProvider {
    /// Starts a provider, and the task that keeps its keys up to date. Needs a runtime.
    pub(super) fn start(
        name: &str,
        config: &JwtConfig,
        health: &Health,
        metrics: &Metrics,
    ) -> (Self, Option<KeyFollower>) {
        let (keys, follower) = match (KeyOrigin::new(&config.keys), &config.keys) {
            (Some(origin), _) => {
                let (keys, follower) = Keys::follow(origin, name, health, metrics);
                (keys, Some(follower))
            }
            (None, KeysConfig::Secret(secret)) => (Keys::fixed(KeySet::of_secret(secret)), None),
            (None, _) => (Keys::fixed(KeySet::default()), None),
        };
        (Self::new(name, config, keys), follower)
    }

    /// Returns a provider with other settings for the same keys.
    pub(super) fn with(&self, config: &JwtConfig) -> Self {
        Self::new(&self.name, config, self.keys.clone())
    }

    fn new(name: &str, config: &JwtConfig, keys: Keys) -> Self {
        crypto::install();
        Self {
            name: name.into(),
            config: config.clone(),
            keys,
        }
    }

    pub(super) fn config(&self) -> &JwtConfig {
        &self.config
    }

    /// Finds the token of a request.
    fn token<'r>(&self, credentials: &'r dyn Credentials) -> Option<Cow<'r, str>> {
        let mut found = self.config.from.iter().filter_map(|from| match from {
            TokenSource::Bearer => credentials.bearer().map(Cow::Borrowed),
            TokenSource::Cookie(name) => credentials.cookie(name).map(Cow::Borrowed),
            TokenSource::Query(name) => credentials.query(name),
        });
        // A logout often leaves an empty cookie.
        found.find(|token| !token.is_empty())
    }

    fn principal(&self, token: &str, keys: &KeySet) -> Result<Principal, Rejected> {
        let claims = token::verified_claims(token, keys, &self.config.algorithms)?;
        claims::identity(&self.name, &self.config, claims, Now::read())
            .map(|identity| Principal::Identified(Box::new(identity)))
            .map_err(Rejected::Invalid)
    }

    /// Checks a token, with newer keys if it names a key that is not known.
    async fn check(&self, token: &str) -> Result<Principal, AuthFailure> {
        let known = self.keys.current();
        let mut checked = self.principal(token, &known);
        if checked == Err(Rejected::UnknownKey) {
            let newer = self.keys.newer(&known).await;
            let newer = newer
                .map_err(|Unavailable { retry_after }| AuthFailure::Unavailable { retry_after })?;
            if let Some(keys) = newer {
                checked = self.principal(token, &keys);
            }
        }
        checked.map_err(|rejected| AuthFailure::Invalid {
            description: match rejected {
                Rejected::Invalid(description) => description,
                Rejected::UnknownKey => "the key of the token is unknown",
            },
        })
    }
}

impl Provider for JwtProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn authenticate<'r>(
        &'r self,
        credentials: &'r dyn Credentials,
        _is_last: bool,
    ) -> BoxFuture<'r, Result<Option<Principal>, AuthFailure>> {
        Box::pin(async move {
            match self.token(credentials) {
                Some(token) => self.check(&token).await.map(Some),
                None => Ok(None),
            }
        })
    }
}
