//! Rules of HTTP/1 request heads that the parser leaves to its user: line ends and the `Host` header.
//!
//! RFC 9112 lets a server accept a line feed without a carriage return (2.2), and proxies disagree about it: a head that two
//! servers split differently is how one client's request becomes another's. Requests with one are rejected, as are requests
//! without exactly one valid `Host` (3.2).

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use hyper::header::HOST;
use hyper::{HeaderMap, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Scanner for line feeds without a carriage return, over the bytes of one connection as they are read.
///
/// Heads are numbered from 0, so that a head is not blamed for the one after it. Content would be taken for heads: a
/// connection on which some came must end after the answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineScan {
    /// Finished heads.
    heads: u32,
    /// Bytes of the unfinished line, up to 2.
    line_bytes: u8,
    ends_with_cr: bool,
    is_in_head: bool,
    is_found: bool,
}

impl LineScan {
    /// Reads on; returns the number of the head when its first bare line feed is found.
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
            // Empty lines before a request line are allowed.
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

/// The host that a request is for, as its `Host` header has it; none for HTTP/1.0 and HTTP/2, which need none.
///
/// # Errors
/// Without a `Host` on HTTP/1.1, with several, or with one that is no host (RFC 9112, 3.2): a sentence.
pub fn host(version: Version, headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return if version == Version::HTTP_11 {
            Err("a request of HTTP/1.1 has a Host header")
        } else {
            Ok(None)
        };
    };
    if hosts.next().is_some() {
        return Err("a request has one Host header");
    }
    // reg-name, IP literals and a port (RFC 3986, 3.2.2); no user information.
    let is_of_a_host =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    match host.to_str() {
        Ok(text) if text.bytes().all(|byte| is_of_a_host(&byte)) => Ok(Some(text)),
        _ => Err("the Host header is no host"),
    }
}

/// Whether a request for this host is certain not to come from a page of another site: an IP literal, `localhost`, a name
/// without a dot, such as that of a Service, or one of the names.
///
/// A page in a browser can make its own name resolve to any address (DNS rebinding), and then reads what that address
/// answers. It cannot make the browser send another `Host` than its name, and a name of the public DNS has a dot.
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

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// The head with the first bare line feed, however the bytes are split.
    fn found(pieces: &[&[u8]]) -> Option<u32> {
        let mut scan = LineScan::default();
        pieces.iter().find_map(|piece| scan.read(piece))
    }

    #[test]
    fn a_bare_line_feed_is_found_in_the_head_that_has_it() {
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
        fn pieces_change_nothing(bytes in proptest::collection::vec(prop_oneof!["\r", "\n", "a"], 0..20), size in 1_usize..5) {
            let bytes = bytes.concat();
            let pieces: Vec<_> = bytes.as_bytes().chunks(size).collect();
            prop_assert_eq!(found(&pieces), found(&[bytes.as_bytes()]));
        }
    }

    #[test]
    fn a_request_has_one_host_that_is_one() {
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
