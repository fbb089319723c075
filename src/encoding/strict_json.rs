//! Check of a text: JSON that every common parser accepts, without building values.
//!
//! The grammar of RFC 8259 alone is not enough. Parsers reject texts that it allows: nesting deeper
//! than a limit (64 levels in .NET, 128 in serde_json), a lone surrogate such as `"\ud800"`, a
//! number outside of what a double can hold. [`is_valid`] accepts the intersection, so that a text
//! that is embedded into a larger document never makes it unreadable.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Levels of arrays and objects. The document around it adds a few; .NET reads 64 in total.
const DEPTH_MAX: u8 = 60;

/// Returns true if the text is one JSON value that every common parser accepts.
pub(super) fn is_valid(text: &str) -> bool {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Value {
        depth_left: DEPTH_MAX,
    };
    value.deserialize(&mut deserializer).is_ok() && deserializer.end().is_ok()
}

/// Reads a value, with at most this many levels of arrays and objects.
#[derive(Clone, Copy)]
struct Value {
    depth_left: u8,
}

impl Value {
    /// Reader of the elements of a value, one level deeper.
    fn element<E: Error>(self) -> Result<Self, E> {
        let depth_left = self.depth_left.checked_sub(1);
        depth_left
            .map(|depth_left| Self { depth_left })
            .ok_or_else(|| E::custom("nested too deep"))
    }
}

impl<'t> DeserializeSeed<'t> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for Value {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _value: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _value: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _value: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _value: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _value: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut sequence: A) -> Result<(), A::Error> {
        let element = self.element()?;
        while sequence.next_element_seed(element)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<(), A::Error> {
        let element = self.element()?;
        // A key is a string: the reader of values checks its escapes too.
        while map.next_key_seed(element)?.is_some() {
            map.next_value_seed(element)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_of_any_kind_is_valid() {
        for text in [
            "null",
            "true",
            "-0",
            "12345678901234567890123",
            "1e300",
            "\"\\ud83d\\ude00 \u{2028}\"",
            "[]",
            "{}",
            " {\"a\": [1, {\"b\": null}],\r\n\"a\": 2}\t",
        ] {
            assert!(is_valid(text), "{text:?}");
        }
    }

    #[test]
    fn text_that_a_common_parser_rejects_is_not_valid() {
        for text in [
            "",
            " ",
            "x",
            "{}{}",
            "1 2",
            "[1,]",
            "{a:1}",
            "'a'",
            "01",
            "1e400",
            "NaN",
            "\"a",
            "\"a\nb\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "{\"\\ud800\":1}",
            "\u{feff}{}",
        ] {
            assert!(!is_valid(text), "{text:?}");
        }
    }

    #[test]
    fn nesting_is_limited_and_does_not_exhaust_the_stack() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_valid(&nested(usize::from(DEPTH_MAX))));
        assert!(!is_valid(&nested(usize::from(DEPTH_MAX) + 1)));
        assert!(!is_valid(&nested(1_000_000)));
        assert!(!is_valid(&"{\"a\":".repeat(1_000_000)));
    }
}
