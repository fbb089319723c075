//! Schemas in force: which document describes a payload, and whether the payload is valid.
//!
//! ```text
//! event -> rule of its subject and version -> document -> validator
//!   reject   validated at once: an invalid payload becomes a gap
//!   count    a copy is validated later, on a thread of its own (`sample`)
//! ```
//!
//! Documents change while events arrive: [`Schemas::update`] compiles the new ones. A document that
//! is missing or invalid leaves the validator of the last valid one in force.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::compiled::compile;
use super::documents::SchemaDocuments;
use super::live::{LiveSchema, lock};
use super::sample::{Sample, Sampler};
use crate::event::{Event, Version};
use crate::subject::{BucketName, Filter};
use crate::telemetry::Metrics;

/// Number of the next schemas.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Limits of the documents.
pub mod limits {
    /// 1 MiB for one document, the largest message of a NATS server by default.
    pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
    /// 8 MiB for all documents.
    pub const BYTES_MAX: usize = 8 << 20;
    /// 1,000 documents.
    pub const DOCUMENTS_MAX: usize = 1000;
}

/// Settings of the schemas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemasConfig {
    /// Origin of the documents. `None`: there are no schemas.
    pub origin: Option<SchemaOrigin>,
    /// Use of the schemas.
    pub validate: Validation,
    /// Schemas by subject and version; the first match applies.
    pub payloads: Vec<SchemaRule>,
}

/// Origin of schema documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaOrigin {
    /// The `.json` files of a folder, by their paths in it.
    Folder(PathBuf),
    /// The values of a NATS KV bucket, by their keys.
    Bucket(BucketName),
}

/// Use of the schemas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Invalid payloads are counted, and delivered.
    #[default]
    Count,
    /// Clients receive a gap in place of an event with an invalid payload.
    Reject,
    /// The schemas only document.
    Off,
}

impl Validation {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Count, Self::Reject, Self::Off];

    /// Word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Reject => "reject",
            Self::Off => "off",
        }
    }
}

/// Payloads that a schema describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaRule {
    /// Subjects of the payloads.
    pub subjects: Vec<Filter>,
    /// Version of the payloads. `None`: all that no rule with a version describes.
    pub version: Option<Version>,
    /// Path of the document in the folder, or its key in the bucket.
    pub schema: Box<str>,
}

impl SchemaRule {
    fn matches(&self, subject: &str) -> bool {
        self.subjects.iter().any(|filter| filter.matches(subject))
    }
}

impl SchemasConfig {
    /// Returns the rule that describes a payload.
    fn rule(&self, subject: &str, version: Option<Version>) -> Option<usize> {
        let of_version = |wanted: Option<Version>| {
            let matching = |rule: &SchemaRule| rule.version == wanted && rule.matches(subject);
            self.payloads.iter().position(matching)
        };
        version
            .and_then(|version| of_version(Some(version)))
            .or_else(|| of_version(None))
    }

    /// Returns whether a rule describes a payload of these subjects.
    fn describes(&self, subjects: &[Filter]) -> bool {
        let mut filters = self.payloads.iter().flat_map(|rule| &rule.subjects);
        filters.any(|filter| subjects.iter().any(|subject| subject.overlaps(filter)))
    }

    /// Returns the schemas that describe payloads of these subjects and one version, each once. For
    /// documentation.
    pub fn describing<'c>(
        &'c self,
        subjects: &[Filter],
        version: Option<Version>,
    ) -> Vec<&'c SchemaRule> {
        let overlaps = |rule: &SchemaRule| {
            let mut filters = rule.subjects.iter();
            filters.any(|filter| subjects.iter().any(|subject| subject.overlaps(filter)))
        };
        let of_version = |wanted: Option<Version>| {
            let rules = self.payloads.iter();
            rules.filter(move |rule| rule.version == wanted && overlaps(rule))
        };
        let mut found: Vec<&SchemaRule> = of_version(version).collect();
        if found.is_empty() && version.is_some() {
            found.extend(of_version(None));
        }
        let mut distinct: Vec<&SchemaRule> = Vec::new();
        for rule in found {
            if distinct.iter().all(|known| known.schema != rule.schema) {
                distinct.push(rule);
            }
        }
        distinct
    }
}

/// Documents of an origin, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundDocuments {
    /// Documents by their paths, once they were read.
    pub documents: Option<BTreeMap<String, Bytes>>,
    /// Reason why changes do not arrive, or why documents are ignored: a sentence.
    pub problem: Option<String>,
}

/// Schemas of a configuration, with the validators of their documents.
#[derive(Debug)]
pub struct Schemas {
    config: SchemasConfig,
    /// Number in this process.
    number: u64,
    /// Document of each rule.
    by_rule: Vec<Arc<LiveSchema>>,
    /// Documents that rules name, by their paths.
    live: BTreeMap<Box<str>, Arc<LiveSchema>>,
    /// Texts of the last valid documents.
    valid: Mutex<BTreeMap<String, Bytes>>,
    /// Of `count`.
    sampler: Option<Sampler>,
}

/// Schemas for the payloads of a route. Two are equal if they have the same result for every event.
#[derive(Clone, Debug)]
pub struct RouteSchemas {
    schemas: Arc<Schemas>,
    /// Version of messages that name none.
    current: Option<Version>,
}

impl Schemas {
    /// Creates the schemas of a configuration without documents, or with those of earlier schemas
    /// of the same origin.
    #[must_use]
    pub fn new(config: SchemasConfig, before: Option<&Self>, metrics: &Metrics) -> Self {
        let before = before.filter(|before| before.config.origin == config.origin);
        let names = config.payloads.iter().map(|rule| rule.schema.clone());
        let live: BTreeMap<Box<str>, Arc<LiveSchema>> = names
            .map(|name| {
                let schema = LiveSchema::new(name.clone(), metrics);
                let known = before.and_then(|before| before.live.get(&name));
                schema
                    .compiled
                    .store(known.and_then(|known| known.compiled.load_full()));
                (name, Arc::new(schema))
            })
            .collect();
        let by_rule = config.payloads.iter();
        let by_rule = by_rule.map(|rule| live[&rule.schema].clone()).collect();
        let sampler = (config.validate == Validation::Count).then(Sampler::start);
        let valid = before.map(|before| lock(&before.valid).clone());
        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            by_rule,
            live,
            valid: valid.unwrap_or_default().into(),
            sampler,
            config,
        }
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> &SchemasConfig {
        &self.config
    }

    /// Puts documents into force, by their paths. Returns the problems, one sentence each: the last
    /// valid document of the path stays in force.
    ///
    /// Compiles, so it takes milliseconds.
    pub fn update(&self, documents: &BTreeMap<String, Bytes>) -> Vec<String> {
        let mut problems = Vec::new();
        let mut parsed = SchemaDocuments::default();
        let mut valid = lock(&self.valid);
        for (path, text) in documents {
            match parsed.add(path, text) {
                Ok(()) => {
                    valid.insert(path.clone(), text.clone());
                }
                Err(error) => {
                    problems.push(format!("{path} {error}"));
                    // It was valid.
                    let before = valid.get(path).map(|text| parsed.add(path, text));
                    debug_assert!(before.is_none_or(|added| added.is_ok()));
                }
            }
        }
        // A removed document does not come back with an invalid one.
        valid.retain(|path, _| documents.contains_key(path));
        drop(valid);
        for (path, compiled) in compile(&parsed, self.live.keys().map(|name| &**name)) {
            match compiled {
                Ok(compiled) => self.live[path].compiled.store(Some(compiled.into())),
                Err(why) => {
                    let sentence = format!("{path} {why}");
                    let is_known = problems
                        .iter()
                        .any(|one| one.starts_with(&format!("{path} ")));
                    if !is_known {
                        problems.push(sentence);
                    }
                }
            }
        }
        problems
    }

    /// Returns whether clients receive a gap in place of an event, and counts the payload.
    fn rejects(&self, event: &Event, version: Option<Version>, payload: &[u8]) -> bool {
        let Some(rule) = self.config.rule(&event.subject, version) else {
            return false;
        };
        let schema = &self.by_rule[rule];
        let Some(compiled) = schema.compiled.load_full() else {
            schema.counters.missing.inc();
            return false;
        };
        let sample = || Sample {
            schema: schema.clone(),
            compiled: compiled.clone(),
            subject: event.subject.clone(),
            sequence: event.position.seq,
            payload: payload.into(),
        };
        match &self.sampler {
            None => !schema.validate(&compiled, &event.subject, event.position.seq, payload),
            Some(sampler) => {
                if !sampler.send(payload.len(), sample) {
                    schema.counters.skipped.inc();
                }
                false
            }
        }
    }
}

impl RouteSchemas {
    /// Returns the schemas for a route with these subjects; `None` if nothing is validated. A
    /// message without a version has the `current` one.
    #[must_use]
    pub fn new(
        schemas: &Arc<Schemas>,
        subjects: &[Filter],
        current: Option<Version>,
    ) -> Option<Self> {
        let is_used = schemas.config.validate != Validation::Off;
        (is_used && schemas.config.describes(subjects)).then(|| Self {
            schemas: schemas.clone(),
            current,
        })
    }

    /// Number of the schemas: others have another one.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.schemas.number
    }

    /// Version of an event's payload on the route.
    #[must_use]
    pub fn version(&self, event: &Event) -> Option<Version> {
        event.version.or(self.current)
    }

    /// Validates the payload of an event, and counts it. True if clients receive a gap in its place.
    #[must_use]
    pub fn rejects(&self, event: &Event, payload: &[u8]) -> bool {
        self.schemas.rejects(event, self.version(event), payload)
    }

    /// Version of messages that name none.
    pub(in crate::payload) fn current(&self) -> Option<Version> {
        self.current
    }
}

impl PartialEq for RouteSchemas {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.schemas, &other.schemas) && self.current == other.current
    }
}

impl Eq for RouteSchemas {}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use prometheus::IntCounter;

    use super::*;
    use crate::event::{EventHeaders, Position, SourceTag};
    use crate::payload::schema::live::SchemaCounters;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        let parsed = texts.iter().map(|text| Filter::parse(text));
        parsed.collect::<Result<_, _>>().unwrap()
    }

    fn version(number: u16) -> Option<Version> {
        Version::parse(&number.to_string())
    }

    fn rule(subjects: &[&str], number: u16, schema: &str) -> SchemaRule {
        SchemaRule {
            subjects: filters(subjects),
            version: version(number),
            schema: schema.into(),
        }
    }

    fn config(validate: Validation) -> SchemasConfig {
        SchemasConfig {
            origin: Some(SchemaOrigin::Folder("/s".into())),
            validate,
            payloads: vec![
                rule(&["orders.*"], 1, "v1"),
                rule(&["orders.>"], 2, "v2"),
                rule(&["orders.>"], 0, "any"),
            ],
        }
    }

    fn event(subject: &str, version: Option<Version>) -> Event {
        Event {
            position: Position {
                tag: SourceTag::of_identity("x"),
                seq: 7,
                fingerprint: None,
            },
            received: Instant::now(),
            tier: None,
            is_end: false,
            sample: None,
            version,
            subject: subject.into(),
            name: None,
            headers: EventHeaders::default(),
            data: Bytes::new(),
        }
    }

    fn documents(texts: &[(&str, &str)]) -> BTreeMap<String, Bytes> {
        let owned = texts
            .iter()
            .map(|(path, text)| ((*path).to_owned(), Bytes::copy_from_slice(text.as_bytes())));
        owned.collect()
    }

    const INTEGER: &str = r#"{"type":"integer"}"#;
    const STRING: &str = r#"{"type":"string"}"#;

    fn counts(schemas: &Schemas, name: &str) -> [u64; 4] {
        let counters = &schemas.live[name].counters;
        let SchemaCounters {
            valid,
            invalid,
            skipped,
            missing,
        } = counters;
        [valid, invalid, skipped, missing].map(IntCounter::get)
    }

    #[test]
    fn rule_of_the_version_comes_before_the_one_without_a_version() {
        let config = config(Validation::Reject);
        let schema = |subject, number| {
            let rule = config.rule(subject, version(number));
            rule.map(|rule| &*config.payloads[rule].schema)
        };
        assert_eq!(schema("orders.1", 1), Some("v1"));
        assert_eq!(schema("orders.1", 2), Some("v2"));
        assert_eq!(schema("orders.1.x", 1), Some("any"));
        assert_eq!(schema("orders.1", 3), Some("any"));
        assert_eq!(schema("orders.1", 0), Some("any"), "no version");
        assert_eq!(schema("other", 1), None);
        let described = config.describing(&filters(&["*.1"]), version(2));
        assert_eq!(described.len(), 1);
        assert_eq!(&*described[0].schema, "v2");
    }

    #[test]
    fn reject_replaces_invalid_payloads_and_counts_them() {
        let metrics = Metrics::new().unwrap();
        let schemas = Arc::new(Schemas::new(config(Validation::Reject), None, &metrics));
        let route = |current| RouteSchemas::new(&schemas, &filters(&["orders.1"]), current);
        assert!(RouteSchemas::new(&schemas, &filters(&["other.>"]), None).is_none());
        let route = route(version(2)).unwrap();
        let of_version = |number| event("orders.1", version(number));
        assert!(!route.rejects(&of_version(0), b"text"), "no document yet");
        assert_eq!(counts(&schemas, "v2"), [0, 0, 0, 1]);
        let all = [("v1", STRING), ("v2", INTEGER), ("any", "false")];
        assert!(schemas.update(&documents(&all)).is_empty());
        assert!(
            !route.rejects(&of_version(0), b"1"),
            "it has the current version"
        );
        assert!(route.rejects(&of_version(2), b"\"1\""));
        assert!(route.rejects(&of_version(2), b"text"));
        assert!(!route.rejects(&of_version(1), b"\"1\""));
        assert!(route.rejects(&of_version(3), b"\"1\""));
        assert!(!route.rejects(&event("other", None), b"text"));
        assert_eq!(counts(&schemas, "v2"), [1, 2, 0, 1]);
        let off = Arc::new(Schemas::new(config(Validation::Off), None, &metrics));
        assert!(RouteSchemas::new(&off, &filters(&["orders.1"]), None).is_none());
    }

    #[test]
    fn count_validates_later_and_rejects_nothing() {
        let metrics = Metrics::new().unwrap();
        let schemas = Arc::new(Schemas::new(config(Validation::Count), None, &metrics));
        assert!(!schemas.update(&documents(&[("v2", INTEGER)])).is_empty());
        let route = RouteSchemas::new(&schemas, &filters(&[">"]), None).unwrap();
        for _ in 0..50 {
            assert!(!route.rejects(&event("orders.1", version(2)), b"text"));
            assert!(!route.rejects(&event("orders.1", version(2)), b"1"));
        }
        let end = Instant::now() + Duration::from_secs(20);
        while counts(&schemas, "v2")[..3].iter().sum::<u64>() < 100 {
            assert!(Instant::now() < end, "{:?}", counts(&schemas, "v2"));
            std::thread::yield_now();
        }
        assert_eq!(counts(&schemas, "v2"), [50, 50, 0, 0]);
    }

    #[test]
    fn documents_with_problems_leave_the_last_valid_ones_in_force() {
        let metrics = Metrics::new().unwrap();
        let schemas = Arc::new(Schemas::new(config(Validation::Reject), None, &metrics));
        let reference = r#"{"$ref":"common"}"#;
        let all = |common| {
            documents(&[
                ("v1", STRING),
                ("v2", reference),
                ("any", "true"),
                ("common", common),
            ])
        };
        let rejects =
            |payload: &[u8]| schemas.rejects(&event("orders.1", None), version(2), payload);
        assert!(schemas.update(&all(INTEGER)).is_empty());
        assert!(!rejects(b"1") && rejects(b"\"\""));
        for broken in ["{", r#"{"type":7}"#, r##"{"$ref":"#/$defs/x"}"##] {
            let problems = schemas.update(&all(broken));
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with("common is not"), "{problems:?}");
            assert!(!rejects(b"1") && rejects(b"\"\""), "{broken}");
        }
        // Valid by itself, but not with what it refers to.
        let problems = schemas.update(&all(r#"{"$ref":"elsewhere"}"#));
        assert!(
            problems[0].contains("not among the documents"),
            "{problems:?}"
        );
        assert!(!rejects(b"1") && rejects(b"\"\""));
        assert!(schemas.update(&all(STRING)).is_empty());
        assert!(rejects(b"1") && !rejects(b"\"\""));
        let problems = schemas.update(&documents(&[("v1", STRING), ("any", "true")]));
        assert_eq!(problems, ["v2 is missing"]);
        assert!(rejects(b"1") && !rejects(b"\"\""));
        // A reload that changes the rules keeps the documents.
        let next = Schemas::new(config(Validation::Count), Some(&schemas), &metrics);
        assert!(next.live["v2"].compiled.load().is_some());
    }
}
