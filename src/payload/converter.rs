//! Converter: payloads of any version to the version and the format of a feed.
//!
//! For another version a payload is parsed, changed by the patches of the way to the target and
//! serialised, in that order. It must then be JSON: everything else cannot be converted, and its
//! clients receive a gap. Numbers are 64-bit integers or doubles, and the keys of objects are
//! sorted. The result, or the payload as published, then becomes a CloudEvent, if the route's format
//! is that. Before all this the payload as published is validated, if the route has schemas.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};

use json_patch::Patch;
use prometheus::IntCounter;
use serde_json::Value;

use super::cloud_events::{self, CloudEventCounters, Structured};
use super::schema::RouteSchemas;
use super::versions::Versions;
use crate::event::{Event, Version};

/// Converter of the payloads of a route. Two are equal if they convert every payload to the same.
#[derive(Debug)]
pub struct Converter {
    version: Option<VersionConverter>,
    /// `None`: the format is as published.
    cloud_events: Option<CloudEventCounters>,
    /// `None`: payloads are not validated.
    schemas: Option<RouteSchemas>,
}

/// Converter to one version of a route.
#[derive(Debug)]
pub struct VersionConverter {
    target: Version,
    current: Version,
    /// Patches of the way, by version of the payload. No entry: there is no way.
    ways: Vec<(Version, Vec<Patch>)>,
    counters: ConversionCounters,
}

/// Counters of conversions to one version.
#[derive(Clone, Debug)]
pub struct ConversionCounters {
    /// Payloads that were converted.
    pub converted: IntCounter,
    /// Payloads that could not be converted.
    pub failed: IntCounter,
}

/// Result of a conversion.
#[derive(Debug, PartialEq, Eq)]
pub enum Converted {
    /// The payload is what it would be converted to.
    Unchanged,
    /// Another payload.
    Payload(Vec<u8>),
    /// It cannot be converted, or becomes too large.
    Failed,
}

impl Converter {
    /// Creates a converter to a version, if the route has versions, and to CloudEvents, if that is
    /// the format, of payloads that match the schemas. `None`: there is nothing to do.
    #[must_use]
    pub fn new(
        version: Option<VersionConverter>,
        cloud_events: Option<CloudEventCounters>,
        schemas: Option<RouteSchemas>,
    ) -> Option<Self> {
        let is_needed = version.is_some() || cloud_events.is_some() || schemas.is_some();
        is_needed.then_some(Self {
            version,
            cloud_events,
            schemas,
        })
    }

    /// Schemas of the payloads as published.
    #[must_use]
    pub fn schemas(&self) -> Option<&RouteSchemas> {
        self.schemas.as_ref()
    }

    /// Version to which it converts, if it does.
    #[must_use]
    pub fn target(&self) -> Option<Version> {
        self.version.as_ref().map(|version| version.target)
    }

    /// True if the payload of a message with this version is left as it is without looking at it.
    /// `None`: the message names no version.
    #[must_use]
    pub fn keeps(&self, version: Option<Version>) -> bool {
        self.cloud_events.is_none() && self.keeps_version(version)
    }

    fn keeps_version(&self, version: Option<Version>) -> bool {
        self.version.as_ref().is_none_or(|own| own.keeps(version))
    }

    /// Converts the payload of an event, and counts it. A result with more than `bytes_max` bytes is
    /// a failure.
    #[must_use]
    pub fn convert(&self, event: &Event, payload: &[u8], bytes_max: usize) -> Converted {
        let mut data = Cow::Borrowed(payload);
        if let Some(version) = self
            .version
            .as_ref()
            .filter(|own| !own.keeps(event.version))
        {
            let Some(converted) = version.convert(event.version, payload, bytes_max) else {
                return Converted::Failed;
            };
            data = Cow::Owned(converted);
        }
        if let Some(counters) = &self.cloud_events {
            match cloud_events::structured(event, &data, counters) {
                Structured::Unchanged => {}
                Structured::Event(event) if event.len() > bytes_max => return Converted::Failed,
                Structured::Event(event) => data = Cow::Owned(event),
            }
        }
        match data {
            Cow::Borrowed(_) => Converted::Unchanged,
            Cow::Owned(payload) => Converted::Payload(payload),
        }
    }
}

impl VersionConverter {
    /// Creates the converter to a version.
    #[must_use]
    pub fn new(versions: &Versions, target: Version, counters: ConversionCounters) -> Self {
        let sources = versions.conversions.iter().map(|step| step.from);
        let mut sources: Vec<Version> = sources.collect();
        sources.sort_unstable();
        sources.dedup();
        let ways = sources.into_iter().filter_map(|from| {
            let way = versions.way(from, target).filter(|way| !way.is_empty())?;
            let patches = way.into_iter().map(|step| step.patch.clone()).collect();
            Some((from, patches))
        });
        Self {
            target,
            current: versions.current,
            ways: ways.collect(),
            counters,
        }
    }

    /// True if a payload of this version is left as it is. `None`: the message names no version.
    fn keeps(&self, version: Option<Version>) -> bool {
        version.unwrap_or(self.current) == self.target
    }

    /// Converts a payload of another version, and counts it; `None` if that is not possible or the
    /// result has more than `bytes_max` bytes.
    fn convert(
        &self,
        version: Option<Version>,
        payload: &[u8],
        bytes_max: usize,
    ) -> Option<Vec<u8>> {
        let converted = self
            .converted(version.unwrap_or(self.current), payload)
            .filter(|converted| converted.len() <= bytes_max);
        match converted {
            Some(_) => self.counters.converted.inc(),
            None => self.counters.failed.inc(),
        }
        converted
    }

    fn converted(&self, from: Version, payload: &[u8]) -> Option<Vec<u8>> {
        let (_, way) = self.ways.iter().find(|(known, _)| *known == from)?;
        let mut value: Value = serde_json::from_slice(payload).ok()?;
        for patch in way {
            // The value is dropped if a patch fails, so nothing has to be undone.
            json_patch::patch_unsafe(&mut value, patch).ok()?;
        }
        serde_json::to_vec(&value).ok()
    }
}

impl PartialEq for Converter {
    fn eq(&self, other: &Self) -> bool {
        let formats = [self, other].map(|one| one.cloud_events.is_some());
        self.version == other.version && formats[0] == formats[1] && self.schemas == other.schemas
    }
}

impl Eq for Converter {}

impl Hash for Converter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let version = self.version.as_ref();
        let numbers = version.map(|version| (version.target, version.current));
        let schemas = self.schemas.as_ref().map(RouteSchemas::current);
        (numbers, self.cloud_events.is_some(), schemas).hash(state);
    }
}

impl PartialEq for VersionConverter {
    fn eq(&self, other: &Self) -> bool {
        (self.target, self.current, &self.ways) == (other.target, other.current, &other.ways)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::payload::Conversion;

    fn version(number: u16) -> Version {
        Version::parse(&number.to_string()).unwrap()
    }

    fn converter(target: u16) -> VersionConverter {
        let step = |from, to, patch: Value| Conversion {
            from: version(from),
            to: version(to),
            patch: serde_json::from_value(patch).unwrap(),
        };
        let versions = Versions {
            current: version(3),
            supported: [1, 2, 3].map(version).to_vec(),
            deprecated: BTreeMap::new(),
            conversions: vec![
                step(
                    3,
                    2,
                    json!([{ "op": "move", "from": "/customer/name", "path": "/name" }]),
                ),
                step(2, 1, json!([{ "op": "remove", "path": "/customer" }])),
                step(
                    1,
                    2,
                    json!([{ "op": "add", "path": "/customer", "value": {} }]),
                ),
                step(
                    2,
                    3,
                    json!([{ "op": "move", "from": "/name", "path": "/customer/name" }]),
                ),
            ],
        };
        let counter = |name| IntCounter::new(name, "test").unwrap();
        let counters = ConversionCounters {
            converted: counter("converted"),
            failed: counter("failed"),
        };
        VersionConverter::new(&versions, version(target), counters)
    }

    fn convert(converter: &VersionConverter, from: Option<u16>, payload: &str) -> Option<String> {
        let converted = converter.convert(from.map(version), payload.as_bytes(), 1000);
        converted.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn payload_is_converted_along_the_way_in_both_directions() {
        let newest = r#"{"customer":{"name":"Ada"},"id":7}"#;
        let down = converter(1);
        assert!(down.keeps(Some(version(1))) && !down.keeps(None));
        let oldest = convert(&down, None, newest).unwrap();
        assert_eq!(oldest, r#"{"id":7,"name":"Ada"}"#);
        let up = converter(3);
        assert!(up.keeps(None) && up.keeps(Some(version(3))));
        assert_eq!(convert(&up, Some(1), &oldest).as_deref(), Some(newest));
        assert_eq!(down.counters.converted.get(), 1);
        assert_eq!(down.counters.failed.get(), 0);
    }

    #[test]
    fn payload_that_cannot_be_converted_is_counted() {
        let down = converter(1);
        let failures = [
            (None, "text"),
            (None, r#"{"id":7}"#),
            (None, "[1,"),
            (Some(9), r#"{"customer":{"name":"Ada"}}"#),
        ];
        for (from, payload) in failures {
            assert_eq!(convert(&down, from, payload), None, "{payload}");
        }
        let nested = "[".repeat(100_000);
        assert_eq!(convert(&down, None, &nested), None);
        let payload = br#"{"customer":{"name":"Ada"},"id":7}"#;
        assert_eq!(down.convert(None, payload, 10), None, "it is too large");
        assert_eq!(down.counters.failed.get(), failures.len() as u64 + 2);
    }

    #[test]
    fn converters_with_the_same_patches_are_equal() {
        let whole = |target| Converter::new(Some(converter(target)), None, None);
        assert_eq!(whole(1), whole(1));
        assert_ne!(whole(1), whole(2));
        assert_eq!(Converter::new(None, None, None), None);
    }
}
