//! Session of a browser: a cookie in the place of the token, which no `EventSource` can send.
//!
//! ```text
//! POST /page/login token=...  -> Set-Cookie: sidestream_admin_9090=<end>.<signature>
//! ```
//!
//! The value is the end of the session in Unix seconds, signed with a random key of this process
//! ([`Token`](super::access::Token)). Nothing is stored, so the number of sessions needs no bound. A
//! new token or a restart ends all sessions. Cookies ignore ports, so the name has the port of the
//! URL: pods that are forwarded to different ports of one machine keep their own sessions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{COOKIE, HOST};

/// 12 h: one working day.
pub(super) const SESSION_MAX: Duration = Duration::from_secs(12 * 60 * 60);

const NAME: &str = "sidestream_admin";

/// Returns the value of the session cookie of a request.
pub(super) fn presented(headers: &HeaderMap) -> Option<&str> {
    let name = name(headers);
    let texts = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(found, value)| (found == name).then_some(value))
}

/// Returns the field `Set-Cookie` of a session; an empty value ends it.
pub(super) fn set_cookie(headers: &HeaderMap, value: &str, is_tls: bool) -> String {
    let name = name(headers);
    let age = match value {
        "" => 0,
        _ => SESSION_MAX.as_secs(),
    };
    let secure = if is_tls { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}")
}

/// Returns the name of the cookie: with the port of the URL, if it has one.
fn name(headers: &HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let port = host.and_then(|host| host.rsplit_once(':')?.1.parse::<u16>().ok());
    port.map_or_else(|| NAME.to_owned(), |port| format!("{NAME}_{port}"))
}

/// Returns the end of a session that begins now, in Unix seconds.
pub(super) fn end(now: SystemTime) -> u64 {
    unix_seconds(now) + SESSION_MAX.as_secs()
}

/// Splits the value of a cookie into its end and its signature; `None` after the end.
pub(super) fn parse(value: &str, now: SystemTime) -> Option<(&str, &str)> {
    let (end, signature) = value.split_once('.')?;
    let seconds: u64 = end.parse().ok()?;
    (seconds > unix_seconds(now)).then_some((end, signature))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(host: &'static str, cookie: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static(host));
        headers.insert(COOKIE, HeaderValue::from_static(cookie));
        headers
    }

    #[test]
    fn cookie_belongs_to_the_port_of_the_url() {
        let cookies =
            "a=b; sidestream_admin_9090=one; sidestream_admin_9091=two;sidestream_admin=three";
        for (host, expected) in [
            ("localhost:9090", Some("one")),
            ("127.0.0.1:9091", Some("two")),
            ("[::1]:9091", Some("two")),
            ("localhost", Some("three")),
            ("[::1]", Some("three")),
            ("localhost:9092", None),
        ] {
            assert_eq!(presented(&headers(host, cookies)), expected, "{host}");
        }
    }

    #[test]
    fn cookie_is_hidden_from_scripts_and_other_sites_and_secure_with_tls() {
        let set = |value, is_tls| set_cookie(&headers("localhost:9090", "a=b"), value, is_tls);
        assert_eq!(
            set("v", false),
            "sidestream_admin_9090=v; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
        );
        assert!(set("v", true).ends_with("; SameSite=Strict; Secure"));
        assert!(set("", false).contains("=; Path=/; Max-Age=0;"));
    }
}
