//! Interface between a request and the providers.

use std::borrow::Cow;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Method;
use hyper::header::{HeaderMap, HeaderValue};

use super::Principal;

/// One authentication provider. A route names several; the first that finds its credentials in a
/// request decides.
pub trait Provider: Debug + Send + Sync {
    /// Returns its name in the configuration.
    fn name(&self) -> &str;

    /// Checks the credentials of a request. `Ok(None)`: the request has none for this provider.
    /// `is_last`: no other provider of the route follows.
    ///
    /// Waits a few seconds at most, for example for keys that are being fetched. Cancel safe.
    fn authenticate<'r>(
        &'r self,
        credentials: &'r dyn Credentials,
        is_last: bool,
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

    /// Returns all header fields, as the client or a proxy sent them.
    fn headers(&self) -> &HeaderMap;

    /// Returns what is requested, from where, by which client.
    fn target(&self) -> Target<'_>;

    /// Counts a call to an endpoint against the limits of the client's address.
    ///
    /// # Errors
    /// Returns the time until another call is admitted.
    fn admit_call(&self) -> Result<(), Duration>;
}

/// Request as the client made it, before it passed trusted proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'r> {
    /// Method.
    pub method: &'r Method,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and port.
    pub host: Cow<'r, str>,
    /// Path, as it was sent.
    pub path: &'r str,
    /// Query, as it was sent, without parameters that are a position (`last_event_id`).
    pub query: Cow<'r, str>,
    /// Address of the client.
    pub client: IpAddr,
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
    /// An endpoint rejects the request.
    #[error("the endpoint rejects the request")]
    Rejected(EndpointRejection),
    /// The address of the client has caused too many calls to an endpoint.
    #[error("too many calls of this address")]
    TooManyCalls {
        /// Time until another call is admitted.
        retry_after: Duration,
    },
    /// The provider cannot check the credentials at the moment.
    #[error("the authentication provider is not available")]
    Unavailable {
        /// Time after which another attempt is useful.
        retry_after: Duration,
    },
}

/// Rejection by an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointRejection {
    /// The status is 403, else 401.
    pub is_forbidden: bool,
    /// Values of `WWW-Authenticate`.
    pub challenges: Vec<HeaderValue>,
}
