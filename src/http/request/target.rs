//! Target of a request as the client made it: scheme, host, path and query without a position.
//!
//! A trusted proxy names scheme and host in `X-Forwarded-Proto` and `X-Forwarded-Host`, or in
//! `Forwarded`; only the configured header is read. The same headers of any other client are ignored.

use std::borrow::Cow;
use std::net::IpAddr;

use hyper::header::{FORWARDED, HOST, HeaderMap};
use hyper::http::uri::Authority;
use hyper::{Method, Uri};
use ipnet::IpNet;

use super::client_address::{is_trusted, last_element, only_parameter};
use super::request::is_position;
use crate::auth::provider::Target;
use crate::http::config::{Config, ForwardedHeader};
use crate::http::stream::state::Peer;

/// Parts of a request from which its target is found.
pub(in crate::http) struct TargetParts<'r> {
    pub(in crate::http) method: &'r Method,
    pub(in crate::http) uri: &'r Uri,
    pub(in crate::http) peer: Peer,
    pub(in crate::http) trusted: &'r [IpNet],
    pub(in crate::http) header: ForwardedHeader,
}

impl<'r> TargetParts<'r> {
    pub(super) fn new<B>(config: &'r Config, peer: Peer, request: &'r hyper::Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            peer,
            trusted: &config.trusted_proxies,
            header: config.forwarded_header,
        }
    }

    /// Returns the target of a request with these header fields. `added` is the route's query
    /// parameter for a position.
    pub(in crate::http) fn target(
        &self,
        headers: &'r HeaderMap,
        client: IpAddr,
        added: Option<&str>,
    ) -> Target<'r> {
        let is_proxied = is_trusted(self.peer.remote().ip(), self.trusted);
        let named = |name| {
            is_proxied
                .then(|| named_by_proxy(headers, self.header, name))
                .flatten()
        };
        let own = if self.peer.tls { "https" } else { "http" };
        let scheme = match named(Named::Scheme) {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => "http",
            _ => own,
        };
        let host = named(Named::Host).filter(|host| is_host(host));
        let host = host.map_or_else(|| own_host(self.uri, headers), Cow::Borrowed);
        Target {
            method: self.method,
            scheme,
            host,
            path: self.uri.path(),
            query: without_position(self.uri.query().unwrap_or_default(), added),
            client,
        }
    }
}

/// Part of the target that a proxy names.
#[derive(Clone, Copy)]
enum Named {
    Scheme,
    Host,
}

/// Returns what the proxy that sent the request has written: the last element.
fn named_by_proxy(headers: &HeaderMap, header: ForwardedHeader, named: Named) -> Option<&str> {
    let (name, parameter) = match (header, named) {
        (ForwardedHeader::XForwardedFor, Named::Scheme) => ("x-forwarded-proto", None),
        (ForwardedHeader::XForwardedFor, Named::Host) => ("x-forwarded-host", None),
        (ForwardedHeader::Forwarded, Named::Scheme) => (FORWARDED.as_str(), Some("proto")),
        (ForwardedHeader::Forwarded, Named::Host) => (FORWARDED.as_str(), Some("host")),
    };
    let line = headers.get_all(name).iter().next_back()?;
    let element = last_element(line.as_bytes())?;
    match parameter {
        None => Some(element),
        Some(parameter) => only_parameter(element, parameter),
    }
}

fn is_host(text: &str) -> bool {
    !text.contains('@') && text.parse::<Authority>().is_ok()
}

/// Returns the host of the request itself, without a user name. The one in the target wins over
/// `Host` (RFC 9112, 3.2.2).
fn own_host<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Cow<'r, str> {
    let authority = uri.authority().map(Authority::as_str);
    let header = || headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = authority.or_else(header).unwrap_or_default();
    Cow::Borrowed(host.rsplit('@').next().unwrap_or_default())
}

/// Returns a query without the parameters that are a position of an event stream. All others are
/// as they were sent, in their order.
fn without_position<'q>(query: &'q str, added: Option<&str>) -> Cow<'q, str> {
    let is_kept = |pair: &&str| {
        let name = form_urlencoded::parse(pair.as_bytes()).next();
        !name.is_some_and(|(name, _)| is_position(&name, added))
    };
    if query.split('&').all(|pair| is_kept(&pair)) {
        return Cow::Borrowed(query);
    }
    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    Cow::Owned(kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::Protocol;

    const BOTH: [(&str, &str); 4] = [
        ("host", "own.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example:8443"),
        (
            "forwarded",
            "proto=http;host=evil.example, For=192.0.2.1; Proto=HTTPS;host=\"f.example:1\"",
        ),
    ];

    /// Returns scheme and host of a request from a peer.
    fn origin(peer: &str, header: ForwardedHeader, headers: &[(&str, &str)]) -> String {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name: hyper::header::HeaderName = name.parse().unwrap();
                (name, value.parse().unwrap())
            })
            .collect();
        let uri = Uri::from_static("/events?a=1");
        let parts = TargetParts {
            method: &Method::GET,
            uri: &uri,
            peer: Peer::new(peer.parse().unwrap(), Protocol::Http11, false),
            trusted: &["10.0.0.0/8".parse().unwrap()],
            header,
        };
        let target = parts.target(&map, [192, 0, 2, 1].into(), None);
        format!("{}://{}", target.scheme, target.host)
    }

    #[test]
    fn trusted_proxy_names_scheme_and_host_in_the_configured_header() {
        for (peer, header, expected) in [
            (
                "10.0.0.1:1",
                ForwardedHeader::XForwardedFor,
                "https://shop.example:8443",
            ),
            (
                "[::ffff:10.0.0.1]:1",
                ForwardedHeader::Forwarded,
                "https://f.example:1",
            ),
            (
                "192.0.2.1:1",
                ForwardedHeader::XForwardedFor,
                "http://own.example",
            ),
            (
                "192.0.2.1:1",
                ForwardedHeader::Forwarded,
                "http://own.example",
            ),
        ] {
            assert_eq!(origin(peer, header, &BOTH), expected, "{peer}");
        }
    }

    #[test]
    fn last_element_counts_and_an_invalid_one_is_ignored() {
        for (name, value, expected) in [
            ("x-forwarded-proto", "http, https", "https://own.example"),
            ("x-forwarded-proto", "https, http", "http://own.example"),
            ("x-forwarded-proto", "ftp", "http://own.example"),
            (
                "x-forwarded-host",
                "evil.example, a.example",
                "http://a.example",
            ),
            ("x-forwarded-host", "me@a.example", "http://own.example"),
            ("x-forwarded-host", "a b", "http://own.example"),
            ("x-forwarded-host", "", "http://own.example"),
        ] {
            let headers = [("host", "own.example"), (name, value)];
            let found = origin("10.0.0.1:1", ForwardedHeader::XForwardedFor, &headers);
            assert_eq!(found, expected, "{name}: {value}");
        }
    }

    #[test]
    fn query_is_kept_byte_by_byte_without_the_position() {
        for (query, expected) in [
            ("", ""),
            ("a=%2f&&b", "a=%2f&&b"),
            ("last_event_id=1", ""),
            ("a=1&lastEventId=x&b=%20", "a=1&b=%20"),
            ("last%5Fevent_id=1&a=1&from=2&Last-Event-ID", "a=1"),
            ("lastEventID=1&last_event_ids=1", "last_event_ids=1"),
        ] {
            assert_eq!(without_position(query, Some("from")), expected, "{query}");
        }
        assert_eq!(without_position("from=2", None), "from=2");
    }
}
