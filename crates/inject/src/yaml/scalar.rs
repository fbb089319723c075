//! Resolves plain scalars by the rules of go-yaml 2, the parser of kubectl.
//!
//! A plain scalar is a text without quotes. Its type decides how the API server sees a value, so a
//! mistake here changes a workload. `emit` uses [`is_plainly_a_text`] for the opposite direction:
//! strings that every YAML reads as strings.

use serde_json::{Number, Value};

/// Value of a plain scalar.
///
/// Source: `resolve.go` of go-yaml 2, which sigs.k8s.io/yaml and so kubectl use. The rules are
/// those of YAML 1.1 without numbers in base 60, and a date stays a string.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    match text.bytes().next()? {
        b'.' => float(text),
        b'+' | b'-' | b'0'..=b'9' => {
            let digits = text.replace('_', "");
            integer(&digits).or_else(|| float(&digits))
        }
        _ => None,
    }
}

/// Integer as Go's `ParseInt` with base 0, then `ParseUint`: `0x1f`, `0o17`, `017`, `0b11`.
fn integer(digits: &str) -> Option<Number> {
    let (negative, magnitude) = match digits.as_bytes().first()? {
        b'-' => (true, &digits[1..]),
        b'+' => (false, &digits[1..]),
        _ => (false, digits),
    };
    let lower = magnitude.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &*lower),
    };
    // `from_str_radix` accepts a second sign.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        0i64.checked_sub_unsigned(magnitude).map(Number::from)
    } else {
        Some(Number::from(magnitude))
    }
}

fn float(digits: &str) -> Option<Number> {
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_is_one = match mantissa.split_once('.') {
        Some(("", fraction)) => is_digits(fraction),
        Some((whole, fraction)) => is_digits(whole) && (fraction.is_empty() || is_digits(fraction)),
        None => is_digits(mantissa),
    };
    let exponent_is_one =
        exponent.is_none_or(|text| is_digits(text.strip_prefix(['+', '-']).unwrap_or(text)));
    let value: f64 = (mantissa_is_one && exponent_is_one).then(|| digits.parse().ok())??;
    // Go writes 1e3 as 1000 to JSON.
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

/// Returns whether every version of YAML reads this text without quotes as a string.
pub(super) fn is_plainly_a_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-');
    matches!(bytes.first(), Some(byte) if byte.is_ascii_alphabetic() || *byte == b'/')
        && bytes.iter().all(word)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

/// Words that some version of YAML reads as a boolean, a number or null.
const WORDS: [&str; 11] = [
    "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf",
];
