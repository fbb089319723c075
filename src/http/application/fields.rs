//! Header fields of passed requests and responses (RFC 9110, 7.6).
//!
//! | fields | requests | responses |
//! | --- | --- | --- |
//! | of one connection (`Connection`, what it names, `TE`, `Upgrade`, ...) | removed | removed |
//! | `Sidestream-*` | removed | removed |
//! | all fields here, written with `_` for `-` | removed | |
//! | `Forwarded`, `X-Forwarded-*`, `X-Real-IP` | of trusted proxies only; the own hop is added | kept |
//! | `Via` | added | added |
//! | `X-Request-Id` | added if it is missing | kept |
//! | `Host` | as the client sent it | |

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};

use crate::auth::provider::Target;
use crate::http::config::ForwardedHeader;

const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Fields that an application believes if a proxy has sent them.
const OF_PROXIES: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
];

/// Id of a request in the logs of all that it passes.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// 128 bytes: longer ids are replaced.
const REQUEST_ID_MAX: usize = 128;

const PREFIX: &str = "sidestream-";

/// Fields besides the hop-by-hop ones that an application must not read under another name.
const GUARDED: [HeaderName; 7] = [
    CONTENT_LENGTH,
    EXPECT,
    FORWARDED,
    HOST,
    VIA,
    HeaderName::from_static("x-real-ip"),
    X_REQUEST_ID,
];

const X_FORWARDED: &str = "x-forwarded-";

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Connection from which a request came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    /// Address of the client or proxy.
    pub(super) peer: IpAddr,
    /// It is a trusted proxy.
    pub(super) is_trusted: bool,
    /// Header that trusted proxies write.
    pub(super) header: ForwardedHeader,
    /// HTTP version of the request.
    pub(super) version: HopVersion,
}

/// HTTP version with which a message arrived, for `Via`.
#[derive(Clone, Copy, Debug)]
pub(super) enum HopVersion {
    Http10,
    Http11,
    Http2,
}

impl HopVersion {
    fn via(self) -> &'static str {
        match self {
            Self::Http10 => "1.0 sidestream",
            Self::Http11 => "1.1 sidestream",
            Self::Http2 => "2 sidestream",
        }
    }
}

/// Returns whether a request asks for a WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let names_upgrade = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value
            .split(',')
            .any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
    };
    headers.get_all(CONNECTION).iter().any(names_upgrade)
        && headers
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Returns the id of a request: the one that it has, or a new one.
pub(super) fn request_id(sent: &HeaderMap) -> HeaderValue {
    let is_id = |id: &&HeaderValue| (1..=REQUEST_ID_MAX).contains(&id.len());
    if let Some(id) = sent.get(&X_REQUEST_ID).filter(is_id) {
        return id.clone();
    }
    let id = fastrand::u128(..);
    let digit = |place| b"0123456789abcdef"[(id >> (4 * place)) as usize & 0xf];
    let id: [u8; 32] = std::array::from_fn(digit);
    HeaderValue::from_bytes(&id).unwrap_or(HeaderValue::from_static("0"))
}

/// Changes the fields of a request for the application.
pub(super) fn for_application(
    headers: &mut HeaderMap,
    target: &Target<'_>,
    hop: Hop,
    request_id: HeaderValue,
) {
    let is_websocket = is_websocket(headers);
    let accepts_trailers = headers
        .get(TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let writes_forwarded = hop.header == ForwardedHeader::Forwarded;
    remove(headers, |name| {
        // This server has answered `Expect`.
        *name == EXPECT
            || (*name == FORWARDED && !writes_forwarded)
            || (!hop.is_trusted && OF_PROXIES.contains(name))
            || is_disguised(name)
    });
    if accepts_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if is_websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, WEBSOCKET);
    }
    add_host(headers, target);
    add_forwarded(headers, target, hop);
    headers.append(VIA, HeaderValue::from_static(hop.version.via()));
    headers.insert(X_REQUEST_ID, request_id);
}

/// Changes the fields of a response for the client.
pub(super) fn for_client(headers: &mut HeaderMap) {
    // The chunks win (RFC 9112, 6.3), and the other length would cut the content.
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    remove(headers, |name| is_chunked && *name == CONTENT_LENGTH);
    headers.append(VIA, HeaderValue::from_static(HopVersion::Http11.via()));
}

/// Fields of a 101, which keep `Connection` and `Upgrade`.
pub(super) fn for_tunnel(headers: &mut HeaderMap) {
    for_client(headers);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// Keeps `Host` as the client sent it, also to a proxy in front; HTTP/2 has it in the target.
fn add_host(headers: &mut HeaderMap, target: &Target<'_>) {
    if headers.get(HOST).is_none_or(HeaderValue::is_empty) {
        insert(headers, HOST, &target.host);
    }
}

/// Returns whether a field is `Sidestream-*`.
pub(super) fn is_own(name: &HeaderName) -> bool {
    name.as_str().starts_with(PREFIX)
}

/// Removes the fields of one connection, those of this product, and others. Nearly all messages
/// have none, so the names are read once and nothing is searched.
fn remove(headers: &mut HeaderMap, is_other: impl Fn(&HeaderName) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let is_removed = |name: &&HeaderName| {
        HOP_BY_HOP.contains(name) || named.contains(name) || is_own(name) || is_other(name)
    };
    let removed: Vec<HeaderName> = headers.keys().filter(is_removed).cloned().collect();
    for name in removed {
        headers.remove(name);
    }
}

/// Returns whether a name is that of a field which this sidecar writes or removes, but for an
/// underscore. CGI and WSGI know no difference between `X_Forwarded_For` and `X-Forwarded-For`.
fn is_disguised(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !name.contains('_') {
        return false;
    }
    let name = name.replace('_', "-");
    name.starts_with(PREFIX)
        || name.starts_with(X_FORWARDED)
        || HOP_BY_HOP
            .iter()
            .chain(&GUARDED)
            .any(|known| known.as_str() == name)
}

fn add_forwarded(headers: &mut HeaderMap, target: &Target<'_>, hop: Hop) {
    let peer = hop.peer.to_canonical();
    let before = |headers: &HeaderMap, name: &HeaderName, header| {
        let lines = headers.get_all(name).iter();
        let lines = lines.filter_map(|value| value.to_str().ok());
        let is_believed = hop.is_trusted && hop.header == header;
        is_believed.then(|| lines.collect::<Vec<_>>().join(", "))
    };
    let chain = |before: Option<String>, own: String| match before {
        Some(before) if !before.is_empty() => format!("{before}, {own}"),
        _ => own,
    };
    let addresses = before(headers, &X_FORWARDED_FOR, ForwardedHeader::XForwardedFor);
    let own = match hop.header {
        ForwardedHeader::XForwardedFor => peer,
        // The proxies in front are in the other header.
        ForwardedHeader::Forwarded => target.client,
    };
    insert(headers, X_FORWARDED_FOR, &chain(addresses, own.to_string()));
    insert(headers, X_FORWARDED_HOST, &target.host);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(target.scheme));
    let elements = before(headers, &FORWARDED, ForwardedHeader::Forwarded);
    if hop.header == ForwardedHeader::Forwarded {
        let peer = match peer {
            IpAddr::V4(peer) => peer.to_string(),
            IpAddr::V6(peer) => format!("\"[{peer}]\""),
        };
        let own = format!(
            "for={peer};host=\"{}\";proto={}",
            target.host, target.scheme
        );
        insert(headers, FORWARDED, &chain(elements, own));
    }
}

/// Sets a field. A value that cannot be one removes it: the client could have sent another.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use hyper::Method;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// Returns a request's fields as the application receives them.
    fn received(
        fields: &[(&'static str, &'static str)],
        is_trusted: bool,
        header: ForwardedHeader,
    ) -> HeaderMap {
        let mut headers = headers(fields);
        let target = Target {
            method: &Method::GET,
            scheme: "https",
            host: Cow::Borrowed("shop.example"),
            path: "/",
            query: Cow::Borrowed(""),
            client: [192, 0, 2, 7].into(),
        };
        let hop = Hop {
            peer: [10, 0, 0, 9].into(),
            is_trusted,
            header,
            version: HopVersion::Http11,
        };
        let id = request_id(&headers);
        for_application(&mut headers, &target, hop, id);
        headers
    }

    fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn fields_of_one_connection_and_of_this_product_are_removed() {
        let headers = received(
            &[
                ("host", "shop.example"),
                ("connection", "keep-alive, X-Hop, Upgrade"),
                ("x-hop", "a"),
                ("keep-alive", "timeout=5"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAMAAABkAAQAAP__"),
                ("te", "gzip"),
                ("transfer-encoding", "chunked"),
                ("proxy-authorization", "Basic eDp5"),
                ("expect", "100-continue"),
                ("sidestream-subscribe", "orders.>"),
                ("cookie", "a=b"),
            ],
            false,
            ForwardedHeader::XForwardedFor,
        );
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "cookie",
            "host",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-request-id",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn websocket_is_the_only_upgrade() {
        let upgrade = |token| {
            let fields = [("connection", "Upgrade"), ("upgrade", token)];
            let headers = received(&fields, false, ForwardedHeader::XForwardedFor);
            text(&headers, "upgrade").map(str::to_owned)
        };
        assert_eq!(upgrade("WebSocket"), Some("websocket".to_owned()));
        assert_eq!(upgrade("h2c"), None);
        assert_eq!(upgrade("websocket, h2c"), None);
    }

    #[test]
    fn forwarded_fields_of_clients_are_not_believed() {
        let sent = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil.example"),
            ("x-real-ip", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
        ];
        let headers = received(&sent, false, ForwardedHeader::XForwardedFor);
        assert_eq!(text(&headers, "x-forwarded-for"), Some("10.0.0.9"));
        assert_eq!(text(&headers, "x-forwarded-host"), Some("shop.example"));
        assert_eq!(text(&headers, "x-forwarded-proto"), Some("https"));
        assert_eq!(text(&headers, "x-real-ip"), None);
        assert_eq!(text(&headers, "forwarded"), None);
        let headers = received(&sent, true, ForwardedHeader::XForwardedFor);
        assert_eq!(text(&headers, "x-forwarded-for"), Some("1.2.3.4, 10.0.0.9"));
        assert_eq!(text(&headers, "x-real-ip"), Some("1.2.3.4"));
        assert_eq!(text(&headers, "forwarded"), None);
        let headers = received(&sent, true, ForwardedHeader::Forwarded);
        assert_eq!(text(&headers, "x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(
            text(&headers, "forwarded"),
            Some("for=1.2.3.4, for=10.0.0.9;host=\"shop.example\";proto=https")
        );
    }

    #[test]
    fn request_id_is_kept_or_made() {
        let id = |sent: &[(&'static str, &'static str)]| {
            let headers = received(sent, false, ForwardedHeader::XForwardedFor);
            text(&headers, "x-request-id").unwrap().to_owned()
        };
        assert_eq!(id(&[("x-request-id", "abc")]), "abc");
        assert_eq!(id(&[]).len(), 32);
        assert_ne!(id(&[]), id(&[]));
    }

    #[test]
    fn fields_of_responses_are_those_of_the_application() {
        let mut headers = headers(&[
            ("content-type", "text/html"),
            ("connection", "close"),
            ("sidestream-client", "alice"),
            ("set-cookie", "a=b"),
        ]);
        for_client(&mut headers);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "set-cookie", "via"]);
    }
}
