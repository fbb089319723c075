//! Authentication: determines the principal of a request before any variable is filled.
//!
//! ```text
//! route, method, Accept, body -> authenticate -> variables, subjects -> admission -> client limits
//!
//! limit::AddressLimiter   too many failures of this address: 429, nothing is verified
//!   a ticket in the query decides: it is redeemed, or else
//!   providers of the route, in order, until one finds its credentials in the request
//!     principal | invalid: 401, 403 | too many calls: 429 | not available: 503 | none found: 401
//! auth::Revocations       revoked: 401 | not known, if configured: 503
//! ```
//!
//! Clients buy tickets with credentials of the providers of `authentication.tickets`
//! ([`authenticate_buyer`]).
//!
//! A program receives the status and a challenge of RFC 6750. An `EventSource` stops for good after
//! any status but 200: by the route's `unauthenticated` it receives an event stream that ends with
//! `sidestream.close`, and returns after about 30 s.
//!
//! Credentials are never logged, and neither is the query, which may have them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Method};

use super::challenge::Challenge;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::{AuthenticatedRequest, Request, is_browser};
use super::target::TargetParts;
use super::upgrade::accepts_close;
use crate::auth::provider::{EndpointRejection, Target};
use crate::auth::revocations::Denial;
use crate::auth::{AuthFailure, Credentials, Principal, Provider};
use crate::encoding::Framing;
use crate::http::config::{TICKET_QUERY, Unauthenticated};
use crate::http::context::Context;
use crate::http::route::{Route, Routes};
use crate::http::stream::compact_time;
use crate::http::ticket_endpoint::TicketEndpoint;
use crate::limit::AddressLimiter;
use crate::net::request_head;

/// Determines the principal of a request by the providers of its route.
///
/// # Errors
/// The request has no valid credentials or revoked ones, its address has sent too many invalid
/// ones, or a provider or the revocations are not available.
pub(in crate::http) async fn authenticate<'r>(
    context: &Context,
    routes: &Routes,
    route: &Route,
    parts: TargetParts<'_>,
    request: Request<'r>,
) -> Result<AuthenticatedRequest<'r>, Rejection> {
    let principal = if route.config.authenticate.is_empty() {
        Principal::Anonymous
    } else {
        let attempt = Attempt {
            label: &route.label,
            providers: &route.providers,
            tickets: routes.tickets.as_ref(),
            position_query: route.config.last_event_id_query.as_deref(),
            parts,
            request: &request,
            calls: &context.call_limiter,
        };
        principal(context, &attempt).await?
    };
    check_revoked(context, &principal, &request)?;
    Ok(AuthenticatedRequest { request, principal })
}

/// Determines the principal that buys a ticket.
///
/// # Errors
/// As [`authenticate`].
pub(in crate::http) async fn authenticate_buyer(
    context: &Context,
    endpoint: &TicketEndpoint,
    parts: TargetParts<'_>,
    request: &Request<'_>,
) -> Result<Principal, Rejection> {
    let attempt = Attempt {
        label: endpoint.config.path.as_str(),
        providers: &endpoint.providers,
        // A ticket does not buy another one.
        tickets: None,
        position_query: None,
        parts,
        request,
        calls: &context.call_limiter,
    };
    let principal = principal(context, &attempt).await?;
    check_revoked(context, &principal, request)?;
    Ok(principal)
}

fn check_revoked(
    context: &Context,
    principal: &Principal,
    request: &Request<'_>,
) -> Result<(), Rejection> {
    let Some(revocations) = context.revocations() else {
        return Ok(());
    };
    let checked = revocations.check_principal(principal);
    if checked == Err(Denial::Revoked) {
        // As an invalid token: it costs as much to verify.
        let (failures, address) = (&context.failure_limiter, request.remote);
        failures.record(address, compact_time::now());
    }
    checked.map_err(Rejection::from)
}

/// Returns whether a request spends a ticket, if that is valid.
pub(in crate::http) fn has_ticket(routes: &Routes, route: &Route, request: &Request<'_>) -> bool {
    routes.tickets.is_some()
        && !route.config.authenticate.is_empty()
        && request.query_values(TICKET_QUERY).next().is_some()
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
            route = attempt.label,
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
    if let Some(endpoint) = attempt.tickets {
        let mut tickets = attempt.request.query_values(TICKET_QUERY);
        if let Some(ticket) = tickets.next() {
            let is_only = tickets.next().is_none();
            return redeem(attempt, endpoint, &ticket, is_only).await.map(Some);
        }
    }
    let providers = attempt.providers;
    for (index, provider) in providers.iter().enumerate() {
        let is_last = index + 1 == providers.len();
        if let Some(principal) = provider.authenticate(attempt, is_last).await? {
            return Ok(Some(principal));
        }
    }
    Ok(None)
}

/// Redeems the ticket of a request.
async fn redeem(
    attempt: &Attempt<'_>,
    endpoint: &TicketEndpoint,
    ticket: &str,
    is_only: bool,
) -> Result<Principal, AuthFailure> {
    let providers = attempt.providers;
    let description = if !is_only {
        "the request has more than one ticket"
    } else if !endpoint.is_accepted_by(providers) {
        "this route accepts no tickets"
    } else {
        let is_listed = |name: &str| providers.iter().any(|provider| provider.name() == name);
        return endpoint.tickets.redeem(ticket, is_listed).await;
    };
    // The ticket is not spent.
    Err(AuthFailure::Invalid { description })
}

/// Returns the rejection with the framing of the event stream that a client without valid
/// credentials receives instead of a status.
pub(in crate::http) fn with_stream<B>(
    route: &Route,
    rejection: Rejection,
    request: &hyper::Request<B>,
    framing: Framing,
) -> Rejection {
    let headers = request.headers();
    let is_unauthenticated = matches!(
        rejection.code,
        RejectionCode::Unauthenticated
            | RejectionCode::InvalidToken
            | RejectionCode::Revoked
            | RejectionCode::Forbidden
    );
    let is_stream = match route.config.unauthenticated {
        Unauthenticated::Auto if framing == Framing::WebSocket => accepts_close(headers),
        Unauthenticated::Auto => is_browser(headers),
        Unauthenticated::Status => false,
        // An answer of a long poll has a position.
        Unauthenticated::Stream => framing != Framing::LongPoll,
    };
    let has_content = matches!(*request.method(), Method::GET | Method::CONNECT);
    Rejection {
        stream: (is_unauthenticated && is_stream && has_content).then_some(framing),
        ..rejection
    }
}

/// Request to a route that authenticates, or for a ticket, as the providers see it.
struct Attempt<'r> {
    /// Path as configured, for the log.
    label: &'r str,
    providers: &'r [Arc<dyn Provider>],
    /// `None`: a ticket in the query is ignored.
    tickets: Option<&'r TicketEndpoint>,
    /// Query parameter that the route adds to those of a position.
    position_query: Option<&'r str>,
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
        let Request {
            headers, remote, ..
        } = *self.request;
        self.parts.target(headers, remote, self.position_query)
    }

    fn admit_call(&self) -> Result<(), Duration> {
        self.calls.take(self.request.remote, compact_time::now())
    }

    fn certificate(&self) -> Option<&[u8]> {
        self.request.certificate
    }
}
