//! Content negotiation: chooses one of the offered media types by `Accept` (RFC 9110, 12.5.1), and one
//! of the offered content codings by `Accept-Encoding` (12.5.3).
//!
//! For each offer the most specific matching range decides about its quality. The offer with the
//! highest quality wins, among equal ones the offer with the most specific range, then the first.
//! Without a range, the first offer wins.
//!
//! Many clients send an `Accept` that violates the syntax. A weight that is not a number is ignored,
//! and so is every parameter other than `q`; the range itself counts.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderName};

use crate::encoding::Coding;

/// Match of a media range with an offer; a greater one is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    quality: Quality,
    specificity: Specificity,
}

/// Weight of a media range in thousandths; 0: not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quality(u16);

/// Form of a media range, from `*/*` to `type/subtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    Any,
    Type,
    Exact,
}

/// Returns the offer that the client prefers; `None` if it accepts none of them. `offers` is in the
/// order in which the route prefers them.
pub(in crate::http) fn negotiate<O: Copy>(
    headers: &HeaderMap,
    offers: &[O],
    media_type: impl Fn(O) -> &'static str,
) -> Option<O> {
    let ranges = elements(headers, &ACCEPT);
    if ranges.is_empty() {
        return offers.first().copied();
    }
    let acceptable = offers.iter().filter_map(|offer| {
        let best = best_match(&ranges, media_type(*offer))?;
        (best.quality > Quality::ZERO).then_some((best, *offer))
    });
    // Of equal matches the first one: `max_by_key` would return the last.
    acceptable
        .reduce(|one, other| if other.0 > one.0 { other } else { one })
        .map(|(_, offer)| offer)
}

/// Returns the content coding that the client prefers; `None`: none, which every client accepts. Of
/// equal weights the first offer counts; no coding is the last one, unless it has a greater weight.
pub(in crate::http) fn negotiate_coding(headers: &HeaderMap, offers: &[Coding]) -> Option<Coding> {
    let accepted = elements(headers, &ACCEPT_ENCODING);
    let weight_of = |name: &str| {
        let named = |element: &&[u8]| {
            let mut parts = split(element, b';');
            let coding = parts.next()?;
            // RFC 9110, 8.4.1.3.
            let coding = coding
                .strip_prefix(b"x-")
                .filter(|coding| *coding == b"gzip")
                .unwrap_or(coding);
            coding.eq_ignore_ascii_case(name.as_bytes()).then(|| {
                let weight = parts.find_map(weight);
                weight.unwrap_or(Quality::ONE)
            })
        };
        accepted.iter().filter_map(named).max()
    };
    let any = weight_of("*");
    let identity = weight_of("identity").unwrap_or(Quality::ZERO);
    let weighted = offers.iter().filter_map(|offer| {
        let weight = weight_of(offer.as_str()).or(any)?;
        (weight > Quality::ZERO && weight >= identity).then_some((weight, *offer))
    });
    weighted
        .reduce(|one, other| if other.0 > one.0 { other } else { one })
        .map(|(_, offer)| offer)
}

/// Returns the elements of a field with a list.
fn elements<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| split(value.as_bytes(), b','))
        .filter(|element| !element.is_empty())
        .collect()
}

/// Returns the match of the most specific range. Of equally specific ones the highest quality
/// counts: the client names the media type twice, and accepts it once.
fn best_match(ranges: &[&[u8]], media_type: &str) -> Option<Match> {
    ranges
        .iter()
        .filter_map(|range| {
            let mut parts = split(range, b';');
            let specificity = Specificity::of(parts.next()?, media_type)?;
            let quality = parts.find_map(weight).unwrap_or(Quality::ONE);
            Some(Match {
                quality,
                specificity,
            })
        })
        .max_by_key(|found| (found.specificity, found.quality))
}

/// Returns the weight if the parameter is one.
pub(super) fn weight(parameter: &[u8]) -> Option<Quality> {
    let (name, value) = parameter.split_at_checked(1)?;
    let value = value.trim_ascii_start().strip_prefix(b"=")?;
    if name.eq_ignore_ascii_case(b"q") {
        Quality::parse(value.trim_ascii_start())
    } else {
        None
    }
}

impl Quality {
    pub(super) const ZERO: Self = Self(0);
    pub(super) const ONE: Self = Self(1000);

    /// Parses `0.25`. Digits after the third are ignored, and more than 1 is 1.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.splitn(2, |byte| *byte == b'.');
        let (whole, fraction) = (parts.next()?, parts.next().unwrap_or_default());
        let are_digits = whole.iter().chain(fraction).all(u8::is_ascii_digit);
        if !are_digits || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        if whole.iter().any(|digit| *digit != b'0') {
            return Some(Self::ONE);
        }
        let thousandths = fraction.iter().chain(b"000").take(3);
        Some(Self(
            thousandths.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')),
        ))
    }
}

impl Specificity {
    /// Returns the form of a range if it matches the media type.
    fn of(range: &[u8], media_type: &str) -> Option<Self> {
        let (main, _) = media_type.split_once('/')?;
        if range == b"*/*" {
            Some(Self::Any)
        } else if range.eq_ignore_ascii_case(media_type.as_bytes()) {
            Some(Self::Exact)
        } else {
            let of_range = range.strip_suffix(b"/*")?;
            of_range
                .eq_ignore_ascii_case(main.as_bytes())
                .then_some(Self::Type)
        }
    }
}

/// Splits a list at a separator, but not within quoted strings, and trims its elements.
pub(super) fn split(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    list.split(move |byte| {
        if std::mem::take(&mut is_escaped) {
            return false;
        }
        match byte {
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            _ => return *byte == separator && !is_quoted,
        }
        false
    })
    .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const SSE: &str = "text/event-stream";
    const NDJSON: &str = "application/x-ndjson";

    fn choose(accept: &[&[u8]], offers: &[&'static str]) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, HeaderValue::from_bytes(value).unwrap());
        }
        negotiate(&headers, offers, |offer| offer)
    }

    fn choose_text(accept: &str, offers: &[&'static str]) -> Option<&'static str> {
        choose(&[accept.as_bytes()], offers)
    }

    #[test]
    fn request_without_a_range_gets_the_first_offer() {
        for offers in [[SSE, NDJSON], [NDJSON, SSE]] {
            assert_eq!(choose(&[], &offers), Some(offers[0]));
            for accept in ["", " ", ",", " , ,\t", "*/*", "*/*;q=0.1"] {
                assert_eq!(choose_text(accept, &offers), Some(offers[0]), "{accept:?}");
            }
        }
        assert_eq!(choose(&[], &[]), None);
        assert_eq!(choose_text("*/*", &[]), None);
    }

    #[test]
    fn quality_then_specificity_then_order_decides() {
        for (accept, expected) in [
            (SSE, SSE),
            (NDJSON, NDJSON),
            ("text/event-stream, application/x-ndjson", SSE),
            ("application/x-ndjson, text/event-stream", SSE),
            ("text/event-stream;q=0.5, application/x-ndjson", NDJSON),
            ("text/event-stream;q=0.5, */*", NDJSON),
            ("text/event-stream;q=0.5, */*;q=0.4", SSE),
            ("application/x-ndjson, */*", NDJSON),
            ("application/*, */*", NDJSON),
            ("application/*, text/event-stream", SSE),
            ("application/*;q=0.9, text/*;q=0.899", NDJSON),
            ("application/x-ndjson;q=0, */*;q=0.001", SSE),
            ("text/event-stream;q=0, */*", NDJSON),
            ("*/*, text/*;q=0", NDJSON),
            ("text/html, application/x-ndjson;q=0.2", NDJSON),
        ] {
            assert_eq!(
                choose_text(accept, &[SSE, NDJSON]),
                Some(expected),
                "{accept:?}"
            );
        }
        assert_eq!(
            choose(&[b"text/html", b"application/x-ndjson"], &[SSE, NDJSON]),
            Some(NDJSON),
            "several fields are one list"
        );
    }

    #[test]
    fn most_specific_range_decides_whether_an_offer_is_acceptable() {
        for (accept, is_accepted) in [
            ("text/event-stream", true),
            ("*/*", true),
            ("text/html, text/*;q=0.5", true),
            ("", true),
            ("application/json", false),
            ("application/x-ndjson", false),
            ("*/*, text/event-stream;q=0", false),
            ("text/event-stream; q=0.0, */*", false),
            ("text/*;q=0, */*", false),
            ("*/*;q=0, text/event-stream", true),
            ("text/event-stream;q=0, text/event-stream;q=0.1", true),
            ("TEXT/Event-Stream", true),
            ("Text/*", true),
            ("text/event-streams", false),
            ("text", false),
            ("*", false),
            ("/*", false),
            ("*/event-stream", false),
            ("text/html, image/gif, *; q=.2, */*; q=.2", true),
        ] {
            let chosen = choose_text(accept, &[SSE]);
            assert_eq!(chosen.is_some(), is_accepted, "{accept:?}");
        }
    }

    #[test]
    fn parameters_and_quoted_strings_do_not_hide_the_weight() {
        for (accept, is_accepted) in [
            ("text/event-stream;version=1", true),
            ("text/event-stream;version=1;q=0", false),
            ("text/event-stream ; Q = 0.000", false),
            ("text/event-stream;q=0;other=1", false),
            (r#"text/event-stream;x="a,b;q=1\",";q=0"#, false),
            (r#"text/html;x=", text/event-stream""#, false),
            (r#"text/html;x="\\", text/event-stream"#, true),
            ("text/event-stream;quality=0", true),
        ] {
            let chosen = choose_text(accept, &[SSE]);
            assert_eq!(chosen.is_some(), is_accepted, "{accept:?}");
        }
    }

    #[test]
    fn content_coding_is_chosen_by_weight_then_by_the_order_of_the_route() {
        let (gzip, zstd) = (Some(Coding::Gzip), Some(Coding::Zstd));
        let both = [Coding::Zstd, Coding::Gzip];
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", zstd),
            ("gzip, deflate", gzip),
            ("GZIP", gzip),
            ("x-gzip", gzip),
            ("gzip;q=0.9, zstd;q=0.8", gzip),
            ("gzip;q=0.8, zstd;q=0.9, br", zstd),
            ("zstd;q=0, gzip", gzip),
            ("zstd;q=0, gzip;q=0", None),
            ("*", zstd),
            ("*;q=0.5, zstd;q=0.1", gzip),
            ("*, zstd;q=0", gzip),
            ("*;q=0", None),
            ("br, deflate", None),
            ("identity", None),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip", gzip),
            ("identity, gzip", gzip),
            ("", None),
            ("gzip;q=wrong", gzip),
            ("gzipped", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(ACCEPT_ENCODING, HeaderValue::from_static(accept));
            assert_eq!(negotiate_coding(&headers, &both), expected, "{accept:?}");
        }
        assert_eq!(negotiate_coding(&HeaderMap::new(), &both), None);
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT_ENCODING, HeaderValue::from_static("gzip;q=0.5"));
        headers.append(ACCEPT_ENCODING, HeaderValue::from_static("zstd"));
        assert_eq!(negotiate_coding(&headers, &[Coding::Gzip]), gzip);
        assert_eq!(negotiate_coding(&headers, &both), zstd);
    }

    #[test]
    fn weight_has_three_digits() {
        let parse = |text: &str| Quality::parse(text.as_bytes()).map(|quality| quality.0);
        for (text, expected) in [
            ("0", Some(0)),
            ("0.", Some(0)),
            ("0.000", Some(0)),
            ("0.1", Some(100)),
            ("0.05", Some(50)),
            ("0.123", Some(123)),
            ("0.1239", Some(123)),
            ("0.0009", Some(0)),
            (".2", Some(200)),
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("1.5", Some(1000)),
            ("99999999999", Some(1000)),
            ("", None),
            (".", None),
            ("-1", None),
            ("0.1.2", None),
            ("0,5", None),
            ("1e-9", None),
            ("NaN", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_choice_or_a_rejection(
            values in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    "[a-z/*;q=.0-9, \"\\\\]{0,40}".prop_map(String::into_bytes),
                ],
                0..4,
            )
        ) {
            let mut headers = HeaderMap::new();
            for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
                headers.append(ACCEPT, value);
            }
            let chosen = negotiate(&headers, &[SSE, NDJSON], |offer| offer);
            // An exact range with the highest weight, added to any others, is always chosen.
            headers.append(ACCEPT, HeaderValue::from_static("application/x-ndjson"));
            let added = negotiate(&headers, &[SSE, NDJSON], |offer| offer);
            prop_assert!(added.is_some());
            prop_assert!(chosen != Some(NDJSON) || added == Some(NDJSON));
        }

        #[test]
        fn all_weights_are_compared_by_their_value(one in 0u16..=1000, other in 0u16..=1000) {
            let weight = |value: u16| format!("{}.{:03}", value / 1000, value % 1000);
            let accept = format!("{SSE};q={}, {NDJSON};q={}", weight(one), weight(other));
            let expected = match (one, other) {
                (0, 0) => None,
                _ if one >= other => Some(SSE),
                _ => Some(NDJSON),
            };
            prop_assert_eq!(choose_text(&accept, &[SSE, NDJSON]), expected);
        }
    }
}
