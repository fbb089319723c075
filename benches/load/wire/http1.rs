//! Parser of HTTP/1.1 responses: the head, then the body without the chunk framing.
//!
//! Like [`super::events`] it shares no code with the sidecar.

use std::fmt;

/// Reason to reject a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The status code is not the expected one.
    Status(u16),
    /// The head or the chunk framing breaks the rules of RFC 9112.
    Malformed,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(out, "the server returned {code}"),
            Self::Malformed => write!(out, "invalid HTTP/1.1 response"),
        }
    }
}

impl std::error::Error for Fault {}

/// State of one response. Its bytes may be cut anywhere.
#[derive(Debug)]
pub(crate) struct Response {
    /// Expected status code.
    status: u16,
    state: State,
    /// Bytes of the head; without memory after the head.
    head: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    /// In the digits of a chunk size; the value of those read.
    Size(usize),
    /// After the digits of a chunk size, up to the line end.
    SizeEnd(usize),
    /// In a chunk; the number of bytes left.
    Data(usize),
    /// In the line end after a chunk.
    DataEnd,
    /// In a body that ends with the connection.
    Rest,
    /// After the last chunk.
    Over,
}

impl Response {
    /// Returns the state before the first byte. Every other status code is a fault.
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            state: State::Head,
            head: Vec::new(),
        }
    }

    /// Returns whether the last chunk was read.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Parses bytes from the socket and calls `body` with those of the body.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        body: &mut impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        while let Some(&byte) = bytes.first() {
            match self.state {
                State::Head => {
                    bytes = self.read_head(bytes)?;
                    continue;
                }
                State::Data(left) => {
                    let taken = left.min(bytes.len());
                    body(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    self.state = if taken == left {
                        State::DataEnd
                    } else {
                        State::Data(left - taken)
                    };
                    continue;
                }
                State::Rest => {
                    body(bytes);
                    return Ok(());
                }
                State::Over => return Ok(()),
                State::Size(size) => {
                    self.state = match char::from(byte).to_digit(16) {
                        Some(digit) if size < CHUNK_MAX => State::Size(size << 4 | digit as usize),
                        Some(_) => return Err(Fault::Malformed),
                        None if byte == b'\r' || byte == b';' => State::SizeEnd(size),
                        None => return Err(Fault::Malformed),
                    };
                }
                State::SizeEnd(size) => match byte {
                    b'\n' if size == 0 => self.state = State::Over,
                    b'\n' => self.state = State::Data(size),
                    _ => {}
                },
                State::DataEnd => match byte {
                    b'\r' => {}
                    b'\n' => self.state = State::Size(0),
                    _ => return Err(Fault::Malformed),
                },
            }
            bytes = &bytes[1..];
        }
        Ok(())
    }

    /// Consumes the head and returns the bytes after it.
    fn read_head<'bytes>(&mut self, bytes: &'bytes [u8]) -> Result<&'bytes [u8], Fault> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = memchr::memmem::find(&self.head, b"\r\n\r\n").map(|at| at + 4) else {
            return if self.head.len() > HEAD_MAX {
                Err(Fault::Malformed)
            } else {
                Ok(&[])
            };
        };
        let head = self.head[..end].to_ascii_lowercase();
        let status = head
            .strip_prefix(b"http/1.")
            .and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok()?.parse().ok())
            .ok_or(Fault::Malformed)?;
        if status != self.status {
            return Err(Fault::Status(status));
        }
        let chunked = memchr::memmem::find(&head, b"\r\ntransfer-encoding: chunked\r\n").is_some();
        self.state = if chunked { State::Size(0) } else { State::Rest };
        self.head = Vec::new();
        Ok(&bytes[end - before..])
    }
}

/// Maximum size of a response head; servers send about 300 bytes.
const HEAD_MAX: usize = 16 * 1024;
/// Maximum chunk size before the last digit: 2^28 times 16 does not overflow.
const CHUNK_MAX: usize = 1 << 28;
