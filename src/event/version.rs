//! Version of a payload: a whole number from 1 to 65535.

use std::fmt;
use std::num::NonZeroU16;

/// Version of the payloads of a route: the header `Sidestream-Version` of a message, and what a
/// client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(NonZeroU16);

impl Version {
    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// Parses decimal digits without a sign and without leading zeros.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        if !is_canonical {
            return None;
        }
        text.parse().ok().map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_a_number_in_decimal_digits() {
        for text in ["1", "2", "65535"] {
            assert_eq!(Version::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "0", "01", "+1", "-1", "1.0", "v1", " 1", "65536", "١"] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }
}
