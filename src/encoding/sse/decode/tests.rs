//! Decoder: streams decoded whole and in pieces.

use proptest::prelude::*;

use super::*;

fn decode_in(pieces: &[&[u8]]) -> Vec<Decoded> {
    let mut decoder = Decoder::new(1 << 20, "");
    let mut all = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while let Some(decoded) = decoder.next(&mut rest).unwrap() {
            all.push(decoded);
        }
        assert!(rest.is_empty(), "a piece is consumed");
    }
    all
}

fn decode(text: &str) -> Vec<Decoded> {
    decode_in(&[text.as_bytes()])
}

fn event(id: &str, event: &str, data: &str) -> Decoded {
    Decoded::Event(ReceivedEvent {
        id: id.into(),
        event: event.into(),
        data: data.into(),
    })
}

fn position(id: &str) -> Decoded {
    Decoded::Position(id.into())
}

#[test]
fn examples_of_the_standard_decode_as_specified() {
    assert_eq!(
        decode("data: YHOO\ndata: +2\ndata: 10\n\n"),
        [event("", "message", "YHOO\n+2\n10")]
    );
    assert_eq!(
        decode(
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
        ),
        [
            event("1", "message", "first event"),
            event("", "message", "second event"),
            event("", "message", " third event")
        ]
    );
    assert_eq!(
        decode("data\n\ndata\ndata\n\ndata:"),
        [event("", "message", ""), event("", "message", "\n")]
    );
    assert_eq!(
        decode("data:test\n\ndata: test\n\n"),
        [event("", "message", "test"), event("", "message", "test")]
    );
}

#[test]
fn block_with_only_an_id_sets_the_position() {
    assert_eq!(
        decode("retry: 1500\nid: a-7-ff\n\n"),
        [
            Decoded::Retry(Duration::from_millis(1500)),
            position("a-7-ff"),
        ]
    );
}

#[test]
fn block_with_only_a_name_is_ignored_and_its_name_is_reset() {
    assert_eq!(
        decode("event: created\n\ndata: x\n\n"),
        [event("", "message", "x")]
    );
}

#[test]
fn id_remains_until_another_and_an_empty_one_resets_it() {
    assert_eq!(
        decode("id: 7\ndata: a\n\ndata: b\n\nid:\ndata: c\n\n"),
        [
            event("7", "message", "a"),
            event("7", "message", "b"),
            event("", "message", "c"),
        ]
    );
}

#[test]
fn event_without_id_keeps_the_position_of_the_previous_connection() {
    let mut decoder = Decoder::new(100, "a-7");
    assert_eq!(
        decoder.next(&mut &b"data: x\n\n"[..]),
        Ok(Some(event("a-7", "message", "x")))
    );
}

#[test]
fn an_id_with_nul_is_ignored() {
    assert_eq!(
        decode("id: 7\ndata: a\n\nid: 8\0\ndata: b\n\n"),
        [event("7", "message", "a"), event("7", "message", "b"),]
    );
}

#[test]
fn a_retry_that_is_not_all_digits_is_ignored() {
    assert_eq!(decode("retry: 1s\nretry:\nretry: -1\nretry:  5\n\n"), []);
    assert_eq!(
        decode("retry: 99999999999999999999999\n"),
        [Decoded::Retry(Duration::from_millis(u64::MAX))]
    );
}

#[test]
fn lines_end_with_lf_cr_or_both() {
    let expected = [event("1", "a", "x\ny")];
    for end in ["\n", "\r", "\r\n"] {
        let text = "event: a|data: x|data: y|id: 1||".replace('|', end);
        assert_eq!(decode(&text), expected, "{end:?}");
    }
}

#[test]
fn event_is_dispatched_at_cr_without_waiting_for_lf() {
    assert_eq!(decode_in(&[b"data: x\r\n\r"]), [event("", "message", "x")]);
    assert_eq!(
        decode_in(&[b"data: x\r\n\r", b"\n", b"data: y\n\n"]),
        [event("", "message", "x"), event("", "message", "y"),]
    );
}

#[test]
fn byte_order_mark_is_dropped_only_at_the_start() {
    let expected = [event("", "message", "x")];
    assert_eq!(decode("\u{feff}data: x\n\n"), expected);
    assert_eq!(decode_in(&[b"\xEF", b"\xBB", b"\xBFdata: x\n\n"]), expected);
    assert_eq!(decode("\u{feff}\u{feff}data: x\n\n"), []);
    assert_eq!(
        decode_in(&[b"\xEF\xBB", b"data: x\n\n"]),
        [],
        "half a mark is part of the field's name"
    );
}

#[test]
fn invalid_utf8_is_replaced() {
    assert_eq!(
        decode_in(&[b"data: a\xFFb\n\n"]),
        [event("", "message", "a\u{FFFD}b")]
    );
}

#[test]
fn block_without_a_blank_line_is_not_dispatched() {
    assert_eq!(
        decode("id: 1\ndata: a\n\nid: 2\ndata: b\n"),
        [event("1", "message", "a")]
    );
}

#[test]
fn event_over_the_limit_is_an_error_in_any_pieces() {
    let limit = 64;
    let one_line = format!("data: {}\n\n", "x".repeat(70));
    let many_lines = "data: x\n".repeat(70);
    let no_line = "x".repeat(70);
    for text in [one_line, many_lines, no_line] {
        for size in [1, 7, text.len()] {
            let mut decoder = Decoder::new(limit, "");
            let outcome = text
                .as_bytes()
                .chunks(size)
                .find_map(|mut piece| decoder.next(&mut piece).err());
            assert_eq!(outcome, Some(TooLarge { limit }), "{size} bytes at a time");
        }
    }
}

#[test]
fn limit_applies_to_each_event() {
    let mut decoder = Decoder::new(64, "");
    for _ in 0..1000 {
        let mut rest = &b": comment\nid: 1\ndata: twenty bytes of data\n\n"[..];
        assert!(matches!(
            decoder.next(&mut rest),
            Ok(Some(Decoded::Event(_)))
        ));
    }
}

proptest! {
    #[test]
    fn decoding_does_not_depend_on_the_pieces(
        lines in prop::collection::vec("(data|id|event|retry|x|)(: ?|)[a-c0-9\u{feff}é:]{0,5}(\n|\r|\r\n|\n\n)", 0..30),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let text = lines.concat();
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(decode_in(&pieces), decode_in(&[bytes]));
    }
}
