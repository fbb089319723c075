//! Recorder of the HTTP/2 frames from the server: a wrapper of the socket, below the library.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::Transport;

/// Maximum number of frames that are kept per connection.
const FRAMES_MAX: usize = 200_000;

/// Frame type DATA (RFC 9113, section 6).
pub const DATA: u8 = 0x0;
/// Frame type RST_STREAM: a stream was aborted.
pub const RST_STREAM: u8 = 0x3;
/// Frame type PING: keepalive and round trips.
pub const PING: u8 = 0x6;
/// Frame type GOAWAY: no new streams on this connection.
pub const GOAWAY: u8 = 0x7;

/// Frame from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type, such as [`DATA`].
    pub kind: u8,
    /// Flags; END_STREAM is 0x1.
    pub flags: u8,
    /// Stream identifier, 0 for the connection.
    pub id: u32,
    /// Length of the payload.
    pub length: usize,
    /// First eight bytes of the payload: last stream and code of GOAWAY, code of RST_STREAM.
    pub start: [u8; 8],
}

/// Record of the server's side of the connection.
#[derive(Default)]
pub struct Wire {
    frames: Mutex<Vec<Frame>>,
    frozen: AtomicBool,
    end: Mutex<Option<String>>,
}

/// Socket that records every incoming frame header.
pub struct Tap {
    transport: Transport,
    wire: Arc<Wire>,
    header: Vec<u8>,
    payload_left: usize,
}

// === impl Wire ===

impl Wire {
    /// All frames from the server, in order.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap().clone()
    }

    /// Stops all reading permanently.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    /// Records the end of the connection.
    pub fn end(&self, how: String) {
        *self.end.lock().unwrap() = Some(how);
    }

    /// End of the connection, if it has ended.
    pub fn ended(&self) -> Option<String> {
        self.end.lock().unwrap().clone()
    }
}

// === impl Tap ===

impl Tap {
    /// Notes into `wire` what comes in over `transport`.
    pub fn new(transport: Transport, wire: &Arc<Wire>) -> Self {
        Self {
            transport,
            wire: Arc::clone(wire),
            header: Vec::new(),
            payload_left: 0,
        }
    }

    /// Notes the headers of the frames in `bytes`, which may begin and end anywhere.
    fn note(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // Nine bytes of header, and up to eight bytes of payload: the codes of GOAWAY and
            // RST_STREAM.
            let wanted = if self.header.len() < 9 {
                9
            } else {
                9 + self.length().min(8)
            };
            if self.header.len() < wanted {
                let take = bytes.len().min(wanted - self.header.len());
                self.header.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
                if self.header.len() < 9 || self.header.len() < 9 + self.length().min(8) {
                    continue;
                }
                self.payload_left = self.length() - (self.header.len() - 9);
                self.remember();
            }
            let take = bytes.len().min(self.payload_left);
            self.payload_left -= take;
            bytes = &bytes[take..];
            if self.payload_left == 0 {
                self.header.clear();
            }
        }
    }

    fn length(&self) -> usize {
        usize::from(self.header[0]) << 16
            | usize::from(self.header[1]) << 8
            | usize::from(self.header[2])
    }

    fn remember(&self) {
        let header = &self.header;
        let mut start = [0; 8];
        start[..header.len() - 9].copy_from_slice(&header[9..]);
        let id = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
        let frame = Frame {
            kind: header[3],
            flags: header[4],
            id,
            length: self.length(),
            start,
        };
        let mut frames = self.wire.frames.lock().unwrap();
        if frames.len() < FRAMES_MAX {
            frames.push(frame);
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.wire.frozen.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.transport).poll_read(cx, buf))?;
        this.note(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
