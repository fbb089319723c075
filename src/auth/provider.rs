//! Interface between a request and the providers.

use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Principal;

/// One authentication provider. A route names several; the first that finds its credentials in a
/// request decides.
pub trait Provider: Debug + Send + Sync {
    /// Returns its name in the configuration.
    fn name(&self) -> &str;

    /// Checks the credentials of a request. `Ok(None)`: the request has none for this provider.
    ///
    /// Waits a few seconds at most, for example for keys that are being fetched. Cancel safe.
    fn authenticate<'r>(
        &'r self,
        credentials: &'r dyn Credentials,
    ) -> BoxFuture<'r, Result<Option<Principal>, AuthFailure>>;
}

/// Parts of a request that can have credentials.
pub trait Credentials: Send + Sync {
    /// Returns the token of `Authorization: Bearer`.
    fn bearer(&self) -> Option<&str>;

    /// Returns the value of a cookie.
    fn cookie(&self, name: &str) -> Option<&str>;

    /// Returns the value of a query parameter.
    fn query(&self, name: &str) -> Option<Cow<'_, str>>;

    /// Returns the certificate (DER) that the client has proved to own in the TLS handshake.
    fn certificate(&self) -> Option<&[u8]>;
}

/// Reason why credentials did not result in a principal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// The client is at fault: its credentials are invalid or have expired.
    #[error("{description}")]
    Invalid {
        /// One sentence for the client (`error_description` of RFC 6750), without a secret.
        description: &'static str,
    },
    /// The provider cannot check the credentials at the moment.
    #[error("the authentication provider is not available")]
    Unavailable {
        /// Time after which another attempt is useful.
        retry_after: Duration,
    },
}
