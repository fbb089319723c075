//! Version of the payloads that a request asks for, and the fields of a response that name it.
//!
//! `?version=1` wins over the parameter `version` of the media range in `Accept`, because a browser's
//! `EventSource` and its `WebSocket` can set only the URL. A request without both gets the current
//! version.

use std::borrow::Cow;
use std::time::SystemTime;

use hyper::header::{
    ACCEPT, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderMap, HeaderName, HeaderValue, LINK,
};

use super::negotiate::{Quality, split, weight};
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::Request;
use crate::encoding::Framing;
use crate::event::Version;
use crate::http::route::Route;
use crate::payload::{Deprecation, Versions};

/// Parameter of the query and of a media range.
const PARAMETER: &str = "version";

/// Version of the payloads of an event stream.
const VERSION: HeaderName = HeaderName::from_static("sidestream-version");
/// Time from which the version is deprecated (RFC 9745).
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
/// Time from which requests for the version are rejected (RFC 8594).
const SUNSET: HeaderName = HeaderName::from_static("sunset");
/// Fields that pages of other origins may read.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("sidestream-version, deprecation, sunset, link");

/// Returns the version that a request asks for; `None` if the route has no versions.
///
/// # Errors
/// The route does not support the version, or its sunset is over.
pub(in crate::http) fn version(
    route: &Route,
    request: &Request<'_>,
    framing: Framing,
) -> Result<Option<Version>, Rejection> {
    let Some(versions) = &route.config.versions else {
        return Ok(None);
    };
    let asked = request.query_values(PARAMETER).last();
    let asked = asked.or_else(|| accepted(request.headers, framing.media_type()?, versions));
    let version = match asked {
        None => versions.current,
        Some(text) => Version::parse(&text)
            .filter(|version| versions.supported.contains(version))
            .ok_or_else(|| not_supported(versions))?,
    };
    check_sunset(versions, version, SystemTime::now())?;
    Ok(Some(version))
}

/// Returns the version in the preferred media range that names this media type. Of equal ones the
/// first that the route supports wins.
fn accepted<'h>(
    headers: &'h HeaderMap,
    media_type: &str,
    versions: &Versions,
) -> Option<Cow<'h, str>> {
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .flat_map(|value| split(value.as_bytes(), b','));
    let named = ranges.filter_map(|range| {
        let mut parts = split(range, b';');
        let is_named = parts.next()?.eq_ignore_ascii_case(media_type.as_bytes());
        let parameters: Vec<&[u8]> = parts.collect();
        let quality = parameters.iter().find_map(|one| weight(one));
        let version = parameters.iter().find_map(|one| value_of(one));
        is_named.then_some((quality.unwrap_or(Quality::ONE), version))
    });
    let is_supported = |text: &str| {
        Version::parse(text).is_some_and(|version| versions.supported.contains(&version))
    };
    let best = named
        .filter(|(quality, _)| *quality > Quality::ZERO)
        .map(|(quality, version)| {
            let is_supported = version.as_deref().is_none_or(is_supported);
            ((is_supported, quality), version)
        })
        .reduce(|one, other| if other.0 > one.0 { other } else { one });
    best?.1
}

/// Returns the value if the parameter is a version.
fn value_of(parameter: &[u8]) -> Option<Cow<'_, str>> {
    let (name, value) = parameter.split_at_checked(PARAMETER.len())?;
    let value = value.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    let value = value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""))
        .unwrap_or(value);
    name.eq_ignore_ascii_case(PARAMETER.as_bytes())
        .then(|| String::from_utf8_lossy(value))
}

fn not_supported(versions: &Versions) -> Rejection {
    let supported: Vec<String> = versions.supported.iter().map(Version::to_string).collect();
    let message = format!("the route supports version {}", supported.join(" and "));
    Rejection::new(RejectionCode::VersionNotSupported, message)
}

fn check_sunset(versions: &Versions, version: Version, now: SystemTime) -> Result<(), Rejection> {
    let deprecation = versions.deprecated.get(&version);
    let sunset = deprecation.and_then(|deprecation| deprecation.sunset);
    let Some(sunset) = sunset.filter(|sunset| *sunset <= now) else {
        return Ok(());
    };
    let ended = httpdate::fmt_http_date(sunset);
    let link = deprecation.and_then(|deprecation| deprecation.link.as_ref());
    let link = link.map_or_else(String::new, |link| format!("; see {link}"));
    let message = format!("version {version} ended on {ended}{link}");
    Err(Rejection::new(RejectionCode::VersionGone, message))
}

/// Adds the version of an event stream and, if it is deprecated, its end.
pub(super) fn put_version(route: &Route, version: Version, headers: &mut HeaderMap) {
    headers.insert(VERSION, value(version.to_string()));
    if !route.config.cors.origins.is_empty() {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    let versions = route.config.versions.as_ref();
    if let Some(deprecation) = versions.and_then(|versions| versions.deprecated.get(&version)) {
        put_deprecation(deprecation, headers);
    }
}

fn put_deprecation(deprecation: &Deprecation, headers: &mut HeaderMap) {
    let since = deprecation.since.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.map_or(0, |since| since.as_secs());
    headers.insert(DEPRECATION, value(format!("@{since}")));
    if let Some(sunset) = deprecation.sunset {
        headers.insert(SUNSET, value(httpdate::fmt_http_date(sunset)));
    }
    if let Some(link) = &deprecation.link {
        headers.insert(LINK, value(format!("<{link}>; rel=\"deprecation\"")));
    }
}

/// The texts are visible ASCII: the check of the configuration ensures it of the link.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn number(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn versions() -> Versions {
        Versions {
            current: number("2"),
            supported: vec![number("1"), number("2")],
            deprecated: BTreeMap::new(),
            conversions: Vec::new(),
        }
    }

    #[test]
    fn preferred_range_of_the_media_type_names_the_version() {
        for (accept, expected) in [
            ("text/event-stream", None),
            ("*/*;version=1", None),
            ("text/event-stream;version=1", Some("1")),
            ("text/event-stream ; Version = \"1\" ; q=0.5", Some("1")),
            ("application/x-ndjson;version=1, text/event-stream", None),
            ("text/event-stream;version=9", Some("9")),
            (
                "text/event-stream;version=9, text/event-stream;version=1;q=0.1",
                Some("1"),
            ),
            (
                "text/event-stream;version=1;q=0.1, text/event-stream;version=2",
                Some("2"),
            ),
            (
                "text/event-stream;version=1, text/event-stream;version=2",
                Some("1"),
            ),
            (
                "text/event-stream;version=1;q=0, text/event-stream;version=2;q=0.1",
                Some("2"),
            ),
            ("text/event-stream;versions=1", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            let accepted = accepted(&headers, "text/event-stream", &versions());
            assert_eq!(accepted.as_deref(), expected, "{accept}");
        }
    }

    #[test]
    fn version_is_rejected_from_its_sunset_on() {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut versions = versions();
        let deprecation = Deprecation {
            since: time(10),
            sunset: Some(time(20)),
            link: Some("https://example.com/v2".into()),
        };
        versions.deprecated.insert(number("1"), deprecation);
        let check = |version, seconds| check_sunset(&versions, number(version), time(seconds));
        assert_eq!(check("1", 19), Ok(()));
        assert_eq!(check("2", 99), Ok(()));
        let rejection = check("1", 20).unwrap_err();
        assert_eq!(rejection.code, RejectionCode::VersionGone);
        assert_eq!(
            rejection.message.as_deref(),
            Some("version 1 ended on Thu, 01 Jan 1970 00:00:20 GMT; see https://example.com/v2")
        );
    }
}
