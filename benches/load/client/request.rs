//! Request of a client in the framing of its fleet, and the answers to pings.

use crate::wire::body::Framing;

/// Path of the gRPC method.
pub(super) const SUBSCRIBE: &str = "/sidestream.v1.Events/Subscribe";

/// Answer of a client to a ping without content, masked with zeros.
pub(super) const PONG: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];

/// Returns the headers that ask for a framing over HTTP/1.1.
pub(super) fn http1_headers(framing: Framing) -> &'static str {
    match framing {
        Framing::Sse => "accept: text/event-stream\r\n",
        Framing::Ndjson => "accept: application/x-ndjson\r\n",
        Framing::WebSocket => {
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        }
        Framing::Grpc => "content-type: application/grpc-web+proto\r\n",
    }
}

/// Returns the message of a call, after its flag and length.
///
/// Path and id have less than 128 bytes, so that each length is one byte.
pub(super) fn subscribe_message(path: &str, last_id: Option<&str>) -> Vec<u8> {
    let mut message = vec![0; 5];
    for (key, text) in [(0x0a, Some(path)), (0x12, last_id)] {
        if let Some(text) = text {
            message.extend([key, text.len() as u8]);
            message.extend_from_slice(text.as_bytes());
        }
    }
    message[4] = (message.len() - 5) as u8;
    message
}
