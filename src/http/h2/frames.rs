//! Frames that the client of an HTTP/2 connection sends, read along: what h2 does not report of its settings and windows.
//!
//! h2 answers an `INITIAL_WINDOW_SIZE` above 2^31-1 with PROTOCOL_ERROR, where RFC 9113, 6.5.2 demands FLOW_CONTROL_ERROR,
//! and says nothing of the window that a client returns. Both are in frame headers of nine bytes and payloads of a few.
//! Everything else is passed over. On an event stream the client sends little more than these frames.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::h2::group::H2StreamGroup;

/// The connection preface (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
const SETTING_BYTES: usize = 6;
const INCREMENT_BYTES: usize = 4;

const SETTINGS: u8 = 0x4;
const WINDOW_UPDATE: u8 = 0x8;
const ACK: u8 = 0x1;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
/// RFC 9113, 6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// Place in the frames of a client.
#[derive(Debug)]
struct Frames {
    part: Part,
    /// The beginning of a part that has not come as a whole.
    held: [u8; HEADER_BYTES],
    filled: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What does not matter here, so many bytes of it.
    Skipped(usize),
    Header,
    /// One setting, and so many bytes of the payload, this one included.
    Setting(usize),
    /// The increment of a window: of this stream, or with 0 of the connection.
    Increment(u32),
}

/// A frame that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// The client takes so many bytes more on this stream, or with 0 on the connection.
    Returned { stream: u32, bytes: u32 },
    /// A window that no window may have.
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

    /// Reads what has come, whatever it is.
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

    /// Looks at a part that is complete; what comes after it.
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
                    // A length that is not a multiple of a setting: h2 ends the connection for it.
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

/// A transport that reads the frames of its client along.
pub(super) struct Observed<T> {
    inner: T,
    frames: Frames,
    group: Arc<H2StreamGroup>,
    /// The connection ends for what the client has sent: h2 is not to see it.
    is_over: bool,
}

impl<T> Observed<T> {
    pub(super) fn new(inner: T, group: Arc<H2StreamGroup>) -> Self {
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
                Note::Returned { stream, bytes } => group.returns(stream, bytes),
                Note::WindowTooLarge => is_over = true,
            });
        group.hears();
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

    /// What is noted of these bytes when they come in pieces of this size.
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
            // A payload that looks like a frame.
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
        fn any_bytes_are_passed_over(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
            prop_assert_eq!(notes(&bytes, piece), notes(&bytes, bytes.len().max(1)));
        }
    }
}
