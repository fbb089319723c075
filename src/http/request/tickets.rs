//! Tickets for clients: `POST` with credentials at the path of `authentication.tickets`.
//!
//! ```text
//! Host -> method -> credentials -> limit of the principal -> admission -> ticket
//! ```
//!
//! A rejection has the form of those on routes, and never that of an event stream: no `EventSource`
//! sends POST. The body of a request is not read. A draining pod issues tickets, too: they are
//! valid on every pod.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, StatusCode};

use super::admission::admit_request;
use super::answer::{Answer, json, options, reject};
use super::authenticate::authenticate_buyer;
use super::cors;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::{Caller, Request};
use super::target::TargetParts;
use crate::auth::Principal;
use crate::auth::tickets::{IssueFailure, IssueResult, Issued};
use crate::http::context::Context;
use crate::http::route::Routes;
use crate::http::stream::compact_time;
use crate::http::ticket_endpoint::TicketEndpoint;
use crate::net::request_head;

/// Methods of the path.
const METHODS: HeaderValue = HeaderValue::from_static("POST, OPTIONS");

/// Answers a request at the path of tickets.
pub(super) async fn answer<B: Sync>(
    context: &Context,
    routes: &Routes,
    endpoint: &TicketEndpoint,
    caller: &Caller,
    request: &hyper::Request<B>,
) -> Answer {
    let mut answer = match issue(context, routes, endpoint, caller, request).await {
        Ok(answer) => answer,
        Err(rejection) => reject(context, &rejection, request),
    };
    let (cors, headers) = (&endpoint.config.cors, answer.headers_mut());
    if headers.contains_key(ALLOW) {
        headers.insert(ALLOW, METHODS);
    }
    if request.method() == Method::OPTIONS {
        let methods = HeaderValue::from_static("POST");
        cors::preflight(
            cors,
            methods,
            &endpoint.cors_headers,
            request.headers(),
            headers,
        );
    } else {
        cors::answer(cors, request.headers(), headers);
    }
    answer
}

async fn issue<B: Sync>(
    context: &Context,
    routes: &Routes,
    endpoint: &TicketEndpoint,
    caller: &Caller,
    request: &hyper::Request<B>,
) -> Result<Answer, Rejection> {
    request_head::host(request.version(), request.headers())
        .map_err(|reason| Rejection::new(RejectionCode::BadHost, reason))?;
    match *request.method() {
        Method::POST => {}
        Method::OPTIONS => return Ok(Answer::Text(options(METHODS))),
        _ => {
            let message = "tickets are bought with POST";
            return Err(Rejection::new(RejectionCode::MethodNotAllowed, message));
        }
    }
    let asked = Request::new(&routes.config, caller, request, Vec::new());
    let parts = TargetParts::new(&routes.config, caller.peer, request);
    let principal = authenticate_buyer(context, endpoint, parts, &asked).await?;
    let Principal::Identified(identity) = principal else {
        return Err(RejectionCode::Unauthenticated.into());
    };
    let (provider, subject) = (&identity.provider, &identity.subject);
    let limit = &context.ticket_limiter;
    if let Err(wait) = limit.take(provider, subject, compact_time::now()) {
        endpoint.tickets.count_issue(IssueResult::Throttled);
        return Err(Rejection::after(RejectionCode::TooManyTickets, wait));
    }
    admit_request(context, caller.over_limit)?;
    match endpoint.tickets.issue(&identity).await {
        Ok(issued) => Ok(Answer::Text(json(StatusCode::OK, body(&issued)))),
        Err(IssueFailure::TooLarge) => Err(RejectionCode::ClaimsTooLarge.into()),
        Err(IssueFailure::Full) => Err(RejectionCode::TicketsFull.into()),
        Err(IssueFailure::Unavailable { retry_after }) => Err(Rejection::after(
            RejectionCode::AuthenticationUnavailable,
            retry_after,
        )),
    }
}

fn body(Issued { ticket, expires_in }: &Issued) -> Bytes {
    let ticket = ticket.as_str();
    // Rounded down, but never to zero.
    let expires_in = (*expires_in).max(Duration::from_secs(1)).as_secs();
    let body = serde_json::json!({ "ticket": ticket, "expires_in": expires_in });
    Bytes::from(body.to_string())
}
