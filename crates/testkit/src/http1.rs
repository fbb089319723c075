//! HTTP/1 client over raw sockets that exposes the framing and the end of the connection.
//!
//! Libraries hide both. [`Response`] reads a body chunk by chunk; [`get`] and [`request`] read a
//! whole response.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use hyper::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::{Connector, Transport};
use crate::wait::{RECOVERY, within};

/// Maximum size of response headers in the tests; more is an error of the server.
const HEAD_MAX: usize = 64 * 1024;

/// End of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Complete by its framing: zero chunk, Content-Length or END_STREAM.
    Terminated,
    /// Complete by FIN, where the framing allows it (HTTP/1.0 without a length).
    Closed,
    /// FIN before the end: the response is incomplete.
    Truncated,
    /// Reset or another socket error: the response is incomplete.
    Reset,
    /// RST_STREAM with this error code; HTTP/2 only.
    StreamReset(u32),
}

/// Response with its headers read and its body unread.
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Minor version of the status line: 0 or 1.
    pub minor: u8,
    /// Headers in the order of the wire, names in lower case.
    pub headers: Vec<(String, String)>,
    transport: Transport,
    buffer: BytesMut,
    framing: Framing,
}

/// Whole response.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers in the order of the wire, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body as text.
    pub body: String,
    /// End of the body.
    pub end: End,
}

enum Framing {
    /// Remaining bytes of the present chunk; `None` between chunks.
    Chunked(Option<usize>),
    Length(usize),
    UntilClose,
    Over(End),
}

// === impl Response ===

impl Response {
    /// Sends `request` as it is and reads the response headers. `bodiless`: the request is a HEAD.
    pub async fn exchange(
        mut transport: Transport,
        request: &[u8],
        bodiless: bool,
    ) -> io::Result<Self> {
        transport.write_all(request).await?;
        transport.flush().await?;
        Self::read(transport, BytesMut::new(), bodiless).await
    }

    /// Sends another request on the same connection, after a response that was read to its end.
    pub async fn again(self, request: &[u8]) -> io::Result<Self> {
        assert!(
            matches!(self.framing, Framing::Over(End::Terminated)),
            "the previous response has been read"
        );
        let mut transport = self.transport;
        transport.write_all(request).await?;
        Self::read(transport, self.buffer, false).await
    }

    /// Value of a header; several values are joined with commas, as a proxy does.
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.headers, name)
    }

    /// Next bytes of the body, as they arrive, or the end of the body. Cancel safe.
    pub async fn chunk(&mut self) -> Result<Bytes, End> {
        loop {
            if let Framing::Over(end) = self.framing {
                return Err(end);
            }
            if let Some(bytes) = self.take_body() {
                return Ok(bytes);
            }
            if matches!(self.framing, Framing::Over(_)) {
                continue;
            }
            match self.transport.read_buf(&mut self.buffer).await {
                Ok(0) if matches!(self.framing, Framing::UntilClose) => {
                    self.framing = Framing::Over(End::Closed)
                }
                Ok(0) => self.framing = Framing::Over(End::Truncated),
                Ok(_) => {}
                // A TLS peer that closes without close_notify truncates the response, as a FIN does
                // in clear text.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.framing = Framing::Over(End::Truncated)
                }
                Err(_) => self.framing = Framing::Over(End::Reset),
            }
        }
    }

    /// Reads the rest of the body.
    pub async fn body(&mut self) -> (Vec<u8>, End) {
        let mut body = Vec::new();
        loop {
            match self.chunk().await {
                Ok(bytes) => body.extend_from_slice(&bytes),
                Err(end) => return (body, end),
            }
        }
    }

    /// Returns true if the peer's FIN directly follows the end of the body.
    pub async fn fin(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.transport.read_buf(&mut self.buffer).await, Ok(0))
    }

    /// Connection of the response.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Returns the connection.
    pub fn into_transport(self) -> Transport {
        self.transport
    }

    async fn read(
        mut transport: Transport,
        mut buffer: BytesMut,
        bodiless: bool,
    ) -> io::Result<Self> {
        let end = loop {
            if let Some(end) = find(&buffer, b"\r\n\r\n") {
                break end;
            }
            if buffer.len() > HEAD_MAX {
                return Err(io::Error::other("the response headers do not end"));
            }
            if transport.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = buffer.split_to(end + 4);
        let (status, minor, headers) = parse_head(&head)?;
        // A response with 1xx, 204 or 304, and one to HEAD, has no body, whatever its headers say
        // (RFC 9112, section 6.3).
        let framing = if bodiless || status < 200 || status == 204 || status == 304 {
            Framing::Over(End::Terminated)
        } else if header(&headers, "transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            Framing::Chunked(None)
        } else if let Some(length) = header(&headers, "content-length") {
            Framing::Length(length.parse().map_err(io::Error::other)?)
        } else {
            Framing::UntilClose
        };
        Ok(Self {
            status,
            minor,
            headers,
            transport,
            buffer,
            framing,
        })
    }

    /// Takes the bytes of the body from the buffer. Sets the framing to its end if that is reached.
    fn take_body(&mut self) -> Option<Bytes> {
        loop {
            match &mut self.framing {
                Framing::Over(_) => return None,
                Framing::UntilClose => {
                    return (!self.buffer.is_empty()).then(|| self.buffer.split().freeze());
                }
                Framing::Length(0) => self.framing = Framing::Over(End::Terminated),
                Framing::Length(left) => {
                    let take = self.buffer.len().min(*left);
                    *left -= take;
                    return (take > 0).then(|| self.buffer.split_to(take).freeze());
                }
                Framing::Chunked(None) => {
                    let line = find(&self.buffer, b"\r\n")?;
                    let text = String::from_utf8_lossy(&self.buffer[..line]).into_owned();
                    let digits = text.split(';').next().unwrap_or_default().trim();
                    let size = usize::from_str_radix(digits, 16)
                        .unwrap_or_else(|_| panic!("a chunk size, not {text:?}"));
                    if size == 0 {
                        // The server sends no trailers: the last chunk is `0` and an empty line.
                        if self.buffer.len() < line + 4 {
                            return None;
                        }
                        self.buffer.advance(line + 4);
                        self.framing = Framing::Over(End::Terminated);
                    } else {
                        self.buffer.advance(line + 2);
                        self.framing = Framing::Chunked(Some(size));
                    }
                }
                Framing::Chunked(Some(0)) => {
                    if self.buffer.len() < 2 {
                        return None;
                    }
                    assert_eq!(&self.buffer[..2], b"\r\n", "a chunk ends with CRLF");
                    self.buffer.advance(2);
                    self.framing = Framing::Chunked(None);
                }
                Framing::Chunked(Some(left)) => {
                    let take = self.buffer.len().min(*left);
                    *left -= take;
                    return (take > 0).then(|| self.buffer.split_to(take).freeze());
                }
            }
        }
    }
}

// === impl Answer ===

impl Answer {
    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.headers, name)
    }

    /// Body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

/// Sends GET with `Connection: close` and reads the whole response. Fails if the peer cannot be
/// reached.
pub async fn get(url: &str) -> io::Result<Answer> {
    request("GET", url, &[]).await
}

/// Sends a request with `Connection: close`, in clear text, and reads the whole response within
/// [`RECOVERY`].
pub async fn request(method: &str, url: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let url: Uri = url.parse().unwrap();
    within(
        RECOVERY,
        &format!("{method} {url} is answered to the end"),
        async {
            let mut all = vec![("Connection", "close")];
            all.extend_from_slice(headers);
            let head = head(method, &url, 1, &all);
            let transport = Connector::default().connect(&url).await?;
            let mut response =
                Response::exchange(transport, head.as_bytes(), method == "HEAD").await?;
            let (body, end) = response.body().await;
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok(Answer {
                status: response.status,
                headers: response.headers,
                body,
                end,
            })
        },
    )
    .await
}

/// Text of a request without a body, in HTTP/1.`minor`.
pub fn head(method: &str, url: &Uri, minor: u8, headers: &[(&str, &str)]) -> String {
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let authority = url.authority().unwrap();
    let mut head = format!("{method} {target} HTTP/1.{minor}\r\nHost: {authority}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

fn header(headers: &[(String, String)], name: &str) -> Option<String> {
    let values: Vec<&str> = headers
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect();
    (!values.is_empty()).then(|| values.join(", "))
}

type Head = (u16, u8, Vec<(String, String)>);

fn parse_head(head: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(head).map_err(io::Error::other)?;
    let mut lines = text.trim_end().split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let wrong = || io::Error::other(format!("not a status line: {status_line:?}"));
    let (version, rest) = status_line.split_once(' ').ok_or_else(wrong)?;
    let minor = match version {
        "HTTP/1.0" => 0,
        "HTTP/1.1" => 1,
        _ => return Err(wrong()),
    };
    let status = rest
        .get(..3)
        .and_then(|code| code.parse().ok())
        .ok_or_else(wrong)?;
    let headers = lines
        .map(|line| {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| io::Error::other(format!("not a header: {line:?}")))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<io::Result<_>>()?;
    Ok((status, minor, headers))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
