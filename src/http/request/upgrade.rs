//! WebSocket handshake of a request: the opening handshake of HTTP/1.1 (RFC 6455, 4.2), and the
//! extended CONNECT of HTTP/2 (RFC 8441).
//!
//! A browser does not show the status of a failed handshake to the page. A rejection that ends by
//! itself, or for missing credentials, is therefore a WebSocket that is closed with its reason,
//! for clients with an `Origin` ([`accepts_close`]).

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use crate::auth::provider::Target;
use crate::encoding::Framing;
use crate::http::config::CorsConfig;
use crate::http::route::Route;

/// Valid handshake.
pub(in crate::http) struct Handshake {
    /// `Sec-WebSocket-Accept`, on HTTP/1.1.
    accept: Option<HeaderValue>,
    /// The client offers [`SUBPROTOCOL`].
    has_subprotocol: bool,
}

/// Subprotocol: the objects of newline-delimited JSON as text messages.
const SUBPROTOCOL: &str = "sidestream.v1";

/// Name of the protocol, in `Upgrade` and in `:protocol`.
const WEBSOCKET: &str = "websocket";

/// Version of the protocol.
pub(in crate::http) const VERSION: HeaderValue = HeaderValue::from_static("13");

/// Returns whether a request asks for a WebSocket.
pub(in crate::http) fn is_websocket<B>(request: &Request<B>) -> bool {
    match request.version() {
        Version::HTTP_2 => {
            let protocol = request.extensions().get::<h2::ext::Protocol>();
            *request.method() == Method::CONNECT
                && protocol.is_some_and(|protocol| protocol.as_str() == WEBSOCKET)
        }
        Version::HTTP_11 => {
            *request.method() == Method::GET
                && tokens(request.headers(), &UPGRADE)
                    .any(|token| token.eq_ignore_ascii_case(WEBSOCKET))
        }
        _ => false,
    }
}

/// Returns the handshake if the request asks for a WebSocket.
///
/// # Errors
/// The handshake is invalid, or the route offers no WebSocket.
pub(in crate::http) fn handshake<B>(
    route: &Route,
    request: &Request<B>,
) -> Result<Option<Handshake>, Rejection> {
    if !is_websocket(request) {
        return Ok(None);
    }
    if route.config.framings.contains(&Framing::WebSocket) {
        return Handshake::new(request).map(Some);
    }
    // Some proxies add `Upgrade` to every request; no client but a WebSocket has the key.
    if request.method() == Method::GET && !request.headers().contains_key(SEC_WEBSOCKET_KEY) {
        return Ok(None);
    }
    let message = "`framings` of the route has no `websocket`";
    Err(Rejection::new(RejectionCode::NotAcceptable, message))
}

/// Returns whether a client is rejected by a WebSocket that is closed: it is a page in a browser.
pub(in crate::http) fn accepts_close(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
}

/// Checks that the page that opens a WebSocket may: browsers do not ask for permission, and send
/// cookies.
///
/// # Errors
/// The origin is neither that of the request nor in `cors.origins`.
pub(in crate::http) fn check_origin(
    headers: &HeaderMap,
    target: &Target<'_>,
    cors: &CorsConfig,
) -> Result<(), Rejection> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return Ok(());
    };
    let is_listed = |allowed: &String| allowed == "*" || allowed.as_bytes() == origin.as_bytes();
    let is_same = origin
        .to_str()
        .is_ok_and(|origin| is_same_origin(origin, target.scheme, &target.host));
    if origins.next().is_none() && (is_same || cors.origins.iter().any(is_listed)) {
        return Ok(());
    }
    Err(RejectionCode::OriginNotAllowed.into())
}

/// Returns whether an origin is that of a request. A page over TLS is the same origin as a request
/// in clear text: a proxy in front that is not in `trusted_proxies` has ended TLS.
fn is_same_origin(origin: &str, scheme: &str, host: &str) -> bool {
    let Some((of_page, page_host)) = origin.split_once("://") else {
        return false;
    };
    let default_port = match of_page {
        "https" => ":443",
        "http" if scheme == "http" => ":80",
        _ => return false,
    };
    let without_port = |host: &str| {
        let host = host.strip_suffix(default_port).unwrap_or(host);
        host.to_ascii_lowercase()
    };
    !host.is_empty() && without_port(page_host) == without_port(host)
}

impl Handshake {
    /// Checks the handshake of a request.
    ///
    /// # Errors
    /// It is invalid, or the client offers other subprotocols only.
    pub(in crate::http) fn new<B>(request: &Request<B>) -> Result<Self, Rejection> {
        let bad = |reason: String| Rejection::new(RejectionCode::BadHandshake, reason);
        let headers = request.headers();
        let accept = if request.version() == Version::HTTP_2 {
            if headers
                .get(SEC_WEBSOCKET_VERSION)
                .is_some_and(|version| version != VERSION)
            {
                return Err(bad("the version of the protocol is not 13".to_owned()));
            }
            None
        } else {
            let response =
                tungstenite::handshake::server::create_response_with_body(request, || ())
                    .map_err(|error| bad(error.to_string()))?;
            response.headers().get(SEC_WEBSOCKET_ACCEPT).cloned()
        };
        let mut offered = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
        let is_any_offered = offered.peek().is_some();
        let has_subprotocol = offered.any(|offer| offer == SUBPROTOCOL);
        if is_any_offered && !has_subprotocol {
            return Err(bad(format!("the subprotocol is {SUBPROTOCOL}")));
        }
        Ok(Self {
            accept,
            has_subprotocol,
        })
    }

    /// Returns the head of the response.
    pub(in crate::http) fn head(&self) -> Response<()> {
        let mut head = Response::new(());
        let headers = head.headers_mut();
        if self.has_subprotocol {
            let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
            headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
        }
        if let Some(accept) = &self.accept {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept.clone());
            add_upgrade(headers);
            *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        head
    }
}

/// Adds the fields that name the protocol (RFC 9110, 7.8).
pub(in crate::http) fn add_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

/// Returns the elements of a list field.
fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_the_same_host_and_port_is_the_same_origin() {
        for (origin, scheme, host, expected) in [
            ("https://a.example", "https", "a.example", true),
            ("https://a.example", "https", "A.example:443", true),
            ("http://a.example:8080", "http", "a.example:8080", true),
            ("http://a.example", "http", "a.example:80", true),
            ("http://[::1]:8080", "http", "[::1]:8080", true),
            // TLS ends at a proxy.
            ("https://a.example", "http", "a.example", true),
            ("http://a.example", "https", "a.example", false),
            ("https://a.example:8443", "https", "a.example", false),
            ("https://a.example.evil", "https", "a.example", false),
            ("https://evil-a.example", "https", "a.example", false),
            ("ftp://a.example", "http", "a.example", false),
            ("null", "https", "a.example", false),
            ("https://", "https", "", false),
            ("", "https", "a.example", false),
        ] {
            assert_eq!(
                is_same_origin(origin, scheme, host),
                expected,
                "{origin} {host}"
            );
        }
    }
}
