//! Reads `versions:` of a route: the versions of its payloads, and the conversions between them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use json_patch::{Patch, PatchOperation};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::reader::ValueReader;
use crate::event::Version;
use crate::payload::{Conversion, Deprecation, Versions};

/// 16 versions: each has its own feeds and metrics.
const VERSIONS_MAX: usize = 16;

/// Two conversions from each version.
const CONVERSIONS_MAX: usize = 2 * VERSIONS_MAX;

/// 100 operations: every payload of a version is changed by all of them.
const OPERATIONS_MAX: usize = 100;

pub(super) fn versions(value: &ValueReader<'_>) -> Option<Versions> {
    value.map(|keys| {
        let current = keys.require("current", version);
        let supported = keys.get_or("supported", current.into_iter().collect(), |value| {
            value.some_of(VERSIONS_MAX, version)
        });
        let deprecated = keys.get_or("deprecated", BTreeMap::new(), |value| {
            deprecated(value, &supported, current)
        });
        let conversions = keys.get_or("conversions", Vec::new(), conversions);
        let current = current?;
        let mut distinct = supported.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < supported.len() {
            let hint = "write each version once";
            keys.error("supported", "`supported` has a version twice", Some(hint));
        }
        if !supported.contains(&current) {
            let message = format!("the current version, {current}, is not in `supported`");
            keys.error(
                "supported",
                message,
                Some("clients without a version get it"),
            );
        }
        let versions = Versions {
            current,
            supported: distinct,
            deprecated,
            conversions,
        };
        let unreachable = |version: &&Version| versions.way(current, **version).is_none();
        if let Some(version) = versions.supported.iter().find(unreachable) {
            keys.error(
                "supported",
                format!("no conversion leads from version {current} to version {version}"),
                Some("add it to `conversions`: { from, to, patch }"),
            );
        }
        Some(versions)
    })
}

pub(super) fn version(value: &ValueReader<'_>) -> Option<Version> {
    value.parsed("a version", |text| {
        Version::parse(text).ok_or("a version is a whole number from 1 to 65535")
    })
}

fn deprecated(
    value: &ValueReader<'_>,
    supported: &[Version],
    current: Option<Version>,
) -> Option<BTreeMap<Version, Deprecation>> {
    let mut deprecated = BTreeMap::new();
    for (key, value) in value.entries()? {
        let Some(version) = Version::parse(key) else {
            value.error("the keys of `deprecated` are versions", None);
            continue;
        };
        if !supported.contains(&version) || Some(version) == current {
            value.error(
                format!("version {version} cannot be deprecated"),
                Some("only versions of `supported` can, and not the current one"),
            );
        }
        deprecated.extend(deprecation(&value).map(|deprecation| (version, deprecation)));
    }
    Some(deprecated)
}

fn deprecation(value: &ValueReader<'_>) -> Option<Deprecation> {
    value.map(|keys| {
        let since = keys.require("since", date);
        let sunset = keys.nullable("sunset", None, date);
        let link = keys.nullable("link", None, link);
        if since
            .zip(sunset)
            .is_some_and(|(since, sunset)| sunset < since)
        {
            let hint = "RFC 8594: a version is deprecated first";
            keys.error("sunset", "`sunset` is before `since`", Some(hint));
        }
        Some(Deprecation {
            since: since?,
            sunset,
            link,
        })
    })
}

/// Reads a date, which begins at 00:00 UTC, or a time.
fn date(value: &ValueReader<'_>) -> Option<SystemTime> {
    value.parsed("a date", |text| {
        let is_date = text.len() == "2027-03-01".len();
        let midnight = if is_date { "T00:00:00Z" } else { "" };
        OffsetDateTime::parse(&format!("{text}{midnight}"), &Rfc3339)
            .ok()
            .filter(|time| *time >= OffsetDateTime::UNIX_EPOCH)
            .map(SystemTime::from)
            .ok_or("expected a date such as 2027-03-01 or a time such as 2027-03-01T12:00:00Z")
    })
}

/// Reads the URL of a page. It becomes part of a response field.
fn link(value: &ValueReader<'_>) -> Option<Box<str>> {
    value.parsed("a URL", |text| {
        let is_web = text.starts_with("https://") || text.starts_with("http://");
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"<>\"".contains(&byte);
        if is_web && text.bytes().all(is_plain) {
            Ok(text.into())
        } else {
            Err("expected a URL such as https://example.com/v2")
        }
    })
}

fn conversions(value: &ValueReader<'_>) -> Option<Vec<Conversion>> {
    let conversions = value.list_of(CONVERSIONS_MAX, conversion)?;
    for (nth, one) in conversions.iter().enumerate() {
        let is_rival =
            |other: &Conversion| other.from == one.from && other.is_upgrade() == one.is_upgrade();
        if conversions[..nth].iter().any(is_rival) {
            let direction = if one.is_upgrade() {
                "a newer"
            } else {
                "an older"
            };
            value.error(
                format!(
                    "two conversions lead from version {} to {direction} one",
                    one.from
                ),
                Some("write conversions between neighbours: they are applied one after the other"),
            );
        }
    }
    Some(conversions)
}

fn conversion(value: &ValueReader<'_>) -> Option<Conversion> {
    value.map(|keys| {
        let (from, to) = (keys.require("from", version), keys.require("to", version));
        let patch = keys.require("patch", |value| value.some_of(OPERATIONS_MAX, operation));
        let (from, to) = (from?, to?);
        if from == to {
            let hint = "a payload of this version is sent as it is";
            keys.error("to", "`from` and `to` are the same version", Some(hint));
        }
        Some(Conversion {
            from,
            to,
            patch: Patch(patch?),
        })
    })
}

/// Reads one operation of a JSON Patch.
fn operation(value: &ValueReader<'_>) -> Option<PatchOperation> {
    let operation = serde_json::from_value(value.json());
    if operation.is_err() {
        value.error(
            "not an operation of a JSON Patch (RFC 6902)",
            Some("such as { op: move, from: /customer/name, path: /name }; a path begins with `/`"),
        );
    }
    operation.ok()
}
