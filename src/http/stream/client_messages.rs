//! The client's side of a WebSocket: pings, pongs, a close, and messages.
//!
//! [`ClientMessages`] takes the bytes that arrive and returns the frames that answer them. It knows
//! no transport. The parser is that of a library; it has buffers of its own, so it is created only
//! for a client that sends more than whole pings and pongs. A browser sends nothing else until it
//! closes.
//!
//! A text message changes the subjects of the client: the event stream takes it
//! ([`EventStream::receive_message`](super::event_stream::EventStream::receive_message)) and answers
//! in order. A message that it does not take is answered here, at once, and counts; a client that
//! sends too many of them is closed.

use std::io::{self, Cursor, Read, Write};

use bytes::{BufMut as _, Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

use super::subscriptions::NotApplied;
use crate::encoding::websocket::{close_code, put_close_frame};

/// Parser of what a client sends.
pub(in crate::http) struct ClientMessages {
    /// Bytes that arrived with the handshake.
    early: Bytes,
    parser: Option<Box<WebSocketContext>>,
    /// Cost of the messages that were not taken.
    rejected: usize,
}

/// Receiver of the text messages of a client.
pub(in crate::http) type Receive<'r> = &'r mut dyn FnMut(&str) -> Result<(), NotApplied>;

/// State of the WebSocket after bytes of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ClientState {
    Open,
    /// The last answer is a close frame.
    Closed,
}

/// 16 KiB for one message, and for all messages of a client that are not taken: as on HTTP.
const MESSAGES_MAX: usize = 16 * 1024;

/// 64: cost of a message that is not taken, beside its bytes. Each one is answered.
const REJECTED_COST: usize = 64;

/// 512: what is read at a time.
const READ_BYTES: usize = 512;

/// Longest content of a control frame (RFC 6455, 5.5).
const CONTROL_MAX: u64 = 125;

/// Head of a pong, before its length.
const PONG: u8 = 0x8a;

impl ClientMessages {
    /// `early`: bytes that arrived with the handshake.
    pub(in crate::http) fn new(early: Bytes) -> Self {
        Self {
            early,
            parser: None,
            rejected: 0,
        }
    }

    /// Reads what arrived with the handshake. Appends the answers.
    pub(in crate::http) fn read_early(
        &mut self,
        answers: &mut BytesMut,
        receive: Receive<'_>,
    ) -> ClientState {
        let early = std::mem::take(&mut self.early);
        self.read(&early, answers, receive)
    }

    /// Reads bytes, and appends the frames that answer them.
    pub(in crate::http) fn read(
        &mut self,
        bytes: &[u8],
        answers: &mut BytesMut,
        receive: Receive<'_>,
    ) -> ClientState {
        if self.parser.is_none() && answer_pings(bytes, answers) {
            return ClientState::Open;
        }
        let parser = self.parser.get_or_insert_with(new_parser);
        let mut pipe = Pipe {
            input: bytes,
            output: answers,
        };
        loop {
            let (received, length) = match parser.read(&mut pipe) {
                Ok(Message::Text(text)) => (receive(&text), text.len()),
                Ok(Message::Binary(bytes)) => (Err(NotApplied::binary()), bytes.len()),
                Ok(_) => continue,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return ClientState::Open;
                }
                Err(error) => {
                    if let Some((code, reason)) = close_of(&error) {
                        put_close_frame(answers, code, reason);
                    }
                    return ClientState::Closed;
                }
            };
            let Err(not_applied) = received else { continue };
            self.rejected += length + REJECTED_COST;
            if self.rejected > MESSAGES_MAX + REJECTED_COST {
                put_close_frame(pipe.output, close_code::POLICY, "too many invalid messages");
                return ClientState::Closed;
            }
            not_applied.put(pipe.output);
        }
    }
}

fn new_parser() -> Box<WebSocketContext> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGES_MAX))
        .max_frame_size(Some(MESSAGES_MAX));
    Box::new(WebSocketContext::new(Role::Server, Some(config)))
}

/// Returns code and reason of the close frame for an error. `None`: the parser has answered the
/// client's own close frame.
fn close_of(error: &Error) -> Option<(u16, &'static str)> {
    match error {
        Error::Protocol(_) => Some((1002, "protocol error")),
        Error::Utf8(_) => Some((1007, "a text is not UTF-8")),
        Error::Capacity(_) => Some((1009, "a message is larger than 16 KiB")),
        _ => None,
    }
}

/// Answers bytes that are whole pings and pongs. Returns false, and appends nothing, if they are
/// anything else.
fn answer_pings(bytes: &[u8], answers: &mut BytesMut) -> bool {
    let before = answers.len();
    let mut cursor = Cursor::new(bytes);
    while (cursor.position() as usize) < bytes.len() {
        if next_ping(&mut cursor, bytes, answers).is_none() {
            answers.truncate(before);
            return false;
        }
    }
    true
}

fn next_ping(cursor: &mut Cursor<&[u8]>, bytes: &[u8], answers: &mut BytesMut) -> Option<()> {
    let (header, length) = FrameHeader::parse(cursor).ok()??;
    let is_plain = header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3;
    let mask = header.mask.filter(|_| is_plain && length <= CONTROL_MAX)?;
    let start = cursor.position() as usize;
    let end = start + length as usize;
    let content = bytes.get(start..end)?;
    match header.opcode {
        OpCode::Control(Control::Ping) => {
            answers.put_u8(PONG);
            answers.put_u8(length as u8);
            answers.extend(
                content
                    .iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
        OpCode::Control(Control::Pong) => {}
        _ => return None,
    }
    cursor.set_position(end as u64);
    Some(())
}

/// Bytes that have arrived, and the answers of the parser.
struct Pipe<'p> {
    input: &'p [u8],
    output: &'p mut BytesMut,
}

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.put_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    /// Returns a frame as a client sends it.
    fn frame(first: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match content.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(
            content
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        frame
    }

    /// Takes every message but those that begin with `bad`.
    fn take(text: &str) -> Result<(), NotApplied> {
        match text.starts_with("bad") {
            true => Err(NotApplied::new("bad_message", "no".to_owned())),
            false => Ok(()),
        }
    }

    /// Reads bytes in pieces of a size; returns the state and the answers.
    fn read(bytes: &[u8], piece: usize) -> (ClientState, Vec<u8>) {
        let mut messages = ClientMessages::new(Bytes::new());
        let mut answers = BytesMut::new();
        for piece in bytes.chunks(piece) {
            if messages.read(piece, &mut answers, &mut take) == ClientState::Closed {
                return (ClientState::Closed, answers.to_vec());
            }
        }
        (ClientState::Open, answers.to_vec())
    }

    #[test]
    fn pings_are_answered_without_a_parser() {
        let mut messages = ClientMessages::new(Bytes::new());
        let mut answers = BytesMut::new();
        let bytes = [frame(0x89, b"one"), frame(0x8a, b""), frame(0x89, b"")].concat();
        assert_eq!(
            messages.read(&bytes, &mut answers, &mut take),
            ClientState::Open
        );
        assert_eq!(&answers[..], b"\x8a\x03one\x8a\x00");
        assert!(messages.parser.is_none());
    }

    #[test]
    fn frames_in_pieces_of_any_size_are_answered_alike() {
        let close = frame(0x88, b"\x03\xe8bye");
        for (bytes, state, expected) in [
            (frame(0x89, b"abc"), ClientState::Open, &b"\x8a\x03abc"[..]),
            (frame(0x81, b"text"), ClientState::Open, b""),
            (
                [frame(0x01, b"te"), frame(0x89, b"x"), frame(0x80, b"xt")].concat(),
                ClientState::Open,
                b"\x8a\x01x",
            ),
            (close, ClientState::Closed, b"\x88\x05\x03\xe8bye"),
            (frame(0x88, b""), ClientState::Closed, b"\x88\x00"),
        ] {
            for piece in [1, 2, 3, 5, 100] {
                let (found, answers) = read(&bytes, piece);
                assert_eq!(
                    (found, &answers[..]),
                    (state, expected),
                    "{bytes:?} by {piece}"
                );
            }
        }
    }

    #[test]
    fn violations_are_closed_with_their_code() {
        let unmasked = vec![0x81, 1, b'x'];
        for (bytes, code) in [
            (unmasked, 1002_u16),
            (frame(0x83, b""), 1002),
            (frame(0xc1, b"x"), 1002),
            (frame(0x80, b"x"), 1002),
            (frame(0x09, b"x"), 1002),
            (frame(0x89, &[0; 126]), 1002),
            (frame(0x81, b"\xff"), 1007),
            (frame(0x82, &[0; MESSAGES_MAX + 1]), 1009),
        ] {
            let (state, answers) = read(&bytes, 1000);
            assert_eq!(state, ClientState::Closed, "{code}");
            assert_eq!(answers[0], 0x88);
            assert_eq!(answers[2..4], code.to_be_bytes());
        }
    }

    #[test]
    fn message_that_is_not_taken_is_answered_until_there_are_too_many() {
        let (state, answers) = read(&frame(0x81, b"bad"), 2);
        assert_eq!(state, ClientState::Open);
        let object = r#"{"control":"error","reason":"bad_message","message":"no"}"#;
        assert_eq!(&answers[2..], object.as_bytes());
        let many = frame(0x81, b"bad").repeat(MESSAGES_MAX / 67 + 2);
        let (state, answers) = read(&many, 1000);
        assert_eq!(state, ClientState::Closed);
        assert!(answers.ends_with(b"too many invalid messages"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_answered_or_closed(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            piece in 1_usize..50,
        ) {
            let (_, answers) = read(&bytes, piece);
            // The shortest message has six bytes, the longest answer less than 120.
            prop_assert!(answers.len() <= 20 * bytes.len() + CONTROL_MAX as usize + 2);
        }
    }
}
