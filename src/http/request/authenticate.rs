//! Authentication: determines the principal of a request before any variable is filled.
//!
//! ```text
//! route, method, Accept, body -> authenticate -> variables, subjects -> admission -> client limits
//!
//! limit::AddressLimiter   too many failures of this address: 429, nothing is verified
//!   providers of the route, in order, until one finds its credentials in the request
//!     principal | invalid: 401, 403 | too many calls: 429 | not available: 503 | none found: 401
//! auth::Revocations       revoked: 401 | not known, if configured: 503
//! ```
//!
//! A program receives the status and a challenge of RFC 6750. An `EventSource` stops for good after
//! any status but 200: by the route's `unauthenticated` it receives an event stream that ends with
//! `sidestream.close`, and returns after about 30 s.
//!
//! Credentials are never logged, and neither is the query, which may have them.

use std::borrow::Cow;
use std::time::Duration;

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Method};

use super::challenge::Challenge;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::{AuthenticatedRequest, Request, is_browser};
use super::target::TargetParts;
use crate::auth::provider::{EndpointRejection, Target};
use crate::auth::revocations::Denial;
use crate::auth::{AuthFailure, Credentials, Principal};
use crate::encoding::Framing;
use crate::http::config::Unauthenticated;
use crate::http::context::Context;
use crate::http::route::Route;
use crate::http::stream::compact_time;
use crate::limit::AddressLimiter;
use crate::net::request_head;

/// Determines the principal of a request by the providers of its route.
///
/// # Errors
/// The request has no valid credentials or revoked ones, its address has sent too many invalid
/// ones, or a provider or the revocations are not available.
pub(in crate::http) async fn authenticate<'r>(
    context: &Context,
    route: &Route,
    parts: TargetParts<'_>,
    request: Request<'r>,
) -> Result<AuthenticatedRequest<'r>, Rejection> {
    let principal = if route.config.authenticate.is_empty() {
        Principal::Anonymous
    } else {
        let attempt = Attempt {
            route,
            parts,
            request: &request,
            calls: &context.call_limiter,
        };
        principal(context, &attempt).await?
    };
    if let Some(revocations) = context.revocations()
        && let Err(denial) = revocations.check_principal(&principal)
    {
        if denial == Denial::Revoked {
            // As an invalid token: it costs as much to verify.
            let (failures, address) = (&context.failure_limiter, request.remote);
            failures.record(address, compact_time::now());
        }
        return Err(denial.into());
    }
    Ok(AuthenticatedRequest { request, principal })
}

async fn principal(context: &Context, attempt: &Attempt<'_>) -> Result<Principal, Rejection> {
    let (failures, address) = (&context.failure_limiter, attempt.request.remote);
    failures
        .check(address, compact_time::now())
        .map_err(|wait| Rejection::after(RejectionCode::TooManyAuthenticationFailures, wait))?;
    let verified = verify(attempt).await;
    let reason = match &verified {
        Err(AuthFailure::Invalid { description }) => Some(*description),
        Err(AuthFailure::Rejected(_)) => Some("the endpoint rejects the request"),
        _ => None,
    };
    if let Some(reason) = reason {
        failures.record(address, compact_time::now());
        tracing::debug!(
            client.addr = %address,
            route = &*attempt.route.label,
            reason,
            "authentication failed"
        );
    }
    match verified {
        Ok(Some(principal)) => Ok(principal),
        Ok(None) => Err(Rejection {
            challenge: Some(Challenge::NoCredentials),
            ..RejectionCode::Unauthenticated.into()
        }),
        Err(AuthFailure::Invalid { description }) => Err(Rejection {
            challenge: Some(Challenge::InvalidToken(description)),
            ..Rejection::new(RejectionCode::InvalidToken, description)
        }),
        Err(AuthFailure::Rejected(rejection)) => Err(denied(rejection)),
        Err(AuthFailure::TooManyCalls { retry_after }) => Err(Rejection::after(
            RejectionCode::TooManyAuthentications,
            retry_after,
        )),
        Err(AuthFailure::Unavailable { retry_after }) => Err(Rejection::after(
            RejectionCode::AuthenticationUnavailable,
            retry_after,
        )),
    }
}

/// Returns the rejection of a request that an endpoint has rejected.
fn denied(rejection: EndpointRejection) -> Rejection {
    let code = if rejection.is_forbidden {
        RejectionCode::Forbidden
    } else {
        RejectionCode::Unauthenticated
    };
    let challenge = match (&*rejection.challenges, rejection.is_forbidden) {
        // RFC 9110, 15.5.2: a 401 has a challenge.
        ([], false) => Some(Challenge::NoCredentials),
        ([], true) => None,
        _ => Some(Challenge::OfEndpoint(rejection.challenges)),
    };
    Rejection {
        challenge,
        ..Rejection::new(code, "the authentication endpoint rejects the request")
    }
}

/// Returns the principal of the first provider that finds its credentials; `None` if none does.
async fn verify(attempt: &Attempt<'_>) -> Result<Option<Principal>, AuthFailure> {
    let authorizations = attempt.request.headers.get_all(AUTHORIZATION);
    if authorizations.iter().count() > 1 {
        // Proxies in front may have verified the other one.
        return Err(AuthFailure::Invalid {
            description: "the request has more than one Authorization header",
        });
    }
    let providers = &attempt.route.providers;
    for (index, provider) in providers.iter().enumerate() {
        let is_last = index + 1 == providers.len();
        if let Some(principal) = provider.authenticate(attempt, is_last).await? {
            return Ok(Some(principal));
        }
    }
    Ok(None)
}

/// Returns the framing of the event stream that a client without valid credentials receives
/// instead of a status.
pub(in crate::http) fn unauthenticated_framing(
    route: &Route,
    rejection: &Rejection,
    method: &Method,
    headers: &HeaderMap,
    framing: Framing,
) -> Option<Framing> {
    let is_unauthenticated = matches!(
        rejection.code,
        RejectionCode::Unauthenticated
            | RejectionCode::InvalidToken
            | RejectionCode::Revoked
            | RejectionCode::Forbidden
    );
    let is_stream = match route.config.unauthenticated {
        Unauthenticated::Auto => is_browser(headers),
        Unauthenticated::Status => false,
        Unauthenticated::Stream => true,
    };
    (is_unauthenticated && is_stream && method == Method::GET).then_some(framing)
}

/// Request on a route that authenticates, as its providers see it.
struct Attempt<'r> {
    route: &'r Route,
    parts: TargetParts<'r>,
    request: &'r Request<'r>,
    calls: &'r AddressLimiter,
}

impl Credentials for Attempt<'_> {
    fn bearer(&self) -> Option<&str> {
        request_head::bearer(self.request.headers)
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        self.request.cookie_value(name)
    }

    fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        self.request.query_values(name).next()
    }

    fn headers(&self) -> &HeaderMap {
        self.request.headers
    }

    fn target(&self) -> Target<'_> {
        let added = self.route.config.last_event_id_query.as_deref();
        let Request {
            headers, remote, ..
        } = *self.request;
        self.parts.target(headers, remote, added)
    }

    fn admit_call(&self) -> Result<(), Duration> {
        self.calls.take(self.request.remote, compact_time::now())
    }

    fn certificate(&self) -> Option<&[u8]> {
        self.request.certificate
    }
}
