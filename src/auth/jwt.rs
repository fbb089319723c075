//! Provider of signed tokens (JSON Web Tokens, RFC 7519).
//!
//! ```text
//! request -> token (bearer, cookie, query) -> token: signature -> claims: issuer, audience, times -> Identity
//!                                               ^ key_set
//! ```
//!
//! | file | job |
//! | --- | --- |
//! | `token` | bytes of a token to its claims, if the signature is valid |
//! | `claims` | claims to an identity |
//! | `key_set` | keys and their algorithms |
//! | `crypto` | ring as the cryptography of `jsonwebtoken` |

mod claims;
mod crypto;
mod key_set;
mod token;

use std::borrow::Cow;

use futures_util::future::BoxFuture;

use super::config::{JwtConfig, KeysConfig, ProviderConfig, TokenSource};
use super::{AuthFailure, Credentials, Principal, Provider};
use claims::Now;
use key_set::KeySet;
use token::Rejected;

/// Provider of signed tokens.
#[derive(Debug)]
pub(super) struct JwtProvider {
    name: Box<str>,
    config: JwtConfig,
    keys: KeySet,
}

impl JwtProvider {
    pub(super) fn new(config: &ProviderConfig) -> Self {
        crypto::install();
        let keys = match &config.jwt.keys {
            KeysConfig::Secret(secret) => KeySet::of_secret(secret),
            _ => KeySet::default(),
        };
        Self {
            name: config.name.clone(),
            config: config.jwt.clone(),
            keys,
        }
    }

    /// Returns whether it has these settings.
    pub(super) fn has(&self, config: &ProviderConfig) -> bool {
        self.name == config.name && self.config == config.jwt
    }

    /// Finds the token of a request.
    fn token<'r>(&self, credentials: &'r dyn Credentials) -> Option<Cow<'r, str>> {
        let token = self.config.from.iter().find_map(|from| match from {
            TokenSource::Bearer => credentials.bearer().map(Cow::Borrowed),
            TokenSource::Cookie(name) => credentials.cookie(name).map(Cow::Borrowed),
            TokenSource::Query(name) => credentials.query(name),
        });
        // A logout often leaves an empty cookie.
        token.filter(|token| !token.is_empty())
    }

    fn principal(&self, token: &str) -> Result<Principal, Rejected> {
        let claims = token::verified_claims(token, &self.keys, &self.config.algorithms)?;
        claims::identity(&self.name, &self.config, claims, Now::read())
            .map(|identity| Principal::Identified(Box::new(identity)))
            .map_err(Rejected::Invalid)
    }
}

impl Provider for JwtProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn authenticate<'r>(
        &'r self,
        credentials: &'r dyn Credentials,
    ) -> BoxFuture<'r, Result<Option<Principal>, AuthFailure>> {
        Box::pin(async move {
            let Some(token) = self.token(credentials) else {
                return Ok(None);
            };
            let description = match self.principal(&token) {
                Ok(principal) => return Ok(Some(principal)),
                Err(Rejected::Invalid(description)) => description,
                Err(Rejected::UnknownKey) => "the key of the token is unknown",
            };
            Err(AuthFailure::Invalid { description })
        })
    }
}
