//! The part of HTTP/2 that an event stream needs: requests begin streams, events are DATA frames.
//!
//! Header fields are not decoded, so every stream reads all subjects. Flow control is ignored: the
//! windows of the clients are larger than what a run sends.

/// First bytes of an HTTP/2 client.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams of one connection.
#[derive(Default)]
pub(super) struct Http2 {
    /// Bytes of an incomplete frame.
    received: Vec<u8>,
    streams: Vec<u32>,
}

impl Http2 {
    /// Reads bytes after the preface. Returns what has to be sent.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.received.extend_from_slice(bytes);
        let mut answer = Vec::new();
        let mut done = 0;
        while let Some((head, rest)) = self.received[done..].split_first_chunk::<HEAD_BYTES>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = rest.get(..length) else {
                break;
            };
            done += HEAD_BYTES + length;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match (head[3], head[4] & ACK) {
                (SETTINGS, 0) => frame(&mut answer, SETTINGS, ACK, 0, &[]),
                (PING, 0) => frame(&mut answer, PING, ACK, 0, payload),
                (HEADERS, _) => {
                    self.streams.push(stream);
                    frame(&mut answer, HEADERS, END_HEADERS, stream, RESPONSE);
                    frame(&mut answer, DATA, 0, stream, FIRST);
                }
                _ => {}
            }
        }
        self.received.drain(..done);
        answer
    }

    /// Appends one DATA frame with these events for each stream.
    pub(super) fn send(&self, events: &[u8], out: &mut Vec<u8>) {
        for stream in &self.streams {
            for part in events.chunks(FRAME_BYTES_MAX) {
                frame(out, DATA, 0, *stream, part);
            }
        }
    }
}

/// Returns the first frame of a server.
pub(super) fn settings() -> Vec<u8> {
    let mut bytes = Vec::new();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    bytes
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

const HEAD_BYTES: usize = 9;
/// The maximum without a setting (RFC 9113, 4.2).
const FRAME_BYTES_MAX: usize = 16_384;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` and `content-type: text/event-stream`, from the static table (RFC 7541).
const RESPONSE: &[u8] = b"\x88\x0f\x10\x11text/event-stream";
/// As long as the first bytes of the sidecar.
const FIRST: &[u8] = b"retry: 3000\nid: 000000-00000000-0000000\n\n";
