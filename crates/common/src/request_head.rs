//! Checks of HTTP/1 request heads that the parser leaves to its user: line ends and the `Host`
//! header.
//!
//! RFC 9112 permits a server to accept a line feed without a carriage return (2.2), and proxies
//! handle it differently. If two servers split a head differently, one client's request becomes
//! part of another's (request smuggling). Requests with a bare line feed are rejected, and so are
//! requests without exactly one valid `Host` (3.2).
//!
//! [`LineScan`] sees the bytes as they are read, before the parser. [`host`], [`is_known`] and
//! [`bearer`] read the parsed head.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use hyper::header::{AUTHORIZATION, HOST};
use hyper::{HeaderMap, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Scanner of a connection's bytes for line feeds without a carriage return.
///
/// Heads are numbered from 0, so that a request is not rejected for the head of the next one. The
/// scanner would read a body as heads, so a connection with a body must end after the response.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineScan {
    /// Number of complete heads.
    heads: u32,
    /// Bytes of the incomplete line, at most 2 counted.
    line_bytes: u8,
    ends_with_cr: bool,
    is_in_head: bool,
    is_found: bool,
}

impl LineScan {
    /// Scans more bytes. Returns the number of the head with the first bare line feed.
    pub fn read(&mut self, bytes: &[u8]) -> Option<u32> {
        if self.is_found {
            return None;
        }
        let mut begin = 0;
        for at in memchr::memchr_iter(b'\n', bytes) {
            let line = &bytes[begin..at];
            if !line.last().map_or(self.ends_with_cr, |last| *last == b'\r') {
                self.is_found = true;
                return Some(self.heads);
            }
            let is_empty = usize::from(self.line_bytes) + line.len() == 1;
            // Empty lines before a request line are permitted.
            if is_empty && self.is_in_head {
                self.heads += 1;
            }
            self.is_in_head = !is_empty;
            (self.line_bytes, self.ends_with_cr) = (0, false);
            begin = at + 1;
        }
        if let [.., last] = &bytes[begin..] {
            self.line_bytes = (usize::from(self.line_bytes) + bytes.len() - begin).min(2) as u8;
            self.ends_with_cr = *last == b'\r';
        }
        None
    }
}

/// Connection with one request whose line ends are looked at.
#[derive(Debug)]
pub struct Scanned<T> {
    inner: T,
    scan: LineScan,
    is_found: Arc<AtomicBool>,
}

impl<T> Scanned<T> {
    /// The connection; `is_found` becomes true before its head is parsed.
    pub fn new(inner: T, is_found: Arc<AtomicBool>) -> Self {
        Self {
            inner,
            scan: LineScan::default(),
            is_found,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Scanned<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(task, buffer))?;
        if self.scan.read(&buffer.filled()[before..]) == Some(0) {
            self.is_found.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Scanned<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(task, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(task)
    }
}

/// Returns the host in the `Host` header, which is optional on HTTP/1.0 and HTTP/2.
///
/// # Errors
/// Returns a sentence if `Host` is missing on HTTP/1.1, repeated, or not a host (RFC 9112, 3.2).
pub fn host(version: Version, headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return if version == Version::HTTP_11 {
            Err("HTTP/1.1 requires a Host header")
        } else {
            Ok(None)
        };
    };
    if hosts.next().is_some() {
        return Err("the request has more than one Host header");
    }
    // reg-name, IP literals and a port (RFC 3986, 3.2.2); no user information.
    let is_of_a_host =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    match host.to_str() {
        Ok(text) if text.bytes().all(|byte| is_of_a_host(&byte)) => Ok(Some(text)),
        _ => Err("the Host header is not a host"),
    }
}

/// Returns whether a request with this host cannot come from a page of another site: an IP literal,
/// `localhost`, a name without a dot such as that of a Service, or one of `names`.
///
/// With DNS rebinding, a page makes its own name resolve to any address and reads the responses.
/// The browser still sends the page's name as `Host`, and names in the public DNS have a dot.
#[must_use]
pub fn is_known(host: &str, names: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let literal = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name);
    name.is_empty()
        || literal.parse::<IpAddr>().is_ok()
        || !name.contains('.')
        || names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Returns the token of `Authorization: Bearer`; `None` without one and for other schemes, whose
/// names are case-insensitive (RFC 9110, 11.1).
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// Returns the head with the first bare line feed in these pieces.
    fn found(pieces: &[&[u8]]) -> Option<u32> {
        let mut scan = LineScan::default();
        pieces.iter().find_map(|piece| scan.read(piece))
    }

    #[test]
    fn bare_line_feed_is_found_in_its_head() {
        for (bytes, expected) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", Some(0)),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", Some(0)),
            ("GET / HTTP/1.1\r\nHost: x\r\n\n", Some(0)),
            ("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", Some(0)),
            (
                "\r\n\r\nGET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\n\r\n",
                Some(1),
            ),
            (
                "GET / HTTP/1.1\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n\n",
                Some(2),
            ),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na\n", Some(1)),
        ] {
            assert_eq!(found(&[bytes.as_bytes()]), expected, "{bytes:?}");
            let single: Vec<_> = bytes.as_bytes().chunks(1).collect();
            assert_eq!(found(&single), expected, "{bytes:?} byte by byte");
        }
    }

    proptest! {
        #[test]
        fn result_does_not_depend_on_the_split(bytes in proptest::collection::vec(prop_oneof!["\r", "\n", "a"], 0..20), size in 1_usize..5) {
            let bytes = bytes.concat();
            let pieces: Vec<_> = bytes.as_bytes().chunks(size).collect();
            prop_assert_eq!(found(&pieces), found(&[bytes.as_bytes()]));
        }
    }

    #[test]
    fn request_has_exactly_one_valid_host() {
        let host = |version, values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HOST, HeaderValue::from_static(value));
            }
            host(version, &headers).map(|host| host.map(str::to_owned))
        };
        assert_eq!(
            host(Version::HTTP_11, &["a.example:80"]),
            Ok(Some("a.example:80".into()))
        );
        assert_eq!(host(Version::HTTP_11, &[""]), Ok(Some(String::new())));
        assert_eq!(host(Version::HTTP_10, &[]), Ok(None));
        assert_eq!(host(Version::HTTP_2, &[]), Ok(None));
        for (version, values) in [
            (Version::HTTP_11, &[][..]),
            (Version::HTTP_11, &["a", "a"]),
            (Version::HTTP_10, &["a", "b"]),
            (Version::HTTP_2, &["a", "b"]),
            (Version::HTTP_11, &["user@a"]),
            (Version::HTTP_11, &["a/b"]),
            (Version::HTTP_11, &["a b"]),
            (Version::HTTP_11, &["a, b"]),
        ] {
            assert!(host(version, values).is_err(), "{version:?} {values:?}");
        }
    }

    #[test]
    fn addresses_names_without_a_dot_and_configured_names_are_known() {
        let names = ["sidecar.example".to_owned()];
        for known in [
            "10.0.0.7",
            "10.0.0.7:9090",
            "[::1]:9090",
            "[fd00::7]",
            "localhost",
            "LOCALHOST:1",
            "sidecar",
            "sidecar:9090",
            "",
            ":9090",
        ] {
            assert!(is_known(known, &names), "{known}");
        }
        assert!(is_known("Sidecar.Example.:9090", &names));
        for other in [
            "evil.example",
            "evil.example.",
            "evil.example:9090",
            "10.0.0.7.evil.example",
            "localhost.evil.example",
            "sidecar.evil",
        ] {
            assert!(!is_known(other, &names), "{other}");
        }
    }
}
