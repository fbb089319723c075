//! Event streams that the application asks for (`application.subscribe`).
//!
//! ```text
//! response with Sidestream-Subscribe and status 200 to GET or HEAD
//!   -> Subscription: filters, client, expiry -> framing -> open_stream, as on a route
//!   -> Set-Cookie, Vary and CORS fields of the response, the rest of it is dropped
//! ```
//!
//! The application is asked at every reconnect: its decision is the authorisation. On any other
//! response the header has no effect, and no client receives it. A subscription that is not possible
//! is a fault of the application: the client receives 502, and the log has the reason.

use std::sync::Arc;
use std::time::Instant;

use hyper::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HeaderMap, HeaderName, SET_COOKIE, VARY};
use hyper::{Method, Request, Response, StatusCode};

use super::fields;
use crate::auth::{self, Expiry, Principal};
use crate::encoding::Framing;
use crate::http::context::Context;
use crate::http::request::answer::{Answer, reject};
use crate::http::request::authenticate::with_stream;
use crate::http::request::challenge::Challenge;
use crate::http::request::cors;
use crate::http::request::open_stream::{RequestedStream, framing, open_stream};
use crate::http::request::rejection::Rejection;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::request::request::{self, AuthenticatedRequest, Caller, is_browser};
use crate::http::request::resolve::ClientId;
use crate::http::request::revoked::RevocationCheck;
use crate::http::request::version::version;
use crate::http::route::{Routes, SubscribeRoutes};
use crate::subject::Filter;

/// Request to which the application has answered with a subscription.
pub(super) struct Asking<'r> {
    pub(super) context: &'r Arc<Context>,
    pub(super) routes: &'r Routes,
    pub(super) subscribe: &'r SubscribeRoutes,
    pub(super) caller: &'r Caller,
    pub(super) request: &'r Request<()>,
    pub(super) has_body: bool,
}

/// Subscription that the fields of a response describe.
#[derive(Debug, PartialEq, Eq)]
struct Subscription {
    /// At least one.
    filters: Vec<Filter>,
    /// `None`: the client is its address.
    client: Option<String>,
    expiry: Option<Expiry>,
}

const CLIENT: HeaderName = HeaderName::from_static("sidestream-client");

/// Returns whether a response turns its request into an event stream.
pub(super) fn is_requested<B>(asking: &Asking<'_>, response: &Response<B>) -> bool {
    response.headers().contains_key(&asking.subscribe.header)
        && response.status() == StatusCode::OK
        && matches!(*asking.request.method(), Method::GET | Method::HEAD)
        && !fields::is_websocket(asking.request.headers())
}

/// Returns the event stream, or its rejection. `fields`: those of the application's response.
pub(super) async fn answer(asking: &Asking<'_>, mut fields: HeaderMap) -> Answer {
    let Asking {
        context, request, ..
    } = asking;
    let opened = match Subscription::read(asking, &fields) {
        Ok(subscription) => open(asking, subscription).await,
        Err(reason) => Err(invalid(asking, &reason)),
    };
    let mut answer = opened.unwrap_or_else(|rejection| reject(context, &rejection, request));
    fields::for_client(&mut fields);
    add_kept(asking, &fields, answer.headers_mut());
    answer
}

async fn open(asking: &Asking<'_>, subscription: Subscription) -> Result<Answer, Rejection> {
    let Asking {
        context,
        routes,
        subscribe,
        caller,
        request,
        has_body,
    } = asking;
    let Subscription {
        filters,
        client,
        expiry,
    } = subscription;
    let (route, filters) = match subscribe.route(filters) {
        Ok(found) => found,
        Err(filter) => {
            let reason = format!("`{filter}` is outside of every `allow`");
            return Err(invalid(asking, &reason));
        }
    };
    let framing = framing(route, request.headers())?;
    if *has_body {
        return Err(RejectionCode::UnexpectedBody.into());
    }
    let as_stream = |rejection| with_stream(route, rejection, request, framing);
    if expiry.is_some_and(|expiry| expiry.end <= Instant::now()) {
        return Err(as_stream(Rejection {
            challenge: Some(Challenge::NoCredentials),
            ..Rejection::new(
                RejectionCode::Unauthenticated,
                "the session of the client has expired",
            )
        }));
    }
    let check = RevocationCheck::begin(context);
    let asked = AuthenticatedRequest {
        request: request::Request::new(&routes.config, caller, request, Vec::new()),
        // The application has authenticated the client, by its own means.
        principal: Principal::Anonymous,
    };
    let version = version(route, &asked.request, framing)?;
    let coding = route.coding(framing, request.headers());
    let client = ClientId::new(client, asked.request.remote);
    check.client(&asked, &client).map_err(as_stream)?;
    let requested = RequestedStream {
        route,
        framing,
        handshake: None,
        subscriptions: None,
        filters,
        options: route.options(framing, coding, version).clone(),
        client,
        expiry,
        deadline: None,
    };
    open_stream(
        context,
        &routes.config,
        caller,
        request.method(),
        &asked,
        &check,
        requested,
    )
    .await
}

impl Subscription {
    /// Reads the fields of a response.
    ///
    /// # Errors
    /// A phrase for the operator about what is wrong with them.
    fn read(asking: &Asking<'_>, fields: &HeaderMap) -> Result<Self, String> {
        let filters = filters(fields, &asking.subscribe.header)?;
        let most = asking.routes.config.subjects_per_request_max;
        if filters.len() > most {
            return Err(format!(
                "{} subjects are more than `limits.subjects_per_request`, {most}",
                filters.len()
            ));
        }
        Ok(Self {
            filters,
            client: client(fields)?,
            expiry: auth::expires::expiry(fields)?,
        })
    }
}

/// Reads the filters, which are separated by commas.
fn filters(fields: &HeaderMap, header: &HeaderName) -> Result<Vec<Filter>, String> {
    let mut filters = Vec::new();
    for value in fields.get_all(header) {
        let text = std::str::from_utf8(value.as_bytes());
        let text = text.map_err(|_| format!("{header} is not UTF-8"))?;
        // An empty element of a list is ignored (RFC 9110, 5.6.1.2).
        let elements = text.split(',').map(str::trim);
        for element in elements.filter(|element| !element.is_empty()) {
            let filter = Filter::parse(element).map_err(|invalid| invalid.explain())?;
            filters.push(filter);
        }
    }
    if filters.is_empty() {
        return Err(format!("{header} has no subject"));
    }
    Ok(filters)
}

/// Reads the name of the client.
fn client(fields: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut values = fields.get_all(CLIENT).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err("more than one Sidestream-Client");
    }
    let text = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
    let name = text.trim();
    if name.is_empty() || name.contains(char::is_control) {
        // Clients without a name would be one client.
        return Err("a Sidestream-Client that is empty or not UTF-8");
    }
    Ok(Some(name.to_owned()))
}

/// Logs a subscription that is not possible, and returns its rejection.
fn invalid(asking: &Asking<'_>, reason: &str) -> Rejection {
    let Asking {
        context, request, ..
    } = asking;
    if context.application_log_limiter.take(1).is_ok() {
        tracing::warn!(
            path = request.uri().path(),
            reason,
            "the application asks for an event stream that is not possible"
        );
    }
    let is_event_source = request.method() == Method::GET && is_browser(request.headers());
    Rejection {
        // Any status but 200 would end the client for good.
        stream: is_event_source.then_some(Framing::Sse),
        ..Rejection::new(
            RejectionCode::ApplicationInvalid,
            "the application asks for an event stream that is not possible",
        )
    }
}

/// Adds the fields that the client receives: cookies and CORS of the application, without which a
/// session would be lost and a page of another origin could not read a rejection.
fn add_kept(asking: &Asking<'_>, fields: &HeaderMap, answer: &mut HeaderMap) {
    let is_kept = |name: &HeaderName| {
        *name == SET_COOKIE || *name == VARY || name.as_str().starts_with("access-control-")
    };
    for (name, value) in fields.iter().filter(|(name, _)| is_kept(name)) {
        answer.append(name, value.clone());
    }
    let Some(route) = asking.subscribe.all() else {
        return;
    };
    route.add_vary(answer);
    if !answer.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        cors::answer(&route.config.cors, asking.request.headers(), answer);
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const HEADER: HeaderName = HeaderName::from_static("sidestream-subscribe");

    fn fields(name: &HeaderName, values: &[&[u8]]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for value in values {
            fields.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        fields
    }

    #[test]
    fn filters_are_a_list_in_one_field_or_several() {
        for (values, expected) in [
            (
                &[&b"orders.42.>, alerts"[..]][..],
                Some(&["orders.42.>", "alerts"][..]),
            ),
            (&[b"a", b" ,b , "], Some(&["a", "b"])),
            (&[b""], None),
            (&[b" , "], None),
            (&[b"a..b"], None),
            (&[b"a, $SYS.>"], None),
            (&[b"a b"], None),
            (&[b"caf\xc3\xa9"], Some(&["caf\u{e9}"])),
            (&[b"\xff"], None),
        ] {
            let found = filters(&fields(&HEADER, values), &HEADER).ok();
            let found: Option<Vec<String>> =
                found.map(|found| found.iter().map(ToString::to_string).collect());
            let found: Option<Vec<&str>> = found
                .as_ref()
                .map(|found| found.iter().map(String::as_str).collect());
            assert_eq!(found.as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn client_is_one_text_or_absent() {
        let read = |values: &[&[u8]]| client(&fields(&CLIENT, values));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b" alice "]), Ok(Some("alice".into())));
        assert_eq!(
            read(&["caf\u{e9}".as_bytes()]),
            Ok(Some("caf\u{e9}".into()))
        );
        for invalid in [
            &[&b""[..]][..],
            &[b"  "],
            &[b"a\tb"],
            &[b"\xff"],
            &[b"a", b"b"],
        ] {
            assert!(read(invalid).is_err(), "{invalid:?}");
        }
    }
}
