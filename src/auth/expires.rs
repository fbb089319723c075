//! `Sidestream-Expires`: the end of a permission, in seconds since 1970.
//!
//! An authentication endpoint and the application send it.

use std::time::Duration;

use hyper::header::HeaderMap;

use super::Expiry;
use super::clock::Now;

/// Reads the end of a permission. `None`: it has none.
///
/// # Errors
/// A phrase about what is wrong with it.
pub fn expiry(headers: &HeaderMap) -> Result<Option<Expiry>, &'static str> {
    let expires = expires(headers)?;
    Ok(expires.and_then(|expires| Now::read().expiry(expires, Duration::ZERO)))
}

/// Reads the header as time since 1970.
pub(super) fn expires(headers: &HeaderMap) -> Result<Option<Duration>, &'static str> {
    let mut values = headers.get_all("sidestream-expires").iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => seconds(value.to_str().unwrap_or_default())
            .map(Some)
            .ok_or("a Sidestream-Expires that is not a number of seconds since 1970"),
        (Some(_), Some(_)) => Err("more than one Sidestream-Expires"),
    }
}

pub(super) fn seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok().map(Duration::from_secs))?
}
