//! The client's side by RFC 6455: fragmentation, control frames, close codes, UTF-8, masks, lengths.

use super::{Fixture, Via};
use testkit::websocket::{Frame, masked};

/// Frames of a client, and the answer: pongs, and the code of a close.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    pongs: &'static [&'static [u8]],
    close: Option<u16>,
}

fn case(name: &'static str, bytes: Vec<u8>, close: Option<u16>) -> Case {
    Case {
        name,
        bytes,
        pongs: &[],
        close,
    }
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    masked(0x88, &[&code.to_be_bytes()[..], reason].concat())
}

fn cases() -> Vec<Case> {
    let join = |frames: &[Vec<u8>]| frames.concat();
    vec![
        case("a text", masked(0x81, b"hello"), None),
        case("an empty text", masked(0x81, b""), None),
        case("a binary message", masked(0x82, &[0xff; 126]), None),
        case("the longest message", masked(0x82, &[0; 16_384]), None),
        case(
            "a message that is too long",
            masked(0x82, &[0; 16_385]),
            Some(1009),
        ),
        case(
            "a length of 2^62",
            [&[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0][..], &[0; 4]].concat(),
            Some(1009),
        ),
        case(
            "fragments that are too long together",
            join(&[masked(0x02, &[0; 10_000]), masked(0x80, &[0; 10_000])]),
            Some(1009),
        ),
        Case {
            pongs: &[b"between", b""],
            ..case(
                "a text in fragments with pings between them",
                join(&[
                    masked(0x01, b"\xc3"),
                    masked(0x89, b"between"),
                    masked(0x00, b"\xbc"),
                    masked(0x89, b""),
                    masked(0x80, b""),
                ]),
                None,
            )
        },
        Case {
            pongs: &[&[7; 125]],
            ..case("the longest ping", masked(0x89, &[7; 125]), None)
        },
        case("a pong without a ping", masked(0x8a, b"x"), None),
        case(
            "a ping that is too long",
            masked(0x89, &[7; 126]),
            Some(1002),
        ),
        case("a ping in fragments", masked(0x09, b"x"), Some(1002)),
        case("a close in fragments", masked(0x08, b""), Some(1002)),
        case(
            "a continuation without a beginning",
            masked(0x80, b"x"),
            Some(1002),
        ),
        case(
            "a text within a text",
            join(&[masked(0x01, b"x"), masked(0x81, b"y")]),
            Some(1002),
        ),
        case("a frame without a mask", vec![0x81, 0x01, b'x'], Some(1002)),
        case("RSV1 without an extension", masked(0xc1, b"x"), Some(1002)),
        case("RSV2", masked(0xa1, b"x"), Some(1002)),
        case("RSV3", masked(0x91, b"x"), Some(1002)),
        case("a reserved opcode of data", masked(0x83, b""), Some(1002)),
        case(
            "a reserved opcode of control",
            masked(0x8b, b""),
            Some(1002),
        ),
        case(
            "a text that is not UTF-8",
            masked(0x81, b"\xce\xba\xff"),
            Some(1007),
        ),
        case(
            "a text with a surrogate",
            masked(0x81, b"\xed\xa0\x80"),
            Some(1007),
        ),
        case(
            "a text whose last fragment ends within a character",
            join(&[masked(0x01, b"x"), masked(0x80, b"\xc3")]),
            Some(1007),
        ),
        case("a close without a code", masked(0x88, b""), Some(1005)),
        case("a close", close(1000, b""), Some(1000)),
        case("a close with a reason", close(1001, b"bye"), Some(1001)),
        case(
            "a close with a code of an application",
            close(4999, b""),
            Some(4999),
        ),
        case(
            "a close with half a code",
            masked(0x88, b"\x03"),
            Some(1002),
        ),
        case("a close with a reserved code", close(1005, b""), Some(1002)),
        case(
            "a close with a code out of range",
            close(999, b""),
            Some(1002),
        ),
    ]
}

#[tokio::test]
async fn every_frame_of_a_client_is_accepted_or_closed_with_the_code_of_the_standard() {
    let fixture = Fixture::start().await;
    for via in [Via::Http11, Via::H2, Via::Tls11] {
        for Case {
            name,
            bytes,
            pongs,
            close,
        } in cases()
        {
            let mut socket = fixture.open(via, "/orders").await;
            socket.send_bytes(&bytes).await;
            // It is the last answer of a WebSocket that stays open.
            socket.send(0x89, b"last").await;
            let mut pongs = pongs.iter();
            let closed = loop {
                match socket.next().await {
                    Frame::Pong(content) if content == b"last" => break None,
                    Frame::Pong(content) => assert_eq!(Some(&&content[..]), pongs.next(), "{name}"),
                    Frame::Close(code, _) => break Some(code),
                    // A message is answered by an error.
                    Frame::Ping(_) | Frame::Text(_) => {}
                    frame => panic!("{frame:?} after {name} on {via:?}"),
                }
            };
            assert_eq!(closed, close, "{name} on {via:?}");
            assert_eq!(pongs.len(), 0, "{name} on {via:?}");
            if closed.is_some() {
                assert_eq!(socket.next().await, Frame::End, "{name} on {via:?}");
            }
        }
    }
}

#[tokio::test]
async fn frames_that_arrive_byte_by_byte_are_answered() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut socket = fixture.open(via, "/orders").await;
        for byte in [masked(0x81, b"text"), masked(0x89, b"abc")].concat() {
            socket.send_bytes(&[byte]).await;
            tokio::task::yield_now().await;
        }
        loop {
            match socket.next().await {
                Frame::Ping(_) | Frame::Text(_) => {}
                frame => {
                    assert_eq!(frame, Frame::Pong(b"abc".to_vec()));
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn client_that_sends_too_many_messages_is_closed() {
    let fixture = Fixture::start().await;
    for via in [Via::Http11, Via::H2] {
        let mut socket = fixture.open(via, "/orders").await;
        for _ in 0..20 {
            socket.send(0x81, &[b'x'; 1000]).await;
        }
        loop {
            match socket.next().await {
                Frame::Ping(_) | Frame::Text(_) => {}
                frame => {
                    assert!(matches!(frame, Frame::Close(1008, _)), "{frame:?}");
                    break;
                }
            }
        }
    }
}
