//! Reads the frames of an HTTP/2 client for what h2 does not report: settings and window updates.
//!
//! h2 rejects an `INITIAL_WINDOW_SIZE` above 2^31-1 with PROTOCOL_ERROR, where RFC 9113, 6.5.2
//! demands FLOW_CONTROL_ERROR, and does not report the window that a client returns. Both are in
//! frame headers of nine bytes and payloads of a few bytes.
//!
//! [`Observed`] wraps the connection's transport: bytes that h2 reads are parsed first by
//! [`Frames`], which accepts any bytes in pieces of any size and skips all other frames. On an
//! event stream the client sends little but these frames. The results go to the connection's group.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::stream::group::StreamGroup;

/// The connection preface (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
const SETTING_BYTES: usize = 6;
const INCREMENT_BYTES: usize = 4;

const SETTINGS: u8 = 0x4;
const WINDOW_UPDATE: u8 = 0x8;
const ACK: u8 = 0x1;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
/// Largest window (RFC 9113, 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// Parser of a client's frames.
#[derive(Debug)]
struct Frames {
    part: Part,
    /// First bytes of a part that has not arrived completely.
    held: [u8; HEADER_BYTES],
    filled: usize,
}

/// Part of a frame that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Bytes that are not needed; their number.
    Skipped(usize),
    Header,
    /// One setting; the number of bytes of the payload from here, this setting included.
    Setting(usize),
    /// Increment of the window of a stream, or of the connection (stream 0).
    Increment(u32),
}

/// Fact from a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// The client has returned window for a stream, or for the connection (stream 0).
    Returned { stream: u32, bytes: u32 },
    /// The client has set an initial window above the maximum.
    WindowTooLarge,
}

impl Frames {
    fn new() -> Self {
        Self {
            part: Part::Skipped(PREFACE_BYTES),
            held: [0; HEADER_BYTES],
            filled: 0,
        }
    }

    /// Parses bytes that have arrived.
    fn read(&mut self, mut bytes: &[u8], mut note: impl FnMut(Note)) {
        while !bytes.is_empty() {
            let wanted = match &mut self.part {
                Part::Skipped(left) => {
                    let passed = bytes.len().min(*left);
                    *left -= passed;
                    bytes = &bytes[passed..];
                    if *left == 0 {
                        self.part = Part::Header;
                    }
                    continue;
                }
                Part::Header => HEADER_BYTES,
                Part::Setting(_) => SETTING_BYTES,
                Part::Increment(_) => INCREMENT_BYTES,
            };
            let (taken, rest) = bytes.split_at(bytes.len().min(wanted - self.filled));
            self.held[self.filled..self.filled + taken.len()].copy_from_slice(taken);
            self.filled += taken.len();
            bytes = rest;
            if self.filled == wanted {
                self.filled = 0;
                self.part = self.next(&mut note);
            }
        }
    }

    /// Interprets a complete part; returns the next one.
    fn next(&self, note: &mut impl FnMut(Note)) -> Part {
        let [a, b, c, d, e, f, ..] = self.held;
        match self.part {
            Part::Header => {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                let [.., s, t, u, v] = self.held;
                match (d, length) {
                    (_, 0) => Part::Header,
                    (SETTINGS, SETTING_BYTES..) if e & ACK == 0 => Part::Setting(length),
                    (WINDOW_UPDATE, INCREMENT_BYTES) => {
                        Part::Increment(u32::from_be_bytes([s & 0x7f, t, u, v]))
                    }
                    _ => Part::Skipped(length),
                }
            }
            Part::Setting(left) => {
                let (name, value) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]));
                if name == INITIAL_WINDOW_SIZE && value > WINDOW_MAX {
                    note(Note::WindowTooLarge);
                }
                match left - SETTING_BYTES {
                    0 => Part::Header,
                    left @ SETTING_BYTES.. => Part::Setting(left),
                    // The length is not a multiple of a setting: h2 ends the connection.
                    left => Part::Skipped(left),
                }
            }
            Part::Increment(stream) => {
                note(Note::Returned {
                    stream,
                    bytes: u32::from_be_bytes([a & 0x7f, b, c, d]),
                });
                Part::Header
            }
            Part::Skipped(left) => Part::Skipped(left),
        }
    }
}

/// Transport that parses the frames of its client.
pub(super) struct Observed<T> {
    inner: T,
    frames: Frames,
    group: Arc<StreamGroup>,
    /// The connection ends because of a frame that h2 must not read.
    is_over: bool,
}

impl<T> Observed<T> {
    pub(super) fn new(inner: T, group: Arc<StreamGroup>) -> Self {
        Self {
            inner,
            frames: Frames::new(),
            group,
            is_over: false,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Observed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(task, buf))?;
        let (group, mut is_over) = (&this.group, false);
        this.frames
            .read(&buf.filled()[before..], |note| match note {
                Note::Returned { stream, bytes } => group.return_window(stream, bytes),
                Note::WindowTooLarge => is_over = true,
            });
        group.record_heard();
        if is_over {
            this.is_over = true;
            buf.set_filled(before);
            group.set_window_too_large();
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Observed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(task, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(task, bufs)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn setting(name: u16, value: u32) -> Vec<u8> {
        [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
    }

    /// Returns the facts in these bytes, if they arrive in pieces of this size.
    fn notes(bytes: &[u8], piece: usize) -> Vec<Note> {
        let (mut frames, mut notes) = (Frames::new(), Vec::new());
        bytes
            .chunks(piece)
            .for_each(|piece| frames.read(piece, |note| notes.push(note)));
        notes
    }

    #[test]
    fn windows_and_settings_are_found_among_all_frames_in_pieces_of_any_size() {
        let returned = |stream, bytes| Note::Returned { stream, bytes };
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(
                SETTINGS,
                0,
                0,
                &[setting(3, 100), setting(4, WINDOW_MAX)].concat(),
            ),
            frame(SETTINGS, ACK, 0, &[]),
            frame(WINDOW_UPDATE, 0, 0, &70_000_u32.to_be_bytes()),
            // The payload looks like a frame.
            frame(
                0x1,
                0x5,
                1,
                &frame(WINDOW_UPDATE, 0, 9, &9_u32.to_be_bytes()),
            ),
            frame(WINDOW_UPDATE, 0, 1, &(5_u32 | 1 << 31).to_be_bytes()),
            frame(0x6, 0, 0, &[0; 8]),
            frame(SETTINGS, 0, 0, &[setting(4, 1), vec![0; 3]].concat()),
            frame(WINDOW_UPDATE, 0, 3, &7_u32.to_be_bytes()),
            frame(
                SETTINGS,
                0,
                0,
                &[setting(1, 0), setting(4, WINDOW_MAX + 1)].concat(),
            ),
        ]
        .concat();
        let expected = [
            returned(0, 70_000),
            returned(1, 5),
            returned(3, 7),
            Note::WindowTooLarge,
        ];
        for piece in [1, 2, 3, 5, 9, 10, 64, bytes.len()] {
            assert_eq!(notes(&bytes, piece), expected, "in pieces of {piece}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_parsed_alike_in_pieces_of_any_size(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
            prop_assert_eq!(notes(&bytes, piece), notes(&bytes, bytes.len().max(1)));
        }
    }
}
