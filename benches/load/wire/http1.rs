//! Reads an HTTP/1.1 response: its head, then its body without the chunk framing.

use std::fmt;

/// Why a response is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server refused; the status code.
    Status(u16),
    /// The head or the chunk framing breaks the rules of RFC 9112.
    Malformed,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(out, "the server answered {code}"),
            Self::Malformed => write!(out, "the response breaks the rules of HTTP/1.1"),
        }
    }
}

impl std::error::Error for Fault {}

/// One response, fed with bytes that may be cut anywhere.
#[derive(Debug)]
pub(crate) struct Response {
    state: State,
    /// The head so far; empty and without memory afterwards.
    head: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    /// The size line of a chunk; the value so far.
    Size(usize),
    /// Behind the digits of a size line, up to its end.
    SizeEnd(usize),
    /// Bytes left of a chunk.
    Data(usize),
    /// The line end behind a chunk.
    DataEnd,
    /// A body that ends with the connection.
    Rest,
    /// Behind the last chunk.
    Over,
}

impl Response {
    /// A response of which nothing was read yet.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            head: Vec::new(),
        }
    }

    /// Whether the last chunk was read.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Takes bytes from the socket, and gives on those of the body.
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

    /// Takes what belongs to the head and returns what stands behind it.
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
        if status != 200 {
            return Err(Fault::Status(status));
        }
        let chunked = memchr::memmem::find(&head, b"\r\ntransfer-encoding: chunked\r\n").is_some();
        self.state = if chunked { State::Size(0) } else { State::Rest };
        self.head = Vec::new();
        Ok(&bytes[end - before..])
    }
}

/// Bound of a response head; servers send some 300 bytes.
const HEAD_MAX: usize = 16 * 1024;
/// Bound of the digits that are read of a chunk size: 2^28 times 16 still fits everywhere.
const CHUNK_MAX: usize = 1 << 28;
