//! Trace context of a publisher or a client: `traceparent` and `tracestate`, as W3C Trace Context
//! defines them.
//!
//! Pure and total.

/// Context of the span that a message or a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceContext {
    /// Trace id; never 0.
    pub(super) trace_id: u128,
    /// Span id; never 0.
    pub(super) span_id: u64,
    /// The origin of the context records its trace.
    pub(super) is_sampled: bool,
    /// `tracestate` as received; `None` if it is missing or too long.
    pub(super) state: Option<Box<str>>,
}

/// 512 bytes: what W3C Trace Context asks every system to pass on.
const STATE_BYTES_MAX: usize = 512;

/// Version 00: version, trace id, parent id and flags, with a dash between them.
const LENGTH: usize = 55;

/// Flag of a trace that is recorded.
const SAMPLED: u8 = 1;

impl TraceContext {
    /// Parses the values of `traceparent` and `tracestate`. `None` if the first is not valid.
    #[must_use]
    pub(super) fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let parent = parent.trim();
        let version = u8::try_from(hex(parent.get(..2)?)?).ok()?;
        // A later version may append fields.
        let is_long_enough = match version {
            0 => parent.len() == LENGTH,
            0xff => false,
            _ => parent.len() == LENGTH || parent.as_bytes().get(LENGTH) == Some(&b'-'),
        };
        let dashes = [2, 35, 52].map(|index| parent.as_bytes().get(index));
        if !is_long_enough || dashes != [Some(&b'-'); 3] {
            return None;
        }
        let trace_id = hex(parent.get(3..35)?)?;
        let span_id = u64::try_from(hex(parent.get(36..52)?)?).ok()?;
        let flags = u8::try_from(hex(parent.get(53..LENGTH)?)?).ok()?;
        let is_valid = trace_id != 0 && span_id != 0;
        is_valid.then(|| Self {
            trace_id,
            span_id,
            is_sampled: flags & SAMPLED != 0,
            state: state
                .filter(|state| !state.is_empty() && state.len() <= STATE_BYTES_MAX)
                .map(Box::from),
        })
    }
}

/// Parses lower-case hexadecimal digits, at most 32.
fn hex(digits: &str) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !digits.bytes().all(is_digit) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn context_has_the_ids_the_flag_and_the_state() {
        let context = TraceContext::parse(PARENT, Some("vendor=1,other=2")).unwrap();
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(context.span_id, 0xb7ad_6b71_6920_3331);
        assert!(context.is_sampled);
        assert_eq!(context.state.as_deref(), Some("vendor=1,other=2"));
        let unsampled = TraceContext::parse(&PARENT.replace("-01", "-02"), Some("")).unwrap();
        assert!(!unsampled.is_sampled && unsampled.state.is_none());
        let long = "a=".repeat(257);
        let context = TraceContext::parse(PARENT, Some(&long)).unwrap();
        assert_eq!(context.state, None, "only the state is too long");
    }

    #[test]
    fn later_version_may_have_more_fields() {
        let later = PARENT.replacen("00", "cc", 1);
        assert!(TraceContext::parse(&later, None).is_some());
        assert!(TraceContext::parse(&format!("{later}-more"), None).is_some());
        for wrong in [format!("{later}more"), format!("{PARENT}-more")] {
            assert_eq!(TraceContext::parse(&wrong, None), None, "{wrong}");
        }
    }

    #[test]
    fn invalid_traceparent_is_ignored() {
        for wrong in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &PARENT.replace('-', "_"),
            &PARENT.replace("319c", "31+c"),
            &PARENT.replace("19c", "é"),
        ] {
            assert_eq!(TraceContext::parse(wrong, None), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(parent in "\\PC{0,70}", state in "\\PC{0,20}") {
            let parsed = TraceContext::parse(&parent, Some(&state));
            prop_assert!(parsed.is_none_or(|context| context.trace_id != 0));
        }
    }
}
