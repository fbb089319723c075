//! Tests of the format of event ids, and of comparing fingerprints.

use proptest::prelude::*;

use super::*;

/// Largest sequence number with 16 digits.
const SEQ_REALISTIC_MAX: u64 = 9_999_999_999_999_999;

fn fingerprint() -> impl Strategy<Value = Fingerprint> {
    (any::<[u8; 4]>(), any::<bool>()).prop_map(|(bytes, is_short)| {
        let full = Fingerprint::Full(bytes);
        if is_short { full.to_short() } else { full }
    })
}

fn position(seq_max: u64) -> impl Strategy<Value = Position> {
    let fingerprint = prop::option::of(fingerprint());
    (any::<[u8; 3]>(), 0..=seq_max, fingerprint).prop_map(|(tag, seq, fingerprint)| Position {
        tag: SourceTag(tag),
        seq,
        fingerprint,
    })
}

fn id(seq_max: u64) -> impl Strategy<Value = EventId> {
    prop::collection::vec(position(seq_max), 1..=4).prop_map(|mut positions| {
        positions.sort_by_key(|position| position.tag);
        positions.dedup_by_key(|position| position.tag);
        EventId::new(positions)
    })
}

/// The documented format, written in the simplest way.
fn by_format(id: &EventId, has_fingerprints: bool) -> String {
    let text = |at: &Position| {
        let fingerprint = match at.fingerprint.filter(|_| has_fingerprints) {
            None => String::new(),
            Some(Fingerprint::Short(bytes)) => format!("-{:04x}", u16::from_be_bytes(bytes)),
            Some(Fingerprint::Full(bytes)) => {
                let bits = format!("{:035b}", u32::from_be_bytes(bytes));
                let digit = |nth: usize| usize::from_str_radix(&bits[5 * nth..5 * nth + 5], 2);
                let chars = (0..7).map(|nth| char::from(BASE32[digit(nth).unwrap()]));
                format!("-{}", chars.collect::<String>())
            }
        };
        format!("{}-{}{fingerprint}", at.tag, at.seq)
    };
    id.positions.iter().map(text).collect::<Vec<_>>().join(".")
}

proptest! {
    #[test]
    fn formatted_id_parses_to_itself(id in id(SEQ_REALISTIC_MAX)) {
        let text = id.to_string();
        prop_assert!(text.len() <= EventId::LENGTH_MAX);
        prop_assert_eq!(&text, &by_format(&id, true));
        prop_assert!(id.is_same(&text));
        prop_assert_eq!(EventId::parse(text.as_bytes()), Ok(id));
    }

    #[test]
    fn id_of_any_sequence_numbers_fits_and_keeps_them(id in id(u64::MAX)) {
        let text = id.to_string();
        prop_assert!(text.len() <= EventId::LENGTH_MAX);
        let whole = by_format(&id, true);
        let expected = if whole.len() > EventId::LENGTH_MAX { by_format(&id, false) } else { whole };
        prop_assert_eq!(&text, &expected);
        let parsed = EventId::parse(text.as_bytes()).unwrap();
        for at in &id.positions {
            prop_assert_eq!(parsed.find(at.tag).map(|parsed| parsed.seq), Some(at.seq));
        }
    }

    #[test]
    fn parsing_any_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(id) = EventId::parse(&bytes) {
            // Leading zeros of a number are the only other spelling of the same position.
            prop_assert_eq!(EventId::parse(id.to_string().as_bytes()), Ok(id));
        }
    }

    #[test]
    fn parsing_near_misses_does_not_panic(text in "[0-9a-f]{6}-[0-9]{1,20}-[0-9a-z]{3,8}([.-][0-9a-z.-]{0,110})?") {
        let parsed = EventId::parse(text.as_bytes());
        prop_assert!(text.len() <= 128 || parsed == Err(InvalidId::TooLong));
    }

    /// The fingerprint of version 0.1 is the exclusive or of all 2-byte words.
    #[test]
    fn short_form_is_the_fingerprint_of_version_0_1(unix_nanos: i128) {
        let words = unix_nanos.to_be_bytes();
        let folded = words.chunks_exact(2).fold(0, |folded, word| folded ^ u16::from_be_bytes([word[0], word[1]]));
        let full = Fingerprint::of_publish_time(unix_nanos);
        prop_assert_eq!(full.to_short(), Fingerprint::Short(folded.to_be_bytes()));
        prop_assert!(full.agrees_with(full.to_short()) && full.to_short().agrees_with(full));
    }

    #[test]
    fn fingerprints_agree_in_the_bits_that_both_have(one in fingerprint(), other in fingerprint()) {
        let are_full = matches!((one, other), (Fingerprint::Full(_), Fingerprint::Full(_)));
        let expected = if are_full { one == other } else { one.to_short() == other.to_short() };
        prop_assert_eq!(one.agrees_with(other), expected);
        prop_assert_eq!(other.agrees_with(one), expected);
    }
}

#[test]
fn position_has_sixteen_bytes() {
    assert_eq!(size_of::<Position>(), 16);
}

#[test]
fn id_has_the_documented_format() {
    let one = Position {
        tag: SourceTag([0x3f, 0xa9, 0xc1]),
        seq: 18422,
        fingerprint: Some(Fingerprint::Full(0xa676_8ddc_u32.to_be_bytes())),
    };
    let two = Position {
        tag: SourceTag([0, 0, 1]),
        seq: 0,
        fingerprint: None,
    };
    assert_eq!(
        EventId::new(vec![one, two]).to_string(),
        "3fa9c1-18422-2k7d3ew.000001-0"
    );
    assert!(
        BASE32.is_sorted(),
        "the parser searches it as a sorted list"
    );
}

#[test]
fn id_that_would_be_too_long_has_no_fingerprints() {
    let id = |seq| {
        let position = |nth| Position {
            tag: SourceTag([0, 0, nth]),
            seq,
            fingerprint: Some(Fingerprint::of_publish_time(7)),
        };
        EventId::new((1..=4).map(position).collect()).to_string()
    };
    assert_eq!(id(SEQ_REALISTIC_MAX).len(), 127);
    assert!(id(SEQ_REALISTIC_MAX).ends_with("-0000007"));
    let largest = id(u64::MAX);
    assert_eq!(largest.len(), 111);
    assert!(
        largest.ends_with("000004-18446744073709551615"),
        "{largest}"
    );
}

#[test]
fn tags_and_fingerprints_are_the_same_on_every_pod_and_release() {
    assert_eq!(
        SourceTag::of_stream("ORDERS", 1_700_000_000_000_000_000).to_string(),
        "ed9319"
    );
    assert_eq!(SourceTag::of_identity("orders").to_string(), "616b44");
    let at = Position {
        tag: SourceTag::of_identity("orders"),
        seq: 7,
        fingerprint: Some(Fingerprint::of_publish_time(1_700_000_000_123_456_789)),
    };
    assert_eq!(at.to_string(), "616b44-7-0n14mfb");
}

/// Ids as version 0.1 wrote them.
#[test]
fn ids_of_version_0_1_are_verified() {
    let parse = |text: &str| EventId::parse(text.as_bytes()).unwrap();
    let published = Fingerprint::of_publish_time(1_700_000_000_123_456_789);
    let agrees = |text: &str| {
        let at = parse(text).positions()[0];
        at.fingerprint.map(|known| known.agrees_with(published))
    };
    assert_eq!(agrees("ed9319-7-7bf9"), Some(true));
    assert_eq!(agrees("ed9319-7-7bf8"), Some(false));
    assert_eq!(agrees("ed9319-7"), None);

    let now = parse("ed9319-7-0n14mfb.000001-3");
    assert!(now.is_same("000001-3.ed9319-7-7bf9"));
    assert!(parse("ed9319-7-7bf9.000001-3").is_same(&now.to_string()));
    for other in [
        "ed9319-7-7bf8.000001-3",
        "ed9319-7.000001-3",
        "ed9319-8-7bf9.000001-3",
        "ed9319-7-7bf9.000002-3",
        "ed9319-7-7bf9",
        "ed9319-7-7bf9.000001-4",
    ] {
        assert!(!now.is_same(other), "{other}");
    }
}

#[test]
fn short_fingerprint_is_replaced_by_the_stored_one() {
    let stored = Fingerprint::of_publish_time(1_700_000_000_123_456_789);
    let at = |fingerprint| Position {
        tag: SourceTag([0, 0, 1]),
        seq: 7,
        fingerprint,
    };
    let short = at(Some(stored.to_short()));
    assert_eq!(short.with_full(Some(stored)), at(Some(stored)));
    assert_eq!(short.with_full(None), short);
    assert_eq!(at(None).with_full(Some(stored)), at(None));
}

#[test]
fn invalid_id_reports_the_reason() {
    let invalid = |text: &str| EventId::parse(text.as_bytes()).unwrap_err();
    for text in [
        "",
        ".",
        "abc",
        "3fa9c1",
        "3fa9c1-",
        "3fa9c1-1-",
        "3FA9C1-1",
        "3fa9c1-1-7d3",
        "3fa9c1-1-7d3eg",
        "3fa9c1-1-7d3g",
        "3fa9c1-1-2K7D3EW",
        "3fa9c1-1-2k7d3eu",
        "3fa9c1-1-2k7d3é",
        "3fa9c1-1-4000000",
        "3fa9c1-1-2k7d3eww",
        "3fa9c1-+1",
        "3fa9c1--1",
        "3fa9c1-1-7d3e-0",
        "3fa9c1-1.",
        "3fa9c1-99999999999999999999",
        "3fa9c1-1\0",
    ] {
        assert_eq!(invalid(text), InvalidId::Format, "{text:?}");
    }
    assert_eq!(invalid(&"0".repeat(129)), InvalidId::TooLong);
    assert_eq!(
        invalid("000001-1.000002-1.000003-1.000004-1.000005-1"),
        InvalidId::TooMany
    );
    assert_eq!(invalid("000001-1.000001-2"), InvalidId::DuplicateTag);
}
