//! Checks of HTTP/1 request heads that the parser leaves to its user: line ends, two lengths and the
//! `Host` header.
//!
//! RFC 9112 permits a server to accept a line feed without a carriage return (2.2), and proxies
//! handle it differently. If two servers split a head differently, one client's request becomes
//! part of another's (request smuggling). Requests with a bare line feed or with two lengths are
//! rejected, and so are requests without exactly one valid `Host` (3.2).
//!
//! [`HeadScan`] sees the bytes as they are read, before the parser. [`host`], [`is_known`] and
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

/// Scanner of a connection's bytes for what the parser accepts and a proxy may read differently.
///
/// Heads are numbered from 0, so that a request is not rejected for the head of the next one. A body
/// of a known length is skipped. After the head of any other body the scanner stops
/// ([`Self::is_blind`]): the connection must end after the response.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScan {
    /// Number of complete heads.
    heads: u32,
    line: Line,
    /// Bytes of the body that are not read yet.
    body_bytes: u64,
    /// Fields of the current head.
    content_length: Option<ContentLength>,
    has_transfer_encoding: bool,
    is_in_head: bool,
    /// Nothing more is scanned: a fault was found, or the end of a body is unknown.
    is_over: bool,
    is_blind: bool,
}

/// Fault of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// A line ends without a carriage return.
    BareLineFeed,
    /// The head has `Content-Length` and `Transfer-Encoding` (RFC 9112, 6.1).
    TwoLengths,
}

/// Beginning of the incomplete line.
#[derive(Clone, Copy, Debug)]
struct Line {
    bytes: [u8; LINE_BYTES],
    /// Length of the line, also if it is longer than `bytes`.
    len: usize,
    last: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentLength {
    Bytes(u64),
    Unknown,
}

/// 64 bytes: `Content-Length`, a number of 20 digits, and white space.
const LINE_BYTES: usize = 64;

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; LINE_BYTES],
            len: 0,
            last: 0,
        }
    }
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        let begin = self.len.min(LINE_BYTES);
        let count = bytes.len().min(LINE_BYTES - begin);
        self.bytes[begin..begin + count].copy_from_slice(&bytes[..count]);
        self.len = self.len.saturating_add(bytes.len());
        self.last = *bytes.last().unwrap_or(&self.last);
    }

    /// Returns the value of a field of this name, if the line is one. Without its end if the line is
    /// too long.
    fn field(&self, name: &[u8]) -> Option<&[u8]> {
        let line = &self.bytes[..self.len.min(LINE_BYTES)];
        let (start, rest) = line.split_at_checked(name.len())?;
        let value = rest.strip_prefix(b":")?;
        start.eq_ignore_ascii_case(name).then_some(value)
    }

    /// Returns the length in a `Content-Length` field.
    fn content_length(&self) -> Option<ContentLength> {
        let value = self.field(b"content-length")?.trim_ascii();
        let is_whole = self.len <= LINE_BYTES;
        let digits = value.iter().all(u8::is_ascii_digit).then_some(value);
        let bytes = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        Some(match bytes {
            Some(bytes) if is_whole => ContentLength::Bytes(bytes),
            _ => ContentLength::Unknown,
        })
    }
}

impl HeadScan {
    /// Scans more bytes. Returns the number of the first head with a fault, and the fault.
    pub fn read(&mut self, mut bytes: &[u8]) -> Option<(u32, HeadFault)> {
        while !self.is_over && !bytes.is_empty() {
            if self.body_bytes > 0 {
                let count = usize::try_from(self.body_bytes).unwrap_or(usize::MAX);
                let count = count.min(bytes.len());
                self.body_bytes -= count as u64;
                bytes = &bytes[count..];
                continue;
            }
            let Some(at) = memchr::memchr(b'\n', bytes) else {
                self.line.push(bytes);
                return None;
            };
            self.line.push(&bytes[..at]);
            bytes = &bytes[at + 1..];
            let line = std::mem::take(&mut self.line);
            if let Some(fault) = self.end_line(&line) {
                self.is_over = true;
                return Some((self.heads, fault));
            }
        }
        None
    }

    /// Returns whether the scanner has stopped after the head of a body whose end it does not know.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.is_blind
    }

    fn end_line(&mut self, line: &Line) -> Option<HeadFault> {
        if line.len == 0 || line.last != b'\r' {
            return Some(HeadFault::BareLineFeed);
        }
        if line.len > 1 {
            self.is_in_head = true;
            self.content_length = line.content_length().or(self.content_length);
            self.has_transfer_encoding |= line.field(b"transfer-encoding").is_some();
            let has_two = self.has_transfer_encoding && self.content_length.is_some();
            return has_two.then_some(HeadFault::TwoLengths);
        }
        // Empty lines before a request line are permitted.
        if std::mem::take(&mut self.is_in_head) {
            self.heads += 1;
            let length = self.content_length.take();
            self.is_blind = self.has_transfer_encoding || length == Some(ContentLength::Unknown);
            self.is_over = self.is_blind;
            if let Some(ContentLength::Bytes(bytes)) = length {
                self.body_bytes = bytes;
            }
        }
        None
    }
}

/// Connection with one request whose line ends are looked at.
#[derive(Debug)]
pub struct Scanned<T> {
    inner: T,
    scan: HeadScan,
    is_found: Arc<AtomicBool>,
}

impl<T> Scanned<T> {
    /// The connection; `is_found` becomes true before its head is parsed.
    pub fn new(inner: T, is_found: Arc<AtomicBool>) -> Self {
        Self {
            inner,
            scan: HeadScan::default(),
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
        let found = self.scan.read(&buffer.filled()[before..]);
        if found == Some((0, HeadFault::BareLineFeed)) {
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

    /// Returns the first fault in these pieces, with the number of its head.
    fn found(pieces: &[&[u8]]) -> Option<(u32, HeadFault)> {
        let mut scan = HeadScan::default();
        pieces.iter().find_map(|piece| scan.read(piece))
    }

    /// Checks the first fault, also when the bytes arrive one by one.
    fn check(bytes: &str, expected: Option<(u32, HeadFault)>) {
        assert_eq!(found(&[bytes.as_bytes()]), expected, "{bytes:?}");
        let single: Vec<_> = bytes.as_bytes().chunks(1).collect();
        assert_eq!(found(&single), expected, "{bytes:?} byte by byte");
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
        ] {
            check(bytes, expected.map(|head| (head, HeadFault::BareLineFeed)));
        }
    }

    #[test]
    fn body_of_known_length_is_skipped() {
        for (bytes, expected) in [
            (
                "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na\nGET / HTTP/1.1\r\n\r\n",
                None,
            ),
            (
                "POST / HTTP/1.1\r\ncontent-length:  2 \r\n\r\na\nGET / HTTP/1.1\n\r\n",
                Some(1),
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\n\r\n",
                Some(1),
            ),
            (
                "POST / HTTP/1.1\r\nX-Content-Length: 9\r\n\r\nGET / HTTP/1.1\n\r\n",
                Some(1),
            ),
        ] {
            check(bytes, expected.map(|head| (head, HeadFault::BareLineFeed)));
        }
    }

    #[test]
    fn head_with_two_lengths_is_found() {
        for bytes in [
            "POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nHost: a\r\ncontent-length: x\r\n\r\n",
        ] {
            check(bytes, Some((0, HeadFault::TwoLengths)));
        }
    }

    #[test]
    fn scanner_stops_where_the_end_of_a_body_is_unknown() {
        let long = format!("Content-Length: {}2", " ".repeat(LINE_BYTES));
        for (field, is_blind) in [
            ("Transfer-Encoding: chunked", true),
            ("Content-Length: 1a", true),
            (&long, true),
            ("Content-Length: 7", false),
            ("Host: a", false),
        ] {
            let mut scan = HeadScan::default();
            let head = format!("POST / HTTP/1.1\r\n{field}\r\n\r\n");
            assert_eq!(scan.read(head.as_bytes()), None, "{field}");
            assert_eq!(scan.is_blind(), is_blind, "{field}");
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
