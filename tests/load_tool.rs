//! Tests of the load tool: it must notice every event that is missing, duplicated or late.
//!
//! Otherwise a report without faults would mean nothing. The tests include the tool's parsers, its
//! medians and the verdicts of the guard as modules.

// The tests use only a part of this module.
#[allow(dead_code)]
#[path = "../benches/load/report.rs"]
mod report;
#[path = "../benches/load/guard/verdict.rs"]
mod verdict;
#[path = "../benches/load/wire/mod.rs"]
mod wire;

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use verdict::{Spread, Verdict};
use wire::body::{BodyReader, Framing};
use wire::coding::Coding;
use wire::events::{EventReader, Seen};
use wire::http1::{Fault, Response};
use wire::received::Received;
use wire::sequence::{Order, Sequence};
use wire::stamp::{Content, Stamp, now};

fn orders(numbers: &[u64]) -> Vec<Order> {
    let mut sequence = Sequence::default();
    numbers
        .iter()
        .map(|&number| sequence.observe(number))
        .collect()
}

#[test]
fn consecutive_numbers_are_in_order_from_any_first_number() {
    assert!(
        orders(&[7, 8, 9, 10])
            .iter()
            .all(|order| *order == Order::Next)
    );
}

#[test]
fn jump_is_a_hole_with_the_count_of_missing_numbers() {
    assert_eq!(
        orders(&[1, 5, 6]),
        [Order::Next, Order::Hole(3), Order::Next]
    );
    assert_eq!(
        orders(&[1, 1_000_000, 1_000_001]),
        [Order::Next, Order::Hole(999_998), Order::Next]
    );
}

#[test]
fn number_that_fills_a_hole_is_late_and_then_a_duplicate() {
    assert_eq!(
        orders(&[1, 4, 2, 2, 3]),
        [
            Order::Next,
            Order::Hole(2),
            Order::Late,
            Order::Duplicate,
            Order::Late
        ]
    );
}

#[test]
fn repeated_number_is_a_duplicate_at_any_distance() {
    assert_eq!(orders(&[1, 2, 2])[2], Order::Duplicate);
    let mut numbers: Vec<u64> = (1..=100).collect();
    numbers.push(3);
    assert_eq!(orders(&numbers)[100], Order::Duplicate);
}

#[test]
fn returning_client_notices_holes_and_duplicates() {
    let mut sequence = Sequence::after(7);
    assert_eq!(
        [7, 9, 8].map(|number| sequence.observe(number)),
        [Order::Duplicate, Order::Hole(1), Order::Late]
    );
    assert_eq!(Sequence::after(7).observe(8), Order::Next);
}

#[test]
fn stamp_is_parsed_from_a_payload_of_the_requested_size() {
    let stamp = Stamp {
        sent: now(),
        sequence: 42,
    };
    let payload = stamp.payload(128, Content::Padding);
    assert_eq!(payload.len(), 128);
    assert_eq!(Stamp::parse(&payload), Some(stamp));
    assert_eq!(
        Stamp::parse(&stamp.payload(0, Content::Padding)),
        Some(stamp)
    );
    let document: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(document["s"], 42);
    let order = stamp.payload(512, Content::Json);
    assert_eq!((order.len(), Stamp::parse(&order)), (512, Some(stamp)));
    let document: serde_json::Value = serde_json::from_slice(&order).unwrap();
    assert_eq!(document["currency"], "EUR");
}

#[test]
fn compressed_body_is_decoded_in_pieces() {
    let events = (1..=20).map(|sequence| {
        let stamp = Stamp { sent: 1, sequence };
        let payload = stamp.payload(512, Content::Json);
        format!("data: {}\nid: 1\n\n", String::from_utf8(payload).unwrap())
    });
    let text = events.collect::<String>();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    let mut zstd = Vec::with_capacity(text.len());
    zstd_safe::compress(&mut zstd, text.as_bytes(), 3).unwrap();
    let bodies = [
        (Coding::Gzip, "gzip", gzip.finish().unwrap()),
        (Coding::Zstd, "zstd", zstd),
    ];
    for (coding, name, body) in bodies {
        assert_eq!(coding.as_str(), name);
        let mut reader = BodyReader::new(Framing::Sse, Some(coding), Received::remembering());
        let mut events = 0;
        for piece in body.chunks(7) {
            reader.push(piece, &mut |_| events += 1);
        }
        assert_eq!((events, reader.last_sequence()), (20, 20), "{name}");
    }
}

#[test]
fn truncated_stamp_is_not_parsed() {
    let payload = Stamp {
        sent: u64::MAX,
        sequence: u64::MAX,
    }
    .payload(0, Content::Padding);
    // Up to the comma after the sequence; `"p":""}` follows it.
    let end = payload.len() - 8;
    assert!(Stamp::parse(&payload[..=end]).is_some());
    for cut in 0..=end {
        assert_eq!(Stamp::parse(&payload[..cut]), None, "{cut} bytes");
    }
}

const STREAM: &str = "retry: 3000\nid: aaaaaa-1\n\ndata: {\"t\":10,\"s\":1,\"p\":\"xx\"}\nid: aaaaaa-2\n\n: hb\n\
event: sidestream.gap\ndata: {\"reason\":\"slow\"}\n\ndata: {\"t\":20,\"s\":3,\"p\":\"\"}\n\ndata: {\"t\":30,\"s\":4,\"p\":\"\"}\nid: a\n";

fn expected() -> Vec<Seen> {
    let event = |sent, sequence, order, id| Seen::Event {
        stamp: Stamp { sent, sequence },
        order,
        id,
    };
    // The last event is incomplete: its blank line is missing.
    vec![
        event(10, 1, Order::Next, true),
        Seen::Heartbeat,
        Seen::Gap,
        event(20, 3, Order::Hole(1), false),
    ]
}

#[test]
fn events_are_parsed_from_pieces_cut_anywhere() {
    for cut in 0..STREAM.len() {
        let (mut reader, mut seen) = (EventReader::new(Received::default()), Vec::new());
        for piece in [&STREAM[..cut], &STREAM[cut..]] {
            reader.push(piece.as_bytes(), &mut |one| seen.push(one));
        }
        assert_eq!(seen, expected(), "cut at {cut}");
    }
}

#[test]
fn last_id_is_stored_from_pieces_cut_anywhere() {
    for cut in 0..STREAM.len() {
        let mut reader = EventReader::new(Received::remembering());
        reader.push(&STREAM.as_bytes()[..cut], &mut |_| {});
        reader.push(&STREAM.as_bytes()[cut..], &mut |_| {});
        assert_eq!(reader.received().last_id(), Some(&b"a"[..]), "cut at {cut}");
    }
    let mut reader = EventReader::new(Received::after(1));
    let mut orders = Vec::new();
    reader.push(
        b"data: {\"t\":1,\"s\":1,\n\ndata: {\"t\":1,\"s\":3,\n\n",
        &mut |seen| {
            orders.extend(if let Seen::Event { order, .. } = seen {
                Some(order)
            } else {
                None
            });
        },
    );
    assert_eq!(orders, [Order::Duplicate, Order::Hole(1)]);
    assert_eq!(reader.received().last_id(), None);
}

/// Returns bodies with the same messages in every framing but Server-Sent Events: an event with an id
/// and one with a long payload, a heartbeat, a gap, an event after a hole.
fn bodies() -> [(Framing, Vec<u8>); 3] {
    let padding = "x".repeat(70_000);
    let data = [
        r#"{"t":10,"s":1,"p":"xx"}"#.to_owned(),
        format!(r#"{{"t":20,"s":2,"p":"{padding}"}}"#),
        r#"{"t":30,"s":4,"p":""}"#.to_owned(),
    ];
    let objects = |number: usize| {
        let (id, data) = (number + 1, &data[number]);
        format!(r#"{{"id":"aaaaaa-{id}","subject":"load.all","data":{data}}}"#)
    };
    let gap = r#"{"control":"gap","reason":"slow"}"#.to_owned();
    let [first, second, third] = [objects(0), objects(1), objects(2)];
    let lines = format!("{first}\n{second}\n\n{gap}\n{third}\n").into_bytes();

    let frame = |first: u8, text: &str| {
        let mut frame = vec![first];
        match text.len() {
            length @ ..126 => frame.push(length as u8),
            length @ ..65_536 => frame.extend([126, (length >> 8) as u8, length as u8]),
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(text.as_bytes());
        frame
    };
    let frames = [
        frame(0x81, &first),
        frame(0x81, &second),
        frame(0x89, ""),
        frame(0x81, &gap),
        frame(0x81, &third),
        frame(0x88, "\x03"),
    ];

    let message = |fields: &[u8]| {
        let mut message = vec![0];
        message.extend((fields.len() as u32).to_be_bytes());
        message.extend_from_slice(fields);
        message
    };
    let event = |number: usize| {
        let mut fields = b"\x0a\x08aaaaaa-".to_vec();
        fields.push(b'1' + number as u8);
        // The length of the event, in three bytes, its subject, and the length of its data.
        fields.extend(b"\x12\xff\xff\x03\x12\x08load.all\x1a\xff\xff\x03");
        fields.extend(data[number].as_bytes());
        message(&fields)
    };
    let messages = [
        event(0),
        event(1),
        message(b""),
        message(b"\x0a\x08aaaaaa-2\x32\x06\x0a\x04slow"),
        event(2),
    ];
    [
        (Framing::Ndjson, lines),
        (Framing::WebSocket, frames.concat()),
        (Framing::Grpc, messages.concat()),
    ]
}

#[test]
fn messages_of_every_framing_are_parsed_from_pieces_cut_anywhere() {
    let event = |sent, sequence, order| Seen::Event {
        stamp: Stamp { sent, sequence },
        order,
        id: true,
    };
    let expected = [
        event(10, 1, Order::Next),
        event(20, 2, Order::Next),
        Seen::Heartbeat,
        Seen::Gap,
        event(30, 4, Order::Hole(1)),
    ];
    for (framing, body) in bodies() {
        // The padding looks the same everywhere.
        for cut in (0..300).chain(body.len() - 400..body.len()) {
            let mut reader = BodyReader::new(framing, None, Received::remembering());
            let mut seen = Vec::new();
            for piece in [&body[..cut], &body[cut..]] {
                reader.push(piece, &mut |one| seen.push(one));
            }
            assert_eq!(seen, expected, "{framing:?}, cut at {cut}");
            assert_eq!(reader.last_id(), Some(&b"aaaaaa-3"[..]), "{framing:?}");
            assert_eq!(reader.last_sequence(), 4, "{framing:?}");
            let pings = usize::from(framing == Framing::WebSocket);
            assert_eq!(reader.take_pings(), pings, "{framing:?}");
        }
    }
}

fn body(pieces: &[&[u8]]) -> Result<(String, bool), Fault> {
    let (mut response, mut body) = (Response::new(200), Vec::new());
    for piece in pieces {
        response.push(piece, &mut |bytes| body.extend_from_slice(bytes))?;
    }
    Ok((
        String::from_utf8_lossy(&body).into_owned(),
        response.is_over(),
    ))
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nDate: x\r\n\r\n5\r\nhello\r\n1a;x=y\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n";

#[test]
fn chunk_framing_is_removed_from_pieces_cut_anywhere() {
    for cut in 0..CHUNKED.len() {
        let expected = ("helloabcdefghijklmnopqrstuvwxyz".to_owned(), true);
        assert_eq!(
            body(&[&CHUNKED[..cut], &CHUNKED[cut..]]),
            Ok(expected),
            "cut at {cut}"
        );
    }
}

#[test]
fn body_without_chunks_lasts_until_the_connection_ends() {
    assert_eq!(
        body(&[b"HTTP/1.0 200 OK\r\n\r\nab", b"5\r\n"]),
        Ok(("ab5\r\n".to_owned(), false))
    );
}

#[test]
fn rejection_and_malformed_response_are_faults() {
    assert_eq!(
        body(&[b"HTTP/1.1 503 Service Unavailable\r\n\r\n"]),
        Err(Fault::Status(503))
    );
    // A WebSocket begins with 101, a response with 200.
    let switching = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    assert_eq!(body(&[switching]), Err(Fault::Status(101)));
    assert_eq!(Response::new(101).push(switching, &mut |_| {}), Ok(()));
    assert_eq!(
        body(&[b"SSH-2.0-OpenSSH_9.2\r\n\r\n"]),
        Err(Fault::Malformed)
    );
    assert_eq!(
        body(&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno"]),
        Err(Fault::Malformed)
    );
}

#[test]
fn median_is_computed_for_each_number() {
    let runs = [
        json!({"a": {"b": 3}, "c": 1.5, "d": "x"}),
        json!({"a": {"b": 9}, "c": 0.5, "d": "y"}),
        json!({"a": {"b": 5}, "c": 2.5, "d": "z"}),
    ];
    assert_eq!(
        report::median(&runs),
        json!({"a": {"b": 5}, "c": 1.5, "d": "x"})
    );
}

fn spread(ratios: &[f64]) -> Spread {
    Spread::of(ratios.to_vec()).expect("there are ratios")
}

fn against_base(ratios: &[f64]) -> Verdict {
    spread(ratios).against_base(0.03)
}

#[test]
fn guard_fails_only_if_the_tree_is_slower_in_all_rounds_and_beyond_the_limit() {
    assert_eq!(
        against_base(&[1.05, 1.04, 1.09, 1.01, 1.06]),
        Verdict::Slower
    );
    assert_eq!(
        against_base(&[1.05, 1.04, 1.09, 0.99, 1.06]),
        Verdict::Noise
    );
    assert_eq!(against_base(&[1.02, 1.01, 1.03, 1.01, 1.02]), Verdict::Ok);
    assert_eq!(
        against_base(&[0.95, 0.96, 0.99, 0.93, 0.94]),
        Verdict::Faster
    );
    assert_eq!(against_base(&[1.5, 1.5]), Verdict::Noise);
}

#[test]
fn guard_ignores_an_outlier_from_nine_rounds_on() {
    let mut ratios = vec![0.8, 1.05, 1.06, 1.07, 1.08, 1.09, 1.05, 1.06];
    assert_eq!(against_base(&ratios), Verdict::Noise);
    ratios.push(1.07);
    assert_eq!(against_base(&ratios), Verdict::Slower);
    let spread = spread(&ratios);
    assert_eq!((spread.low, spread.median, spread.high), (1.05, 1.06, 1.08));
}

#[test]
fn guard_compares_the_storm_with_a_multiple_of_the_bare_loop() {
    let base = spread(&[1.2, 1.3, 1.4]);
    for (ratios, expected) in [
        ([1.34, 1.2, 1.5], Verdict::Ok),
        ([1.34, 1.4, 1.5], Verdict::Noise),
        ([1.36, 1.4, 1.5], Verdict::Slower),
    ] {
        assert_eq!(
            spread(&ratios).against_bound(1.35, &base),
            expected,
            "{ratios:?}"
        );
    }
    let high = spread(&[1.5, 1.6, 1.7]);
    assert_eq!(high.against_bound(1.35, &high), Verdict::Above);
    assert_eq!(Spread::of(Vec::new()), None);
}
