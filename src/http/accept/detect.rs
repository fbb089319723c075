//! Protocol detection on a clear-text port, by the first bytes of a connection.
//!
//! | first bytes | protocol |
//! | --- | --- |
//! | `PRI` | HTTP/2 with prior knowledge (RFC 9113, 3.4); no HTTP/1 method has this name |
//! | `0x16` | a TLS handshake record (RFC 8446, 5.1), which is a client error on this port |
//! | others | HTTP/1 |
//!
//! Detection runs inside hyper's first read. The bytes of an HTTP/1 request, which nearly all
//! connections send, are then already in hyper's buffer and are never copied. For the other
//! protocols hyper sees `Poll::Pending`, the bytes stay in [`ReadAhead`], and the connection's
//! task, which polls hyper, finds the result in [`PrefaceCell`] and takes the socket back.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// First bytes of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) enum Preface {
    /// The connection has ended, or failed, before its first byte.
    #[default]
    Unknown,
    /// No byte has arrived yet.
    Silence,
    /// A request of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS handshake.
    Tls,
}

/// Result of the detection, shared by hyper's reader and the task of the connection.
#[derive(Default)]
pub(in crate::http) struct PrefaceCell(AtomicU8);

impl PrefaceCell {
    pub(in crate::http) fn get(&self) -> Preface {
        match self.0.load(Ordering::Relaxed) {
            1 => Preface::Silence,
            2 => Preface::Http1,
            3 => Preface::Http2,
            4 => Preface::Tls,
            _ => Preface::Unknown,
        }
    }

    pub(in crate::http) fn set(&self, preface: Preface) {
        self.0.store(preface as u8, Ordering::Relaxed);
    }
}

/// Bytes that were read from a socket and are returned before its next bytes.
#[derive(Default)]
pub(in crate::http) struct ReadAhead(Vec<u8>);

impl ReadAhead {
    pub(in crate::http) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(in crate::http) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Reads the bytes that were read ahead, then from the socket.
    pub(in crate::http) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Pin::new(io).poll_read(task, buffer);
        }
        let count = self.0.len().min(buffer.remaining());
        buffer.put_slice(&self.0[..count]);
        self.0.drain(..count);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Reader of a connection whose protocol is not known yet, or is HTTP/1.
pub(in crate::http) struct Detector {
    is_http1: bool,
    read_ahead: ReadAhead,
}

impl Detector {
    /// Returns a reader that detects the protocol.
    pub(in crate::http) fn new() -> Self {
        Self {
            is_http1: false,
            read_ahead: ReadAhead::default(),
        }
    }

    /// Returns the reader of a connection that speaks HTTP/1, by ALPN.
    pub(in crate::http) fn http1() -> Self {
        Self {
            is_http1: true,
            ..Self::new()
        }
    }

    /// Returns whether the connection speaks HTTP/1.
    pub(in crate::http) fn is_http1(&self) -> bool {
        self.is_http1
    }

    /// Returns the bytes that were read and not passed to hyper.
    pub(in crate::http) fn into_read_ahead(self) -> Vec<u8> {
        self.read_ahead.into_bytes()
    }

    /// Reads bytes of HTTP/1; pending if the protocol is another one.
    pub(in crate::http) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        preface: &PrefaceCell,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_http1 {
            return self.read_ahead.poll_read(io, task, buffer);
        }
        let begin = buffer.filled().len();
        loop {
            let read = Pin::new(&mut *io).poll_read(task, buffer);
            if read.is_pending() && self.read_ahead.0.is_empty() {
                preface.set(Preface::Silence);
            }
            ready!(read)?;
            let received = &buffer.filled()[begin..];
            let is_eof = received.is_empty();
            if self.read_ahead.0.is_empty() && !matches!(received, [b'P' | 0x16, ..]) {
                // The common case: the bytes stay in hyper's buffer. An end detects nothing.
                if !is_eof {
                    self.is_http1 = true;
                    preface.set(Preface::Http1);
                }
                return Poll::Ready(Ok(()));
            }
            self.read_ahead.0.extend_from_slice(received);
            buffer.set_filled(begin);
            let Some(detected) = detect(&self.read_ahead.0, is_eof) else {
                continue;
            };
            preface.set(detected);
            if detected == Preface::Http1 {
                self.is_http1 = true;
                return self.read_ahead.poll_read(io, task, buffer);
            }
            // No waker is registered: the task that polls hyper reads the preface right after.
            return Poll::Pending;
        }
    }
}

/// Returns the protocol of these first bytes, or `None` if it depends on the next ones.
fn detect(bytes: &[u8], is_eof: bool) -> Option<Preface> {
    match bytes {
        [0x16, ..] => Some(Preface::Tls),
        [b'P', b'R', b'I', ..] => Some(Preface::Http2),
        b"P" | b"PR" if !is_eof => None,
        _ => Some(Preface::Http1),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Sends these pieces one after the other and returns the detected preface, the bytes that
    /// hyper would get, and the bytes read ahead.
    async fn detected(pieces: &[&str]) -> (Preface, Vec<u8>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(64);
        let (mut detector, preface) = (Detector::new(), PrefaceCell::default());
        let mut received = Vec::new();
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            poll_fn(|task| {
                let mut space = [0; 64];
                let mut buffer = ReadBuf::new(&mut space);
                if detector
                    .poll_read(&mut server, &preface, task, &mut buffer)
                    .is_ready()
                {
                    received.extend_from_slice(buffer.filled());
                }
                Poll::Ready(())
            })
            .await;
        }
        (preface.get(), received, detector.into_read_ahead())
    }

    #[tokio::test]
    async fn protocol_is_detected_however_the_first_bytes_are_split() {
        for (pieces, preface) in [
            (&["GET / HTTP/1.1"][..], Preface::Http1),
            (&["P", "OST / HTTP/1.1"], Preface::Http1),
            (&["PR", "OPFIND / HTTP/1.1"], Preface::Http1),
            (&["PRI * HTTP/2.0"], Preface::Http2),
            (&["P", "R", "I *"], Preface::Http2),
            (&["\x16\x03\x01"], Preface::Tls),
        ] {
            let (detected, received, read_ahead) = detected(pieces).await;
            assert_eq!(detected, preface, "{pieces:?}");
            let all = pieces.concat().into_bytes();
            if preface == Preface::Http1 {
                assert_eq!((received, read_ahead), (all, Vec::new()), "{pieces:?}");
            } else {
                assert_eq!((received, read_ahead), (Vec::new(), all), "{pieces:?}");
            }
        }
    }
}
